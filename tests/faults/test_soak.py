"""The soak in its short form: half a minute of load with every kind of fault once."""

from __future__ import annotations

import subprocess
import sys

import pytest
from server_process import ROOT


@pytest.mark.exhaustive
def test_half_a_minute_of_faults_loses_and_makes_up_nothing() -> None:
    options = ["--minutes", "0.4", "--rate", "4", "--fault-every", "4", "--max-growth-mb", "80"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lost 0  wrong 0" in done.stdout
    for fault in ("kill", "hang", "burst", "hang_up", "reload"):
        assert f"1 x {fault}" in done.stdout
