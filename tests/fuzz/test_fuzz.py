"""The short form of `make fuzz`, and that the harness finds what it is there to find."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.fuzz.harness import Found, Target, fuzz
from tests.fuzz.targets import TARGETS

RUNS = 400


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TARGETS)
def test_a_few_hundred_inputs(name: str, tmp_path: Path) -> None:
    report = fuzz(name, TARGETS[name], RUNS, seed=1, keep_in=tmp_path)
    assert 0 < report.accepted < RUNS


def test_seeds_are_accepted() -> None:
    for target in TARGETS.values():
        for seed in target.seeds():
            target.run(seed)


def test_a_crash_and_a_hang_are_found_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(data: bytes) -> None:
        if b"\xff" in data:
            raise IndexError("a bug")

    def hang(data: bytes) -> None:
        if b"\xff" in data:
            time.sleep(60)

    monkeypatch.setattr("tests.fuzz.harness.INPUT_LIMIT_S", 0.2)
    for run, word in ((crash, "a bug"), (hang, "a hang")):
        with pytest.raises(Found, match=word):
            fuzz("x", Target(run, lambda: [b"abc"], ()), 10_000, keep_in=tmp_path)
    kept = list(tmp_path.iterdir())
    assert kept
    assert all(b"\xff" in file.read_bytes() for file in kept)
