"""A scorer that keeps memory: some with every batch, or without end where the prompt says so."""

from __future__ import annotations

import time
from collections.abc import Sequence

from reward_server.scorers.base import Outcome, ScoreInput
from tests.scorers_bad.bad import Mean

_MIB = 1 << 20


class Leaky(Mean):
    """The mean of the image; loses `leak_mib` with every batch. "runaway" grows to 2 GiB."""

    def __init__(self, leak_mib: int = 0) -> None:
        super().__init__()
        self._leak_mib = leak_mib
        self._lost: list[bytes] = []

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        self._lost.append(b"x" * (self._leak_mib * _MIB))
        if any(item.prompt == "runaway" for item in batch):
            for _ in range(64):
                self._lost.append(b"x" * (32 * _MIB))
                time.sleep(0.1)
        return super().score(batch, details=details)
