"""A scorer whose errors tell where things lie."""

from __future__ import annotations

from collections.abc import Sequence

from reward_server.scorers.base import Outcome, ScoreInput
from tests.scorers_bad.bad import Mean

TRACEBACK = "Traceback (most recent call last):"


class Talkative(Mean):
    """Like Mean, but a prompt that is a path is opened, in vain."""

    def __init__(self, fail_to_load: bool = False) -> None:
        super().__init__()
        self._fail_to_load = fail_to_load

    def load(self, device: str) -> None:
        if self._fail_to_load:
            raise RuntimeError(
                f'/etc/secret/weights.pt\n{TRACEBACK}\n  File "/usr/lib/python3/x.py"'
            )
        super().load(device)

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        for entry in batch:
            if entry.prompt.startswith("/etc"):
                raise RuntimeError(f"{entry.prompt}: no file\n{TRACEBACK}\n  {__file__}")
        return super().score(batch, details=details)
