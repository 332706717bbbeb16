"""A scorer for tests of gateways: as slow as the prompt says, and it notes what it scored."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from reward_server.scorers.base import Outcome, ScoreInput
from tests.scorers_bad.bad import Mean


class Timed(Mean):
    """The mean of the image; sleeps for the largest number of seconds that a prompt names.

    Appends one line per batch to `log_file`: the values it is about to score.
    """

    def __init__(self, log_file: str = "", fingerprint: str = "f" * 8) -> None:
        super().__init__()
        self._file = log_file
        self._fingerprint = fingerprint

    def fingerprint(self) -> str:
        return self._fingerprint

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        if self._file:
            values = " ".join(str(int(item.images[0].mean())) for item in batch)
            with Path(self._file).open("a") as file:
                file.write(values + "\n")
        time.sleep(max(float(item.prompt) for item in batch))
        return super().score(batch, details=details)
