"""The golden self-test: known pictures, known scores, per digest of the weights.

A scorer whose weights are not blessed (`reward-server models bless`) does not serve, and neither
does one whose scores have moved since. The recorded scores lie in `goldens.json`, see
`golden_file.py`.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from reward_server.scorers.base import (
    ItemFailure,
    Outcome,
    ScoreInput,
    ScorerSpec,
    SelfTestError,
    UInt8Image,
)
from reward_server.scorers.golden_checks import check_close, check_plausible, compare
from reward_server.scorers.golden_file import DamagedGoldens, Golden, expected

MIN_ITEMS = 3


class GoldenScorer(Protocol):
    """A scorer whose self-test compares with recorded scores."""

    spec: ScorerSpec
    # Largest difference from the recorded scores that is rounding, relative to their spread. A
    # `batch_tolerance` bounds what the other items of a batch may change; default: the same.
    golden_tolerance: float

    def weights_digest(self) -> str:
        """Hex digest over the weight files alone (`store.digest_of`), whatever the code.

        An option that is meant to change the scores (a variant, not a dtype) belongs in here too:
        one entry is recorded per digest.
        """
        ...

    def fingerprint(self) -> str: ...

    def golden_items(self) -> list[ScoreInput]:
        """At least three inputs that this code draws itself, with different true scores."""
        ...

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]: ...


@runtime_checkable
class Coarse(Protocol):
    """A scorer whose own scores are decisions, too coarse to compare; its subject's are not."""

    spec: ScorerSpec

    def golden_subject(self) -> GoldenScorer:
        """What is measured instead."""
        ...


def self_test(scorer: GoldenScorer | Coarse) -> None:
    """Score the golden items and compare with what was blessed for these weights.

    Raises:
        SelfTestError: nothing is recorded for these weights, or a check fails; the message says
            which, and the likely cause.
    """
    scorer = subject(scorer)
    found = measure(scorer)
    name, digest = scorer.spec.name, scorer.weights_digest()
    try:
        recorded = expected(name, digest)
    except DamagedGoldens as error:
        raise SelfTestError(f"self-test {name}: {error}") from error
    if recorded is None:
        raise SelfTestError(
            f"self-test {name}: no golden scores for weights {digest[:12]}; if these are the"
            f" weights you mean, run `reward-server models bless {name}` (with the --config that"
            " you serve) once on this machine"
        )
    compare(name, found, recorded, scorer.golden_tolerance)


def measure(scorer: GoldenScorer | Coarse) -> Golden:
    """Score the golden items, with the checks that need no recorded numbers.

    Raises:
        SelfTestError: an item fails, all scores are equal, one is not finite or out of range, or a
            batch disagrees with its items one by one.
    """
    scorer = subject(scorer)
    name, items = scorer.spec.name, scorer.golden_items()
    if len(items) < MIN_ITEMS:
        raise SelfTestError(
            f"self-test {name}: {len(items)} golden items; with fewer than {MIN_ITEMS} no check"
            " is meaningful"
        )
    found = _scored(scorer, items, "")
    check_plausible(scorer.spec, found)
    parts = [_scored(scorer, [item], f" (item {i} alone)") for i, item in enumerate(items)]
    cause = "padding, an order inside the batch, or a state that outlives a batch"
    alone = _joined(parts)
    allowed = getattr(scorer, "batch_tolerance", scorer.golden_tolerance)
    check_close(name, found, alone, allowed, what="one by one", cause=cause)
    return Golden(found.raw, found.components, _digest(items), scorer.fingerprint())


def subject(scorer: GoldenScorer | Coarse) -> GoldenScorer:
    """What is measured: the scorer, or what its `golden_subject()` returns."""
    return scorer.golden_subject() if isinstance(scorer, Coarse) else scorer


def pictures(size_px: int = 256) -> list[UInt8Image]:
    """Four drawings (size, size, 3), the same everywhere: flat, disc, stripes and noise."""
    y, x = np.mgrid[0:size_px, 0:size_px] / size_px
    flat = np.broadcast_to(np.array([200, 120, 40.0]), (size_px, size_px, 3))
    disc = np.where(
        ((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.07)[..., None], (210, 30, 40), (235, 238, 245)
    )
    stripes = 127.5 + 120 * np.stack([np.sin(40 * x), np.sin(25 * (x + y)), np.cos(31 * y)], -1)
    index = np.arange(size_px * size_px * 3, dtype=np.uint64)
    # A multiplicative hash, not a random generator: its stream can never change under us.
    noise = ((index * np.uint64(2654435761)) >> np.uint64(11)) % np.uint64(256)
    shaped = (flat, disc, stripes, noise.reshape(size_px, size_px, 3))
    return [np.ascontiguousarray(picture, dtype=np.uint8) for picture in shaped]


def _scored(scorer: GoldenScorer, items: list[ScoreInput], when: str) -> Golden:
    name, scores = scorer.spec.name, []
    outcomes = scorer.score(items, details=False)
    if len(outcomes) != len(items):
        raise SelfTestError(
            f"self-test {name}: {len(outcomes)} outcomes for {len(items)} golden items{when}"
        )
    for index, outcome in enumerate(outcomes):
        if isinstance(outcome, ItemFailure):
            raise SelfTestError(
                f"self-test {name}: golden item {index} failed{when}: {outcome.message}"
            )
        scores.append(outcome)
    names = sorted(scores[0].components)
    if any(sorted(score.components) != names for score in scores):
        raise SelfTestError(f"self-test {name}: golden items differ in the components they have")
    return Golden(
        tuple(float(s.raw) for s in scores),
        {key: tuple(float(s.components[key]) for s in scores) for key in names},
    )


def _joined(parts: Sequence[Golden]) -> Golden:
    names = parts[0].components
    return Golden(
        tuple(part.raw[0] for part in parts),
        {key: tuple(p.components.get(key, (math.nan,))[0] for p in parts) for key in names},
    )


def _digest(items: Sequence[ScoreInput]) -> str:
    sha = hashlib.sha256()
    for item in items:
        sha.update(json.dumps([item.prompt, item.spec], sort_keys=True, default=dict).encode())
        for image in (*item.images, *item.references):
            sha.update(f"{image.shape}".encode())
            sha.update(np.ascontiguousarray(image).data)
    return sha.hexdigest()
