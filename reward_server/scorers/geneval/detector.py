"""What a GenEval detector is: pixels in, scored and coloured boxes out. No rules here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from reward_server.scorers.base import UInt8Image


@dataclass(frozen=True, slots=True)
class Detection:
    """One object that a detector believes in.

    Attributes:
        label: class name, one of the detector's `classes`.
        score: confidence in [0, 1].
        box: x0, y0, x1, y1 in pixels of the image as it was given; x right, y down.
        color: one of the detector's `colors`; None if it was not asked for, or is none of
            them clearly.
        leaning: the colour it is nearest to and how near, in [0, 1), where `color` is None because
            no colour is clear; the `soft` score gives that much credit.
        notes: named measurements behind the score, shown in the details of an item.
    """

    label: str
    score: float
    box: tuple[float, float, float, float]
    color: str | None = None
    leaning: tuple[str, float] | None = None
    notes: dict[str, float] = field(default_factory=dict)


class Detector(Protocol):
    """A detector with a colour classifier: construct (cheap) -> load -> detect, detect, ..."""

    classes: tuple[str, ...]
    colors: tuple[str, ...]

    def load(self, device: str) -> None:
        """Load weights or build tables; called once, in the worker process."""
        ...

    def fingerprint(self) -> str:
        """Hex digest over weights, preprocessing and code; after `load`."""
        ...

    def self_test(self) -> None:
        """Detect in known pictures; raises SelfTestError."""
        ...

    def detect(
        self, images: Sequence[UInt8Image], color_classes: Sequence[Collection[str]]
    ) -> list[list[Detection]]:
        """Find the objects of every class.

        Args:
            images: uint8 RGB arrays (H, W, 3), of any and of different sizes.
            color_classes: per image, the classes whose objects need a colour; a detector with a
                costly colour classifier leaves the others at None.

        Returns:
            Per image the detections in any order, without threshold.
        """
        ...
