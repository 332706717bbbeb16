"""The checks of the golden self-test: what is wrong with scores, and the likely cause."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reward_server.scorers.base import ItemScore, ScorerSpec, SelfTestError
from reward_server.scorers.golden_file import Golden

# Of the largest score: closer than float32 resolves after a network's worth of rounding.
_EQUAL = 1e-6


def check_plausible(spec: ScorerSpec, found: Golden) -> None:
    """Raise SelfTestError unless scores are finite, different from each other and in range."""
    values = [v for column in (found.raw, *found.components.values()) for v in column]
    if not all(math.isfinite(v) for v in values):
        raise SelfTestError(
            f"self-test {spec.name}: scores {_shown(found.raw)} or their components are not finite;"
            " likely cause: a type that overflows (set dtype), or damaged weights"
        )
    if max(found.raw) - min(found.raw) <= _EQUAL * max(map(abs, found.raw)):
        raise SelfTestError(
            f"self-test {spec.name}: all golden items score {found.raw[0]:.6g}; likely cause: a"
            " kernel that does not run on this device, or weights that were never loaded"
        )
    _check_range(spec, found)


def compare(name: str, found: Golden, recorded: Golden, tolerance: float) -> None:
    """Compare measured with recorded scores; raises SelfTestError."""
    cause = _cause(found, recorded)
    check_close(name, found, recorded, tolerance, what="recorded", cause=cause)


def check_close(
    name: str, found: Golden, wanted: Golden, tolerance: float, *, what: str, cause: str
) -> None:
    """Compare two measurements of the same items; raises SelfTestError.

    Args:
        name: of the scorer.
        found: one of them.
        wanted: the other one.
        tolerance: largest difference that is rounding, relative to the spread of `wanted`.
        what: how `wanted` came about, for the message.
        cause: what is likely wrong if they differ.
    """
    if set(found.components) != set(wanted.components) or len(found.raw) != len(wanted.raw):
        raise SelfTestError(
            f"self-test {name}: {_shape(found)}, {what}: {_shape(wanted)}; likely cause: {cause}"
        )
    pairs = {"raw": (found.raw, wanted.raw)}
    pairs |= {key: (found.components[key], wanted.components[key]) for key in found.components}
    for key, (have, want) in pairs.items():
        # A component that hardly differs between the items is held to its size, not its spread.
        spread = max(max(want) - min(want), 1e-3 * max(map(abs, want)), 1e-6)
        worst = max(abs(a - b) for a, b in zip(have, want, strict=True))
        # Not `>`: whatever is not a number must not pass.
        if not worst <= tolerance * spread:
            raise SelfTestError(
                f"self-test {name}: {key} is {_shown(have)}, {what}: {_shown(want)} (off by"
                f" {worst / spread:.2g} of the spread, allowed {tolerance:g}); likely cause:"
                f" {cause}"
            )


def _check_range(spec: ScorerSpec, found: Golden) -> None:
    transform = spec.transforms[spec.default_transform]
    low, high = spec.output_range
    for index, raw in enumerate(found.raw):
        components = {key: column[index] for key, column in found.components.items()}
        value = transform(ItemScore(raw, components))
        if not low <= value <= high:
            raise SelfTestError(
                f"self-test {spec.name}: golden item {index} scores {value:.6g}, outside {low:g} .."
                f" {high:g}; likely cause: weights of another network"
            )


def _cause(found: Golden, recorded: Golden) -> str:
    again = "if that is meant, run `reward-server models bless` again"
    if recorded.inputs and found.inputs != recorded.inputs:
        return f"this version draws other golden items; {again}"
    if not recorded.fingerprint:
        return f"another dtype, library version or device than when it was blessed; {again}"
    if found.fingerprint == recorded.fingerprint:
        return "a broken kernel or memory of this device: code, weights and versions are the same"
    return f"the code, dtype or a library has changed since it was blessed; {again}"


def _shape(golden: Golden) -> str:
    return f"{len(golden.raw)} items with components [{', '.join(sorted(golden.components))}]"


def _shown(values: Sequence[float]) -> str:
    return "[" + ", ".join(f"{v:.6g}" for v in values) + "]"
