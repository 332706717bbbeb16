"""The few values that cross the trainer's module boundaries."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

SpecKind = Literal["geneval", "ocr", "metadata"]
SdeKind = Literal["flow_sde", "cps", "dance", "linear", "ode"]
LogProbForm = Literal["gaussian", "squared_error"]
AdvantageMode = Literal["relative", "best", "best_worst", "softmax"]
Experts = Literal["both", "high_noise", "low_noise"]
# The components of Wan 2.2 A14B that predict at high and at low noise; other models have the first.
HIGH, LOW = "transformer", "transformer_2"
EXPERTS: Mapping[Experts, tuple[str, ...]] = {
    "both": (HIGH, LOW),
    "high_noise": (HIGH,),
    "low_noise": (LOW,),
}


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
    """A text to draw, and what its scorer has to know about it."""

    text: str  # as the model reads it
    spec: Mapping[str, Any] | None = None  # the scorer's: a row of GenEval, {"target": ...} of OCR
    spec_kind: SpecKind | None = None  # which scorer family `spec` belongs to
    group: str = ""  # the category under which metrics are reported, e.g. a GenEval tag
    rows: int = 1  # how many rows of its file say the same; that many times as often it is drawn
    references: tuple[Reference, ...] = ()  # the pictures that the text asks to change
    negative: str | None = None  # instead of the run's `sampling.negative_prompt`

    @property
    def request(self) -> Request:
        """What makes it another prompt for the model."""
        return Request(self.text, self.references)


def guides(scale: float) -> bool:
    """Whether this scale means classifier-free guidance; as in diffusers, 1 and less is none."""
    return scale > 1.0
