"""Scores of images, and which scorers computed them.

A failed item is masked (and counted in `errors`), never a number. A scorer is known by its
fingerprint: weights, preprocessing, code and dtype.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.ma import MaskedArray
from numpy.typing import NDArray

from reward_client import ScoreResponse, ScorerResult
from trainer.algorithm.advantages import Advantages, advantages
from trainer.config.loss_settings import RwrSettings
from trainer.config.settings import RewardTerm, Settings
from trainer.errors import ConfigError, Stopped, TrainerError

LOOK_UP_S = 0.25
SHOWN_CHARS = 12
NOT_FINITE = (
    "NaN or infinity in the picture: the model overflowed (model.dtype) or has diverged; not scored"
)


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores of N images.

    `outputs` are everything that the scorers gave: the score as `scorer`, its untransformed value
    as `scorer.raw`, components as `scorer.component`.
    """

    values: Mapping[str, MaskedArray]  # N float64 per term name, masked where the item failed
    reasons: Sequence[Sequence[str]]  # N: why each scorer that failed gave no score
    fingerprints: Mapping[str, tuple[str, ...]]  # by scorer; several if the service changed
    outputs: Mapping[str, MaskedArray]

    @property
    def errors(self) -> dict[str, int]:
        """How often which error occurred."""
        return dict(Counter(reason for reasons in self.reasons for reason in reasons))

    def valid(self, names: Sequence[str]) -> NDArray[np.bool_]:
        """(N,) whether every one of these terms has a value."""
        return ~np.any([np.ma.getmaskarray(self.values[name]) for name in names], axis=0)


def merge(parts: Sequence[Scores]) -> Scores:
    """Concatenate the scores of several batches, in order."""
    values = {name: np.ma.concatenate([p.values[name] for p in parts]) for name in parts[0].values}
    fingerprints = joined(part.fingerprints for part in parts)
    reasons = [reason for part in parts for reason in part.reasons]
    return Scores(values, reasons, fingerprints, _merged_outputs(parts))


def _merged_outputs(parts: Sequence[Scores]) -> dict[str, MaskedArray]:
    """A batch that failed as a whole lacks names that others have: there it has no scores."""
    counts = [len(next(iter(part.values.values()))) for part in parts]
    names = dict.fromkeys(name for part in parts for name in part.outputs)
    return {
        name: np.ma.concatenate(
            [
                part.outputs[name] if name in part.outputs else masked([None] * count)
                for part, count in zip(parts, counts, strict=True)
            ]
        )
        for name in names
    }


def scores_of(
    pending: Sequence["Future[Scores]"], stop: Callable[[], object]
) -> Scores | TrainerError | None:
    """The scores of this process, in order; None if there are none to wait for.

    An error, or that someone asked to stop, is returned: the other processes have to know, or they
    would wait for this one.
    """
    waiting = set(pending)
    while waiting:
        if stop():
            return Stopped("asked to stop")
        done, waiting = wait(waiting, timeout=LOOK_UP_S, return_when=FIRST_EXCEPTION)
        for future in done:
            error = future.exception()
            if isinstance(error, TrainerError):
                return error
    return merge([future.result() for future in pending]) if pending else None


def epoch_advantages(settings: Settings, scores: Scores) -> Advantages:
    """The advantages of an epoch's images, in their order."""
    names = [term.name for term in settings.rewards.train]
    size, loss = settings.batch.images_per_prompt, settings.loss
    return advantages(
        {name: scores.values[name].data for name in names},
        [image // size for image in range(len(scores.values[names[0]]))],
        weights={term.name: term.weight for term in settings.rewards.train},
        valid=scores.valid(names),
        std=settings.advantage.std,
        combine=settings.advantage.combine,
        eps=settings.advantage.eps,
        clip=settings.advantage.clip,
        mode=loss.advantage_mode,
        temperature=loss.rwr_temperature if isinstance(loss, RwrSettings) else 1.0,
        skip_constant_groups=settings.batch.skip_constant_groups,
    )


def all_failed(reason: str, count: int, terms: Sequence[RewardTerm]) -> Scores:
    values = {term.name: masked([None] * count) for term in terms}
    return Scores(values, [(reason,)] * count, {}, {})


def read_response(response: ScoreResponse, count: int, terms: Sequence[RewardTerm]) -> Scores:
    """The terms, and everything else, of the answer to `count` items.

    Raises:
        ConfigError: a scorer gives no such component.
    """
    reasons: list[list[str]] = [[] for _ in range(count)]
    for result in response.results.values():
        for index, item in result.errors.items():
            reasons[index].append(f"{result.name}: {item.code.value}: {item.message}")
    values = {term.name: _column(response.results[term.scorer], term, count) for term in terms}
    fingerprints = {name: (result.fingerprint,) for name, result in response.results.items()}
    outputs = {k: v for result in response.results.values() for k, v in _outputs(result).items()}
    return Scores(values, reasons, fingerprints, outputs)


def _outputs(result: ScorerResult) -> dict[str, MaskedArray]:
    columns = {result.name: result.scores, f"{result.name}.raw": result.raw}
    columns |= {f"{result.name}.{name}": column for name, column in result.components.items()}
    return {name: masked(column) for name, column in columns.items()}


def _column(result: ScorerResult, term: RewardTerm, count: int) -> MaskedArray:
    column = result.scores
    if term.component:
        if term.component not in result.components:
            if len(result.errors) == count:
                return masked([None] * count)
            raise ConfigError(
                f"scorer {term.scorer!r} has no component {term.component!r}; it has "
                f"{', '.join(sorted(result.components)) or 'none'}"
            )
        column = result.components[term.component]
    return masked(column)


def masked(column: Sequence[float | None]) -> MaskedArray:
    """Float64, masked where there is no score."""
    data = [0.0 if value is None else value for value in column]
    return MaskedArray(data, mask=[value is None for value in column], dtype=np.float64)


def among(column: MaskedArray, place: NDArray[np.bool_]) -> MaskedArray:
    """A longer column with these values where `place` (N,) is True, and none elsewhere."""
    out = masked([None] * len(place))
    out[place] = column
    return out


def joined(parts: Iterable[Mapping[str, Sequence[str]]]) -> dict[str, tuple[str, ...]]:
    """Every fingerprint of every scorer once, in order of appearance."""
    found: dict[str, dict[str, None]] = {}
    for part in parts:
        for name, fingerprints in part.items():
            found.setdefault(name, {}).update(dict.fromkeys(fingerprints))
    return {name: tuple(fingerprints) for name, fingerprints in found.items()}


def newest(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The last fingerprint of each scorer in rows of `metrics.jsonl`."""
    found: dict[str, str] = {}
    for row in rows:
        found |= {name: seen[-1] for name, seen in row.get("scorers", {}).items() if seen}
    return found


def take_note(known: dict[str, str], found: Mapping[str, Sequence[str]]) -> list[str]:
    """One warning per scorer that is not the `known` one, which is brought up to date."""
    warnings = []
    for name, fingerprints in found.items():
        for fingerprint in fingerprints:
            before = known.get(name, fingerprint)
            if before != fingerprint:
                warnings.append(
                    f"warning: scorer {name!r} has changed (fingerprint {before[:SHOWN_CHARS]} is"
                    f" now {fingerprint[:SHOWN_CHARS]}): rewards from here on may not compare with"
                    " those before"
                )
            known[name] = fingerprint
    return warnings


def history(rows: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    """Scorer, fingerprint, and the epoch of the first row it computed; in order of scorers."""
    found: dict[str, list[tuple[str, int]]] = {}
    for row in rows:
        for name, fingerprints in row.get("scorers", {}).items():
            periods = found.setdefault(name, [])
            for fingerprint in fingerprints:
                if not periods or periods[-1][0] != fingerprint:
                    periods.append((fingerprint, int(row["epoch"])))
    return [(name, *period) for name in sorted(found) for period in found[name]]
