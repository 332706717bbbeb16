"""Gets one outcome per input out of a scorer that may raise, return nonsense or run out of memory.

An exception is narrowed down by halving until the poison item stands alone; everything else keeps
its score. Whatever is not a finite number becomes a failure. A batch too large for the device is
halved, and the size that fitted is remembered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from reward_client.errors import Code
from reward_server.scorers.base import ItemFailure, ItemScore, ScoreInput, Scorer, Transform
from reward_server.workers.ipc import Failure, Score

_OUT_OF_MEMORY_NAMES = frozenset({"OutOfMemoryError", "ResourceExhaustedError", "MemoryError"})
_OUT_OF_MEMORY_TEXTS = ("CUDA out of memory", "not enough memory")  # the second is torch's on CPU
_MAX_MESSAGE_CHARS = 500


class IsolatingRunner:
    """Drives one scorer; the only state is the batch size the device was found to hold."""

    def __init__(
        self, scorer: Scorer, log: Callable[[str], None], on_oom: Callable[[], None]
    ) -> None:
        self.scorer = scorer
        self._log = log
        self._on_oom = on_oom
        self.max_pixels = 0  # unlimited

    def run(
        self, inputs: Sequence[ScoreInput], transforms: Sequence[str], *, details: bool
    ) -> list[Score | Failure]:
        """Score a batch; never raises."""
        outcomes: list[Score | Failure] = []
        for part in self._parts_that_fit(inputs):
            outcomes += self._run_part([inputs[i] for i in part], details=details)
        named = self.scorer.spec.transforms
        return [
            self._transformed(outcome, named[name])
            for outcome, name in zip(outcomes, transforms, strict=True)
        ]

    def _parts_that_fit(self, inputs: Sequence[ScoreInput]) -> list[list[int]]:
        parts: list[list[int]] = []
        room = 0
        for index, item in enumerate(inputs):
            pixels = pixels_of(item)
            if not parts or (self.max_pixels and pixels > room):
                parts.append([])
                room = self.max_pixels
            parts[-1].append(index)
            room -= pixels
        return parts

    def _run_part(self, inputs: list[ScoreInput], *, details: bool) -> list[Score | Failure]:
        try:
            found = self.scorer.score(inputs, details=details)
            if not isinstance(found, list | tuple) or len(found) != len(inputs):
                size = len(found) if isinstance(found, list | tuple) else type(found).__name__
                raise _BrokenContract(f"returned {size} outcomes for {len(inputs)} items")
            return [_checked(outcome) for outcome in found]
        except Exception as error:  # whatever a scorer raises must not cost its neighbours
            if len(inputs) > 1:
                out_of_memory = _is_out_of_memory(error)
                half = len(inputs) // 2
                if out_of_memory:
                    self._shrink(inputs)
                self._log(f"batch of {len(inputs)} failed ({_brief(error)}): halving it")
                left = self._run_part(inputs[:half], details=details)
                return left + self._run_part(inputs[half:], details=details)
            self._log(f"item failed: {_brief(error)}")
            return [self._failure(error, inputs[0])]

    def _shrink(self, inputs: list[ScoreInput]) -> None:
        self._on_oom()
        tried = sum(pixels_of(item) for item in inputs)
        self.max_pixels = max(1, min(self.max_pixels or tried, tried // 2))

    def _failure(self, error: Exception, item: ScoreInput) -> Failure:
        if _is_out_of_memory(error):
            self._on_oom()
            message = (
                f"this item alone ({pixels_of(item)} pixels) does not fit into the device's"
                " memory: send smaller images"
            )
            return Failure(Code.RESOURCE_EXHAUSTED.value, message)
        return Failure(Code.INTERNAL.value, f"the scorer failed on this item: {_brief(error)}")

    def _transformed(self, outcome: Score | Failure, transform: Transform) -> Score | Failure:
        if isinstance(outcome, Failure):
            return outcome
        try:
            value = float(transform(ItemScore(outcome.raw, outcome.components, outcome.details)))
        except Exception as error:  # third-party code, like the scorer itself
            return Failure(Code.INTERNAL.value, f"the transform failed: {_brief(error)}")
        if not math.isfinite(value):
            return Failure(Code.INTERNAL.value, f"the transform returned {value}")
        return Score(value, outcome.raw, outcome.components, outcome.details)


class _BrokenContract(RuntimeError):
    """The scorer returned something else than one outcome per input."""


def pixels_of(item: ScoreInput) -> int:
    """Pixels of all images and references together."""
    return sum(image.shape[0] * image.shape[1] for image in (*item.images, *item.references))


def _checked(outcome: object) -> Score | Failure:
    if isinstance(outcome, ItemFailure):
        return Failure(outcome.code.value, outcome.message, outcome.retryable)
    if not isinstance(outcome, ItemScore):
        kind = type(outcome).__name__
        return Failure(Code.INTERNAL.value, f"the scorer returned {kind}, not an outcome")
    for name, value in (("raw", outcome.raw), *outcome.components.items()):
        if not _is_finite(value):
            return Failure(Code.INTERNAL.value, f"the scorer returned {name} = {value!r}")
    components = {str(name): float(value) for name, value in outcome.components.items()}
    raw = float(outcome.raw)
    return Score(raw, raw, components, dict(outcome.details) if outcome.details else None)


def _is_finite(value: object) -> bool:
    try:
        return math.isfinite(float(value))  # type: ignore[arg-type]  # what float() refuses is caught
    except (TypeError, ValueError, OverflowError):
        return False


def _is_out_of_memory(error: Exception) -> bool:
    # By name: torch must not be imported here, and other frameworks call it the same.
    names = {cls.__name__ for cls in type(error).__mro__}
    return bool(names & _OUT_OF_MEMORY_NAMES) or any(
        text in str(error) for text in _OUT_OF_MEMORY_TEXTS
    )


def _brief(error: BaseException) -> str:
    text = " ".join(str(error).split())[:_MAX_MESSAGE_CHARS]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
