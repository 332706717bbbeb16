"""What the advantages of a recorded run would have been under another reward.

The run's own advantage function is applied twice to the same images: to what was recorded, and to
the other reward. Groups that are not whole (some pictures thinned out) are left out where a scorer
has to see them.
"""

import json
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.ma import MaskedArray

from trainer.config.load import need_pyarrow, validated
from trainer.config.settings import RewardSettings, RewardTerm, Settings
from trainer.errors import ConfigError, DataError, did_you_mean
from trainer.evaluation.agreement import Rescored
from trainer.evaluation.statistics import Floats
from trainer.run.progress import RESOLVED, read_resolved
from trainer.run.shards import pixel_digest, read_pictures, read_tables, stored
from trainer.scores import NOT_FINITE, Scores, epoch_advantages, masked, merge
from trainer.terminal import Show, silent
from trainer.types import Prompt

if TYPE_CHECKING:
    from trainer.rewards import RewardService

RECORDED, SEEN = ("score.", "output."), "fingerprint."
BATCH = 16


@dataclass(frozen=True, slots=True)
class Other:
    """The reward that a run is compared with: what is scored anew, and all that is added up."""

    scored: tuple[RewardTerm, ...]
    weights: Mapping[str, float]  # by name of a scored term, or of what was recorded
    url: str = ""  # of the reward service; empty: the run's
    force: bool = False  # score lossy pictures, too
    most_groups: int = 0  # score so many groups at most, evenly over the run; 0: all


def parse_weights(text: str) -> dict[str, float]:
    """`a=1,b=0.5`; ConfigError if malformed."""
    try:
        pairs = [part.rpartition("=") for part in text.split(",") if part.strip()]
        found = {name.strip(): float(value) for name, _, value in pairs}
        if not all(map(isfinite, found.values())):
            raise ValueError
        return found
    except ValueError:
        raise ConfigError(f"--weights {text!r}: write name=number, e.g. ocr=1,jpeg=0.5") from None


def rescore(
    run_dir: Path,
    other: Other,
    environment: Mapping[str, str],
    show: Show = silent,
    open_service: "Callable[[RewardSettings], RewardService] | None" = None,
) -> Rescored:
    """Compare what a run was trained on with another reward, on its recorded images.

    `environment` has what the client reads; tests pass an `open_service` without a network.

    Raises:
        ConfigError: no record, an unknown name, or lossy pictures without `force`.
        DataError: a picture is not the one that was recorded.
        ServiceError: the service does not answer, or refuses.
    """
    need_pyarrow("rescore")
    settings = validated(read_resolved(run_dir)["settings"], source=f"{run_dir / RESOLVED}")
    table = read_tables(run_dir)
    if table is None:
        raise ConfigError(
            f"{run_dir} has no recorded images: train with --set record.images=lossless"
        )
    weights = dict(other.weights) or {term.name: 1.0 for term in other.scored}
    if not weights:
        raise ConfigError("name --scorer or --weights: what the run is to be compared with")
    fresh = {term.name for term in other.scored}
    columns = {n: _column(n, table.column_names) for n in weights if n not in fresh}
    if unused := fresh - weights.keys():
        raise ConfigError(f"--weights has no weight for {', '.join(sorted(unused))}")
    every = table.to_pylist()
    lossy = {row["encoding"] for row in every} - {"lossless"}
    if other.scored and lossy and not other.force:
        raise ConfigError(
            f"the pictures of {run_dir} were recorded with record.images={min(lossy)}: these are "
            "not the pixels that were trained on, so their scores would differ; --force scores "
            "them and marks the result"
        )
    rows, left_out = _whole_groups(run_dir, every, settings, other)
    scores = {name: _numbers(rows, column) for name, column in columns.items()}
    fingerprints: dict[str, Any] = {}
    reasons: Mapping[str, int] = {}
    if other.scored:
        url = other.url or environment.get("REWARD_URL") or settings.rewards.url
        service = (open_service or partial(_connect, environment=environment))(
            settings.rewards.model_copy(update={"url": url})
        )
        with closing(service):
            fresh_scores = _scored(run_dir, rows, settings, other.scored, service, show)
        scores |= fresh_scores.values
        fingerprints, reasons = dict(fresh_scores.fingerprints), fresh_scores.errors
    own_terms = settings.rewards.train
    own = {term.name: _numbers(rows, f"score.{term.name}") for term in own_terms}
    terms = tuple(RewardTerm(scorer=name, label=name, weight=weights[name]) for name in weights)
    sides = {"own": (own_terms, own), "other": (terms, {name: scores[name] for name in weights})}
    reward, advantage, used = {}, {}, {}
    for side, (asked, values) in sides.items():
        rewards = settings.rewards.model_copy(update={"train": asked})
        changed = settings.model_copy(update={"rewards": rewards})
        reward[side] = sum(values[term.name] * term.weight for term in asked)
        advantage[side], used[side] = _advantages(changed, rows, values)
    # Normalised with all groups of an epoch, which are not there if some were left out.
    recorded = np.array([row["advantage"] for row in rows])
    found = {
        "run": str(run_dir),
        "own": {term.name: term.weight for term in own_terms},
        "other": weights,
        "recorded": {
            name.removeprefix(SEEN): sorted({row[name] for row in rows if row.get(name)})
            for name in table.column_names
            if name.startswith(SEEN)
        },
        "scored": {name: list(seen) for name, seen in fingerprints.items()},
        "exact": not (other.scored and lossy),
        "pictures": sorted({row["encoding"] for row in rows}),
        "left_out_groups": left_out,
        "failed": {side: int(np.ma.count_masked(column)) for side, column in reward.items()},
        "reasons": dict(reasons),
        "advantages_as_recorded": None if left_out else bool((recorded == advantage["own"]).all()),
    }
    return Rescored(settings, rows, reward, advantage, used, scores, found)


def _column(name: str, known: Sequence[str]) -> str:
    for prefix in RECORDED:
        if prefix + name in known:
            return prefix + name
    names = sorted({n.removeprefix(p) for n in known for p in RECORDED if n.startswith(p)})
    raise ConfigError(
        f"--weights: {name!r} was not recorded{did_you_mean(name, names)}; there are "
        f"{', '.join(names)}, and what --scorer names"
    )


def _numbers(rows: Sequence[Mapping[str, Any]], column: str) -> MaskedArray:
    return masked([row.get(column) for row in rows])


def _whole_groups(
    run_dir: Path, rows: Sequence[dict[str, Any]], settings: Settings, other: Other
) -> tuple[list[dict[str, Any]], int]:
    """The rows of groups that can be compared, and how many groups cannot."""
    seen = stored(run_dir) if other.scored else ()
    groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in rows:
        if not other.scored or row["key"] in seen:
            groups.setdefault((row["epoch"], row["group"]), []).append(row)
    whole = [g for g in groups.values() if len(g) == settings.batch.images_per_prompt]
    if other.scored and 0 < other.most_groups < len(whole):
        places = np.linspace(0, len(whole) - 1, other.most_groups).round().astype(int)
        whole = [whole[place] for place in places]
    if not whole:
        raise ConfigError(f"{run_dir} has no group left whose images are all recorded")
    total = len({(row["epoch"], row["group"]) for row in rows})
    return [row for group in whole for row in group], total - len(whole)


def _connect(settings: RewardSettings, environment: Mapping[str, str]) -> "RewardService":
    # It loads torch, which new weights can do without.
    from trainer.rewards import connect

    return connect(settings, environment)


def _scored(
    run_dir: Path,
    rows: Sequence[Mapping[str, Any]],
    settings: Settings,
    terms: Sequence[RewardTerm],
    service: "RewardService",
    show: Show,
) -> Scores:
    """The scores of these rows' pictures, in their order."""
    import torch

    from trainer.data.references import read_references
    from trainer.models.base import Decoded

    by_key = {row["key"]: row for row in rows}
    named = [(Path(path), row["key"]) for row in rows for path in row["references"]]
    references = read_references(named)
    waiting: deque[tuple[list[str], Future[Scores]]] = deque()
    parts: list[Scores] = []
    order: list[str] = []

    def collect() -> None:
        keys, future = waiting.popleft()
        parts.append(future.result())
        order.extend(keys)
        show("scoring", len(order), len(rows))

    service.check(terms)
    wanted = read_pictures(run_dir, by_key)
    while batch := list(islice(wanted, BATCH)):
        chosen = [by_key[key] for key, _ in batch]
        pixels = [picture for _, picture in batch]
        for row, picture in zip(chosen, pixels, strict=True):
            if row["encoding"] == "lossless" and pixel_digest(picture) != row["sha256"]:
                raise DataError(f"{run_dir}: picture {row['key']} is not what was recorded")
        finite = [NOT_FINITE not in (row["failure"] or "") for row in chosen]
        prompts = [
            Prompt(
                row["prompt"],
                spec=json.loads(row["spec"]) if row["spec"] else None,
                spec_kind=row["spec_kind"],
                references=tuple(references[Path(path)] for path in row["references"]),
            )
            for row in chosen
        ]
        decoded = Decoded(torch.zeros(0), np.stack(pixels), np.array(finite))
        pending = service.submit(decoded, prompts, terms, tag=chosen[0]["key"])
        waiting.append(([row["key"] for row in chosen], pending))
        if len(waiting) > 2 * settings.rewards.requests_in_flight:
            collect()
    while waiting:
        collect()
    scores = merge(parts)
    place = {key: index for index, key in enumerate(order)}
    back = np.array([place[row["key"]] for row in rows])
    values = {name: column[back] for name, column in scores.values.items()}
    reasons = [scores.reasons[int(index)] for index in back]
    return Scores(values, reasons, scores.fingerprints, {})


def _advantages(
    settings: Settings, rows: Sequence[Mapping[str, Any]], values: Mapping[str, MaskedArray]
) -> tuple[Floats, Any]:
    epochs = np.array([row["epoch"] for row in rows])
    out, used = np.zeros(len(rows)), np.zeros(len(rows), dtype=bool)
    for epoch in np.unique(epochs):
        own = epochs == epoch
        part = {name: column[own] for name, column in values.items()}
        found = epoch_advantages(settings, Scores(part, (), {}, {}))
        out[own], used[own] = found.values, found.used
    return out, used
