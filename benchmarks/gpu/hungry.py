"""A scorer that needs a given amount of GPU memory per picture: what a batch too large does."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from reward_server.scorers import tools
from reward_server.scorers.base import ItemScore, Outcome, ScoreInput, ScorerSpec, raw


class HungryScorer:
    """Mean of the picture, after allocating `mib` for each picture of the batch.

    On a GPU this process may hold `limit_mib`, so that no other one is disturbed; on a CPU a batch
    that would need more raises what PyTorch raises.
    """

    spec = ScorerSpec(
        name="hungry",
        version="1",
        inputs=("image",),
        transforms={"raw": raw},
        default_transform="raw",
        output_range=(0.0, 255.0),
    )

    def __init__(self, mib: int = 256, limit_mib: int = 2048) -> None:
        self._bytes, self._limit_bytes = mib << 20, limit_mib << 20
        self._device = "cpu"

    def load(self, device: str) -> None:
        """Bound the memory of this process."""
        self._device = device
        if device != "cpu":
            total = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(self._limit_bytes / total, device)

    def fingerprint(self) -> str:
        """Of this file."""
        return tools.digest([sys.modules[__name__]], {})

    def self_test(self) -> None:
        """There is nothing to test."""

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        """One mean per picture."""
        if self._device == "cpu":
            if len(batch) * self._bytes > self._limit_bytes:
                raise torch.OutOfMemoryError("CUDA out of memory (as if this were a GPU)")
        else:
            torch.empty(len(batch) * self._bytes, dtype=torch.uint8, device=self._device).fill_(1)
        return [ItemScore(float(item.images[0].mean())) for item in batch]
