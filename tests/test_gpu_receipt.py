"""The GPU receipt runs on a CPU at tiny sizes, writes every row, and keeps to its time."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import record

ROOT = Path(__file__).parents[1]


def receipt(folder: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit status and contents of `receipt.json`."""
    command = [sys.executable, "-m", "benchmarks.gpu.receipt", "--tiny", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--out", str(folder), *arguments], cwd=ROOT, check=False, timeout=580
    )
    return done.returncode, json.loads((folder / "receipt.json").read_text(encoding="utf-8"))


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_every_part_of_the_trainer_gives_its_rows(tmp_path: Path) -> None:
    parts = "machine,sd3,correct,flux,qwen_image"
    status, found = receipt(tmp_path, "--parts", parts, "--budget-s", "1500")
    rows = {(row["part"], row["what"]): row for row in found["rows"]}
    assert not [row for row in found["rows"] if "error" in row]
    assert status == 0
    for part in parts.split(","):
        assert rows[part, "(part)"]["seconds"] > 0
    assert rows["sd3", "geneval_sd35m_1gpu: together"]["images_per_gpu_s"] > 0
    assert rows["sd3", "geneval_sd35m_1gpu: update"]["ratio_deviation"] == 0.0
    assert rows["correct", "first ratio: all weights"]["exact"]
    assert rows["correct", "float16: scale of the loss"]["weights_unchanged"]
    assert rows["correct", "resumed against uninterrupted, deterministic kernels"]["identical"]
    assert rows["qwen_image", "sampling, one step"]["ms"] > 0
    text = (tmp_path / "receipt.md").read_text(encoding="utf-8")
    assert "| geneval_sd35m_1gpu: together |" in text


def test_a_part_that_fails_or_hangs_is_a_row_and_costs_no_other(tmp_path: Path) -> None:
    part = record.Part("p", "cpu", True, tmp_path, tmp_path, 100.0, 0.0)

    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access")

    record.Part.attempt(part, "late", lambda: {"ms": 1.0}, needs_s=1.0)  # begun long ago
    fresh = record.Part("p", "cpu", True, tmp_path, tmp_path, 1e9, 0.0)
    fresh.attempt("broken", broken)
    fresh.attempt("next", lambda: {"ms": 1.0})
    late, failed, after = record.read(tmp_path)
    assert "skipped" in late
    assert failed["error"] == "RuntimeError: CUDA error: an illegal memory access"
    assert after["ms"] == 1.0
