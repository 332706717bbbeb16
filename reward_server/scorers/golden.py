"""The golden self-test: known pictures, known scores, per digest of the weights.

Expected scores are kept in `goldens.json` below the models directory (and, for weights that ship
with the code, next to this file). They are written by `reward-server models bless` alone: a scorer
whose weights nobody has blessed does not serve.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from reward_server.scorers.base import (
    ItemFailure,
    Outcome,
    ScoreInput,
    ScorerSpec,
    SelfTestError,
    UInt8Image,
)
from reward_server.weights import store

SHIPPED = Path(__file__).with_name("goldens.json")


class GoldenScorer(Protocol):
    """A scorer whose self-test compares with recorded scores."""

    spec: ScorerSpec
    # Largest difference from the recorded scores that is rounding, relative to their spread.
    golden_tolerance: float

    def weights_digest(self) -> str:
        """Hex digest over the weight files alone (`store.digest_of`), whatever the code."""
        ...

    def golden_items(self) -> list[ScoreInput]:
        """At least three inputs that this code draws itself, with different true scores."""
        ...

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        """As in `Scorer`."""
        ...


@dataclass(frozen=True, slots=True)
class Golden:
    """Recorded raw scores and components of the golden items, in order."""

    raw: tuple[float, ...]
    components: Mapping[str, tuple[float, ...]]


def self_test(scorer: GoldenScorer) -> None:
    """Score the golden items and compare with what was blessed for these weights.

    Raises:
        SelfTestError: nothing is recorded for these weights, or a check fails; the message says
            which, and the likely cause.
    """
    found = measure(scorer)
    name, digest = scorer.spec.name, scorer.weights_digest()
    expected = load().get(name, {}).get(digest)
    if expected is None:
        raise SelfTestError(
            f"self-test {name}: no golden scores for weights {digest[:12]}; if these are the"
            f" weights you mean, run `reward-server models bless {name}` once on this machine"
        )
    _compare(scorer, found, expected)


def measure(scorer: GoldenScorer) -> Golden:
    """Score the golden items, with the checks that need no recorded numbers.

    A scorer whose own scores are too coarse to compare (decisions) may have a method
    `golden_subject()` that returns another `GoldenScorer`, which is measured in its place.

    Raises:
        SelfTestError: an item fails, all scores are equal, one is out of range, or a batch
            disagrees with its items one by one.
    """
    scorer = getattr(scorer, "golden_subject", lambda: scorer)()
    name, items = scorer.spec.name, scorer.golden_items()
    together = scorer.score(items, details=False)
    alone = [scorer.score([item], details=False)[0] for item in items]
    for index, outcome in enumerate(together):
        if isinstance(outcome, ItemFailure):
            raise SelfTestError(f"self-test {name}: golden item {index} failed: {outcome.message}")
    found = _golden(together)
    values = [v for column in (found.raw, *found.components.values()) for v in column]
    if not all(math.isfinite(v) for v in values):
        raise SelfTestError(
            f"self-test {name}: scores {_shown(found.raw)} are not finite; likely cause: a type"
            " that overflows (set dtype), or damaged weights"
        )
    if len(set(found.raw)) == 1:
        raise SelfTestError(
            f"self-test {name}: all golden items score {found.raw[0]:.6g}; likely cause: a kernel"
            " that does not run on this device, or weights that were never loaded"
        )
    transform = scorer.spec.transforms[scorer.spec.default_transform]
    low, high = scorer.spec.output_range
    for index, outcome in enumerate(together):
        assert not isinstance(outcome, ItemFailure)
        value = transform(outcome)
        if not low <= value <= high:
            raise SelfTestError(
                f"self-test {name}: golden item {index} scores {value:.6g}, outside {low:g} .."
                f" {high:g}; likely cause: weights of another network"
            )
    _compare(scorer, found, _golden(alone), "one by one")
    return found


def load(path: Path | None = None) -> dict[str, dict[str, Golden]]:
    """All recorded goldens by scorer and digest of the weights: shipped ones and blessed ones.

    Raises:
        SelfTestError: the file is damaged.
    """
    merged: dict[str, dict[str, Golden]] = {}
    for source in (SHIPPED, path or blessed_file()):
        if not source.is_file():
            continue
        try:
            tables = json.loads(source.read_text(encoding="utf-8"))
            for name, by_digest in tables.items():
                for digest, entry in by_digest.items():
                    merged.setdefault(name, {})[digest] = _parsed(entry)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SelfTestError(
                f"self-test: {source} is damaged ({error}); delete it and bless again"
            ) from error
    return merged


def blessed_file() -> Path:
    """Where `models bless` writes."""
    return store.models_dir() / "goldens.json"


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


def _golden(outcomes: Sequence[Outcome]) -> Golden:
    scores = [outcome for outcome in outcomes if not isinstance(outcome, ItemFailure)]
    names = sorted(scores[0].components) if scores else []
    return Golden(
        tuple(float(s.raw) for s in scores),
        {name: tuple(float(s.components[name]) for s in scores) for name in names},
    )


def _parsed(entry: Mapping[str, Any]) -> Golden:
    components = {name: tuple(map(float, v)) for name, v in entry["components"].items()}
    return Golden(tuple(map(float, entry["raw"])), components)


def _compare(scorer: GoldenScorer, found: Golden, expected: Golden, what: str = "recorded") -> None:
    name = scorer.spec.name
    if set(found.components) != set(expected.components) or len(found.raw) != len(expected.raw):
        raise SelfTestError(
            f"self-test {name}: other components or golden items than {what}; the scorer has"
            f" changed: run `reward-server models bless {name}`"
        )
    pairs = {"raw": (found.raw, expected.raw)}
    pairs |= {key: (found.components[key], expected.components[key]) for key in found.components}
    for key, (have, want) in pairs.items():
        spread = max(max(want) - min(want), 1e-3 * max(map(abs, want)), 1e-9)
        worst = max(abs(a - b) for a, b in zip(have, want, strict=True))
        if worst > scorer.golden_tolerance * spread:
            raise SelfTestError(
                f"self-test {name}: {key} is {_shown(have)}, {what}: {_shown(want)} (tolerance"
                f" {scorer.golden_tolerance:g} of the spread); likely cause: another version of a"
                " library, another dtype, or a broken kernel on this device"
            )


def _shown(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{v:.6g}" for v in values) + "]"
