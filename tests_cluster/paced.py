"""A scorer that takes as long as the test says, so that a run can be met in its middle."""

import time
from collections.abc import Sequence
from pathlib import Path

from reward_server.scorers.base import Outcome, ScoreInput
from tests.scorers_bad.bad import Mean


class Paced(Mean):
    """The mean of the image; every batch takes the seconds that stand in a file."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self._file = Path(file)

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        time.sleep(float(self._file.read_text()))
        return super().score(batch, details=details)
