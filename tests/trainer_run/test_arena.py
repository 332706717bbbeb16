"""`scripts/arena.py`: runs side by side, and their table."""

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from xml.etree import ElementTree

import psutil
import pytest

from tests.trainer_run.test_report import make_run
from trainer.algorithm.losses import LOSSES
from trainer.config.load import load
from trainer.config.preset import tomllib

SCRIPT = Path(__file__).parents[2] / "scripts" / "arena.py"
ARENAS = SCRIPT.parent / "arenas"
TABLE = """
title = "Two arms"
preset = "no_such_preset"
seeds = [0, 1]
common = ["run.epochs=1"]
[arms."plain"]
[arms."other one"]
seeds = [0]
set = ["loss.kl_beta=0"]
"""


def test_every_arm_of_the_shipped_tables_is_valid_and_every_loss_has_one() -> None:
    tables = {path.stem: tomllib.loads(path.read_text()) for path in ARENAS.glob("*.toml")}
    loaded = {
        (name, arm): load(own.get("preset", table["preset"]), [*table["common"], *own["set"]])
        for name, table in tables.items()
        for arm, own in ((arm, {"set": [], **own}) for arm, own in table["arms"].items())
    }
    assert len(loaded) > 20
    losses = {s.loss.algorithm for (name, _), s in loaded.items() if name == "losses"}
    assert losses == set(LOSSES)


def arena(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=110)


def table(tmp_path: Path) -> str:
    path = tmp_path / "table.toml"
    path.write_text(TABLE, encoding="utf-8")
    return str(path)


# Three starts of the trainer.
@pytest.mark.exhaustive
def test_runs_that_fail_are_named_and_their_log_is_in_the_archive(tmp_path: Path) -> None:
    out, archive = tmp_path / "runs", tmp_path / "small" / "arena.tar.gz"
    done = arena(
        "run", table(tmp_path), "--out", str(out), "--jobs", "3", "--archive", str(archive)
    )
    assert done.returncode == 1
    assert "not finished: plain, seed 0; other one, seed 0; plain, seed 1" in done.stdout
    with tarfile.open(archive) as tar:
        log = tar.extractfile("other_one-seed0/log.txt")
        assert log is not None
        assert b"no_such_preset" in log.read()


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    out = tmp_path / "runs"
    for name in ("plain-seed0", "plain-seed1", "other_one-seed0"):
        (out / name).mkdir(parents=True)
        (out / name / "result.json").write_text("{}")
    done = arena("run", table(tmp_path), "--out", str(out))
    assert done.returncode == 0
    assert "==" not in done.stdout


def test_runs_end_with_an_arena_that_is_asked_to_stop(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "run", table(tmp_path), "--out", str(tmp_path / "runs")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as arena:
        assert arena.stdout is not None
        assert arena.stdout.readline().startswith("== plain, seed 0")
        while not (runs := psutil.Process(arena.pid).children()):
            time.sleep(0.01)
        arena.terminate()
        assert arena.wait(60) != 0
    assert not psutil.wait_procs(runs, timeout=10)[1]


def test_more_runs_than_cores_are_refused(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    done = arena(
        "run", table(tmp_path), "--out", str(tmp_path), "--jobs", "2", "--cores-per-job", str(cores)
    )
    assert done.returncode == 2
    assert f"2 runs of {cores} cores need {2 * cores}" in " ".join(done.stderr.split())


def test_the_report_is_a_line_per_arm_and_a_figure(tmp_path: Path) -> None:
    runs, docs = tmp_path / "runs", tmp_path / "docs"
    runs.mkdir()
    (docs / "images").mkdir(parents=True)
    make_run(runs / "plain-seed0", {"sharpness": 0.4, "purity": 0.9}, gain=0.3)
    slow = make_run(runs / "plain-seed1", {"sharpness": 0.8, "purity": 0.9}, gain=0.1)
    text = (slow / "metrics.jsonl").read_text()
    (slow / "metrics.jsonl").write_text(text.replace('"cpu": 6.0', '"cpu": 12.0'))
    cut = make_run(runs / "other_one-seed0", {"sharpness": 0.8, "purity": 0.9})
    lines = (cut / "metrics.jsonl").read_text().splitlines()
    (cut / "metrics.jsonl").write_text("\n".join(lines[:-2]) + "\n" + lines[-1][:20])
    done = arena("report", table(tmp_path), "--out", str(runs), "--docs", str(docs))
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 2 + 2 + 2
    assert rows[2].startswith("| plain | 0.700 (0.800, 0.600) | ±")
    assert "sharpness -25%" in rows[2]
    last = json.loads(lines[-3])["metrics"]["geneval"]["mean"]
    assert f"{last:.3f}*" in rows[3]
    assert rows[4].startswith("| arm | held-out after 3.0 CPU minutes")
    # Half of the second seed's epochs fit into them.
    assert rows[6] == "| plain | 0.725 (0.800, 0.650) | 22 |"
    drawing = ElementTree.parse(docs / "images" / "arena_table.svg").getroot()
    assert sum(element.tag.endswith("}circle") for element in drawing.iter()) == 2 * 3
