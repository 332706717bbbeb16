"""Which identity of a scorer is served, where its servers differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from reward_client.types import ScorerInfo


class Identity(NamedTuple):
    """What must be equal for scores of two servers to be comparable, and their answers alike."""

    version: str
    fingerprint: str
    inputs: tuple[str, ...]
    transforms: tuple[str, ...]
    default_transform: str
    output_range: tuple[float, float]

    @staticmethod
    def of(info: ScorerInfo) -> Identity:
        """The identity of a scorer that has loaded."""
        return Identity(*(getattr(info, name) for name in Identity._fields))

    def __str__(self) -> str:
        return f"version {self.version}, fingerprint {self.fingerprint}"


def served_identity(ready: Sequence[Identity], current: Identity | None) -> Identity | None:
    """The identity that most ready endpoints have; never a mixture.

    The current one stays unless another has strictly more endpoints, so that a tie does not flap;
    it also stays while no endpoint is ready. Without a current one the first of a tie is taken.
    """
    if not ready:
        return current
    counts = Counter(ready)
    most = max(counts.values())
    if current is not None and counts[current] == most:
        return current
    return next(identity for identity in ready if counts[identity] == most)
