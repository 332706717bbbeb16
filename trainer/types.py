"""The few values that cross the trainer's module boundaries."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

SpecKind = Literal["geneval", "ocr", "metadata"]
SdeKind = Literal["flow_sde", "cps", "dance", "linear", "ode"]
LogProbForm = Literal["gaussian", "squared_error"]
AdvantageMode = Literal["relative", "best", "best_worst", "softmax"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to draw, and what its scorer has to know about it.

    Attributes:
        text: The prompt as the model reads it.
        spec: The scorer's own row (a GenEval metadata row, ``{"target": ...}`` for OCR), or None.
        spec_kind: Which scorer family ``spec`` belongs to; None when there is no spec.
        group: The category under which metrics are reported (a GenEval tag, for instance).
        rows: How many rows of its file say the same; that many times as often it is drawn.
    """

    text: str
    spec: Mapping[str, Any] | None = None
    spec_kind: SpecKind | None = None
    group: str = ""
    rows: int = 1
