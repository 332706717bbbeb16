"""What an OCR engine is: pictures in, lines of text out, in reading order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from reward_server.scorers.base import UInt8Image

# Lines that the recogniser doubts more than this are dropped, by every engine: PaddleOCR 2's own
# default (`drop_score`), and so part of the published reward, which adds only "score > 0".
MIN_CONFIDENCE = 0.5


@dataclass(frozen=True, slots=True)
class Line:
    """One line of text.

    Attributes:
        text: as recognised; never empty.
        score: the recogniser's confidence, `MIN_CONFIDENCE` to 1.
        box: four corners (x, y) in pixels of the picture, clockwise from the top left.
    """

    text: str
    score: float
    box: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What every engine is built with."""

    sessions: int = 1
    threads: int = 1
    detector_dir: str = ""
    recognizer_dir: str = ""
    lang: str = "en"


class Engine(Protocol):
    """A way to read pictures. Its constructor loads nothing and imports nothing heavy."""

    def load(self) -> None:
        """Load the networks, `sessions` times; they run on the CPU."""
        ...

    def read(self, images: Sequence[UInt8Image]) -> list[list[Line]]:
        """Read pictures; the lines of one do not depend on the others.

        Args:
            images: uint8 BGR (not RGB), contiguous, (H, W, 3), of any sizes.
        """
        ...

    def facts(self) -> Mapping[str, str]:
        """What decides the reading: versions, and digests of the networks' files; after `load`."""
        ...

    def alphabet(self) -> frozenset[str] | None:
        """The characters that the recogniser has; None where it does not say; after `load`."""
        ...
