"""What a scorer is: a named, versioned function from a batch of inputs to one outcome per input.

A scorer runs in a worker process of its own and never sees transports, queues or protobuf. It gets
decoded pixels and returns, for every input and in the same order, an `ItemScore` or an
`ItemFailure`. A failure is a typed status, never a number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from reward_client.errors import Code

UInt8Image: TypeAlias = NDArray[np.uint8]  # (H, W, 3) RGB


@dataclass(frozen=True, slots=True)
class ScoreInput:
    """One item as a scorer sees it.

    Attributes:
        prompt: the text the image was generated from; may be empty.
        images: uint8 RGB arrays (H, W, 3); one for a picture, several for the frames of a video.
        references: uint8 RGB arrays (H, W, 3) to compare with (editing source, similarity target).
        spec: what this scorer needs beyond the prompt: a GenEval metadata row, `{"target": ...}`
            for OCR, or free metadata. None when the caller sent none.
    """

    prompt: str
    images: tuple[UInt8Image, ...]
    references: tuple[UInt8Image, ...] = ()
    spec: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ItemScore:
    """A finite score.

    Attributes:
        raw: the scorer's primary value, untransformed.
        components: further named finite values, the same names for every item of a batch.
        details: JSON-serialisable explanation for people (boxes, recognised text); built only when
            the caller asked for details.
    """

    raw: float
    components: Mapping[str, float] = field(default_factory=dict)
    details: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ItemFailure:
    """Why one item has no score. The rest of its batch is unaffected."""

    code: Code
    message: str
    retryable: bool = False


Outcome: TypeAlias = ItemScore | ItemFailure
Transform: TypeAlias = Callable[[ItemScore], float]


def raw(score: ItemScore) -> float:
    """The identity transform, called `raw` by every scorer."""
    return score.raw


def component(name: str) -> Transform:
    """The transform that reports a component."""
    return lambda score: score.components[name]


@dataclass(frozen=True, slots=True)
class ScorerSpec:
    """The static description of a scorer, readable without loading weights.

    Attributes:
        name: the name clients ask for.
        version: changes whenever the definition of the score changes.
        inputs: what an item must carry: any of "image", "prompt", "references", "spec.geneval",
            "spec.ocr" (for OCR a quoted prompt is as good), "spec.metadata".
        transforms: name -> function from an ItemScore to the value reported in `scores`.
        default_transform: used when the caller names none; a key of `transforms`.
        output_range: (low, high) of the default transform; infinities where unbounded.
    """

    name: str
    version: str
    inputs: tuple[str, ...]
    transforms: Mapping[str, Transform]
    default_transform: str
    output_range: tuple[float, float]


class SelfTestError(RuntimeError):
    """The golden self-test failed: which check, expected, found, and the likely cause."""


@runtime_checkable
class Scorer(Protocol):
    """A scorer as the worker drives it: construct -> load -> self_test -> score, score, ...

    The constructor takes the config's `options` table as keyword arguments, typed and validated by
    the class itself; it must not load anything.
    """

    spec: ScorerSpec

    def load(self, device: str) -> None:
        """Load weights onto `device` ("cpu", "cuda:0"); called once, in the worker process."""
        ...

    def fingerprint(self) -> str:
        """Hex digest over weights, preprocessing, code version and dtype; after `load`."""
        ...

    def self_test(self) -> None:
        """Score known inputs and compare with known scores.

        Raises:
            SelfTestError: a score is off: the scorer is FAILED until it is fixed. Anything else
                that is raised may pass (no memory, an endpoint that is away) and is tried again.
        """
        ...

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        """Score a batch: exactly one outcome per input, in order."""
        ...
