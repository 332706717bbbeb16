"""The few values that cross the trainer's module boundaries."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

SpecKind = Literal["geneval", "ocr", "metadata"]
SdeKind = Literal["flow_sde", "cps", "dance", "linear", "ode"]
LogProbForm = Literal["gaussian", "squared_error"]
AdvantageMode = Literal["relative", "best", "best_worst", "softmax"]


@dataclass(frozen=True, slots=True)
class Reference:
    """A picture that a prompt asks to change. The content counts, wherever the file lies."""

    digest: str  # SHA-256 (hex) of the file
    path: Path = field(compare=False)
    size: tuple[int, int] = field(compare=False)  # width and height in pixels
    place: str = field(default="", compare=False)  # where the prompts name it, for messages


class Request(NamedTuple):
    """A text and the pictures that it is about."""

    text: str
    references: tuple[Reference, ...] = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to draw, and what its scorer has to know about it.

    Attributes:
        text: The prompt as the model reads it.
        spec: The scorer's own row (a GenEval metadata row, ``{"target": ...}`` for OCR), or None.
        spec_kind: Which scorer family ``spec`` belongs to; None when there is no spec.
        group: The category under which metrics are reported (a GenEval tag, for instance).
        rows: How many rows of its file say the same; that many times as often it is drawn.
        references: The pictures that the text asks to change.
        negative: What guidance moves away from, if it is not the run's `sampling.negative_prompt`.
    """

    text: str
    spec: Mapping[str, Any] | None = None
    spec_kind: SpecKind | None = None
    group: str = ""
    rows: int = 1
    references: tuple[Reference, ...] = ()
    negative: str | None = None

    @property
    def request(self) -> Request:
        """What makes it another prompt for the model."""
        return Request(self.text, self.references)
