"""The scorer under audit, and what it makes of the untouched pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.ma import MaskedArray

from reward_client.errors import InvalidArgument
from reward_client.images import UInt8Image
from reward_client.types import Item, ScorerInfo, ScorerResult
from reward_server.audit import expected as table
from reward_server.audit import statistics
from reward_server.audit.pictures import Picture
from reward_server.audit.statistics import LEAST_PER_PROMPT
from reward_server.audit.transforms import Transform

_CHUNK_ITEMS, _CHUNK_BYTES = 64, 32 << 20
_SENT_BACKWARDS = 3
Ask = Callable[[Sequence[Item]], ScorerResult]


@dataclass(frozen=True, slots=True)
class Source:
    """The scorer under audit.

    Attributes:
        info: what its server says about it.
        scorer: the built-in scorer that it is, or its class's path.
        output: the transform or component that is audited.
        ask: scores items; raises RewardError if none could be scored.
    """

    info: ScorerInfo
    scorer: str
    output: str
    ask: Ask


class Subject:
    """A scorer with its scores of the untouched pictures.

    Args:
        source: the scorer.
        pictures: in the order that results are in.

    Attributes:
        groups: places of each prompt's pictures.
        base: scores (N,) of the untouched pictures.
        base_failed: how many have none.
        is_grouped: whether every prompt has `LEAST_PER_PROMPT` pictures.
        unit: SD within prompts, without groups of all pictures; 0 where there is none.
        whole: SD of all pictures.
        calls: pictures that were scored.

    Raises:
        InvalidArgument: it fails on every picture, or has no such output.
    """

    def __init__(self, source: Source, pictures: Sequence[Picture]) -> None:
        self.source, self.pictures = source, pictures
        self.calls = 0
        self.family = table.family_of(source.scorer, source.output, source.info.inputs)
        self.reads_prompt = table.reads_prompt(source.info.inputs)
        self.groups = statistics.by_prompt([one.prompt for one in pictures])
        self.base, errors = self.score(pictures, [one.pixels for one in pictures])
        if not self.base.count():
            first = next(iter(errors.values()), "no reason given")
            raise InvalidArgument(
                f"{source.info.name} fails on all {len(pictures)} pictures, the first: {first}"
            )
        self.base_failed = len(errors)
        self.is_grouped = min(map(len, self.groups)) >= LEAST_PER_PROMPT
        within = statistics.spread(self.base, self.groups) if self.is_grouped else None
        whole = statistics.spread(self.base, [np.arange(len(pictures))])
        # Without groups, pictures of all prompts are compared.
        self.unit = (within if self.is_grouped else whole) or 0.0
        self.whole = whole or 0.0
        self.has_unit = self.unit > 1e-12

    def score(
        self,
        pictures: Sequence[Picture],
        pixels: Sequence[UInt8Image],
        most: int = _CHUNK_ITEMS,
    ) -> tuple[MaskedArray, dict[int, str]]:
        """Scores (N,), masked where there is none, and why not."""
        items = [one.item(p, k) for k, (one, p) in enumerate(zip(pictures, pixels, strict=True))]
        values: list[float | None] = []
        errors: dict[int, str] = {}
        for chunk in _chunks(items, most):
            self.calls += len(chunk)
            first = len(values)
            try:
                result = self.source.ask(chunk)
            except InvalidArgument as error:
                # Of every item, and so the service says it once.
                errors |= {first + k: error.message for k in range(len(chunk))}
                values += [None] * len(chunk)
                continue
            for k, error in result.errors.items():
                errors[first + k] = f"{error.code.value}: {error.message}"
            values += self._column(result)
        mask = np.array([value is None for value in values], dtype=bool)
        data = np.array([0.0 if value is None else value for value in values])
        return np.ma.MaskedArray(data, mask), errors

    def _column(self, result: ScorerResult) -> Sequence[float | None]:
        output, transforms = self.source.output, self.source.info.transforms
        if output in result.components:
            return result.components[output]
        # Without any score there are no components to know.
        if output in transforms or not result.components:
            return result.scores
        known = ", ".join(dict.fromkeys([*transforms, *result.components]))
        raise InvalidArgument(f"{self.source.info.name} has no output {output!r}: it has {known}")

    def after(self, one: Transform, level: float) -> tuple[MaskedArray, dict[int, str]]:
        if one.name == "order":
            backwards = self.pictures[::-1]
            values, errors = self.score(
                backwards, [picture.pixels for picture in backwards], _SENT_BACKWARDS
            )
            last = len(backwards) - 1
            return values[::-1], {last - k: error for k, error in errors.items()}
        kept = [one.keeps_mirror or _may_be_mirrored(picture) for picture in self.pictures]
        chosen = [picture for picture, keep in zip(self.pictures, kept, strict=True) if keep]
        if len(chosen) == len(kept):
            return self.score(chosen, [one.apply(p.pixels, level, p.wanted) for p in chosen])
        values = np.ma.MaskedArray(np.zeros(len(kept)), np.ones(len(kept), dtype=bool))
        if chosen:
            pixels = [one.apply(p.pixels, level, p.wanted) for p in chosen]
            found, errors = self.score(chosen, pixels)
            values[np.flatnonzero(kept)] = found
            return values, {int(np.flatnonzero(kept)[k]): e for k, e in errors.items()}
        return values, {}


def _may_be_mirrored(picture: Picture) -> bool:
    words = f"{picture.prompt} {picture.spec or ''}".lower()
    return not any(word in words for word in ("left", "right", '"', "“", "target"))


def _chunks(items: Sequence[Item], most: int) -> Iterable[Sequence[Item]]:
    size = max(sum(len(image.data) for image in item.images) for item in items)
    step = max(1, min(most, _CHUNK_BYTES // max(1, size)))
    return (items[k : k + step] for k in range(0, len(items), step))
