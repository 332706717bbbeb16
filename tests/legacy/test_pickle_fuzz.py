"""A short run of the fuzzer on the pickle reader; the long one is `make fuzz`."""

from pathlib import Path

from tests.fuzz.harness import fuzz
from tests.fuzz.pickles import PICKLE


def test_mutated_pickles_are_read_or_refused(tmp_path: Path) -> None:
    report = fuzz("pickle", PICKLE, 3000, keep_in=tmp_path)
    assert report.accepted > 30  # the seeds at least: it is not fuzzing a wall
    assert report.accepted < 2900
