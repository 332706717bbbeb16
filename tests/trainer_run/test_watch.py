"""`flow-train report --watch` as a process of its own, beside a run that goes on."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.trainer_run.test_report import make_run, training
from trainer.report.watch import watch_run
from trainer.run.progress import abandoned

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]
TRAINS = """
import sys, time
from pathlib import Path
from trainer.run.progress import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""
# A shell that starts tests in the background has SIGINT ignored.
PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from trainer.cli import main
main()
"""
WATCH = {"sharpness": 0.78, "purity": 0.95}


@contextmanager
def watching(folder: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", PROGRAM, "report", str(folder), "--watch", "--every", "1"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 100
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def append(folder: Path, epoch: int) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(training(epoch)) + "\n")


def test_the_report_follows_the_run_and_ends_with_it(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", WATCH)
    page = folder / "report.html"
    with watching(folder) as process:
        until(page.is_file)
        until(lambda: 'data-reload="1"' in page.read_text())
        append(folder, 31)
        until(lambda: "unfinished: epoch 31 of 200" in page.read_text())
        (folder / "exit.json").write_text('{"exit_code": 130, "error": ""}')
        out, error = process.communicate(timeout=100)
    assert (process.returncode, error) == (0, "")
    assert "stopped after epoch 31: exit code 130" in page.read_text()
    # Nobody writes the page again, so it does not load itself again.
    assert "data-reload" not in page.read_text().split("<script>")[0]
    first, second, last, *_ = out.splitlines()
    assert "unfinished: epoch 30 of 200, geneval 0.800 at epoch 30" in first
    assert "unfinished: epoch 31 of 200" in second
    assert "stopped after epoch 31" in last
    assert f"report: {page}" in out.replace("\n", "")


def test_ctrl_c_ends_it_in_silence_also_before_the_first_evaluation(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", WATCH)
    (folder / "metrics.jsonl").write_text("")
    with watching(folder) as process:
        assert process.stdout is not None
        assert "waiting for the evaluation of the base model" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=100)
    assert (process.returncode, out, error) == (130, "", "")
    assert not (folder / "report.html").exists()


def test_a_run_that_is_killed_ends_the_watch_and_the_page_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", WATCH)
    page, said = folder / "report.html", []
    trains = subprocess.Popen(
        [sys.executable, "-c", TRAINS, str(folder)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )

    def say(line: str) -> None:
        said.append(line)
        if len(said) == 1:
            assert "unfinished: epoch 30 of 200" in page.read_text()
            trains.kill()
            trains.wait()

    try:
        assert trains.stdout is not None
        assert trains.stdout.readline() == b"locked\n"
        assert not abandoned(folder)
        watch_run(folder, 1.0, say, gone_s=1.5)
    finally:
        trains.kill()
        trains.wait()
    assert "stopped after epoch 30: its process was killed; the same command continues" in said[-1]
    assert "its process was killed" in page.read_text()


def test_a_run_of_another_host_is_not_called_killed(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", WATCH)
    assert not abandoned(folder)
    (folder / ".lock").write_text("elsewhere")
    assert not abandoned(folder)
    (folder / ".lock").write_text(socket.gethostname())
    assert abandoned(folder)
