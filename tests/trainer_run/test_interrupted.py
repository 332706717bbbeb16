"""The command itself, by itself and under torchrun's agent, with a real reward server: signals,
a process that is killed, a server that dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.server.server_process import running
from tests.trainer_run.nursery import Child, Nursery
from tests.trainer_run.test_cli import to_toml
from tests.trainer_run.test_run import assert_same_run, elsewhere
from trainer.run.log import read

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture
def long(table: dict[str, Any]) -> dict[str, Any]:
    """Eight short epochs against the `jpeg` scorer of a real server."""
    table["run"] |= {"epochs": 8, "save_every_epochs": 1000}
    table["sampling"] |= {"num_steps": 3, "eval_num_steps": 2, "window_size": 1}
    table["batch"] |= {"images_per_prompt": 2, "rollout_batch_size": 1}
    table["eval"] |= {"images_per_prompt": 1, "every_epochs": 0}
    table["rewards"] |= {"train": [{"scorer": "jpeg"}], "watch": [], "patience_s": 1.0}
    return table


def save(table: dict[str, Any], folder: Path, name: str) -> str:
    """The settings as a file whose run is in a folder of the same name."""
    file = folder / f"{name}.toml"
    file.write_text(to_toml(elsewhere(table, folder / name)), encoding="utf-8")
    return str(file)


def epochs_done(run_dir: Path) -> int:
    return sum(row["kind"] == "train" for row in read(run_dir))


def wait_for_epochs(child: Child, run_dir: Path, more: int) -> None:
    """Until so many further epochs are done."""
    goal = epochs_done(run_dir) + more
    child.until(lambda: epochs_done(run_dir) >= goal)


def errors(child: Child) -> list[str]:
    return [line for line in child.log.read_text().splitlines() if "error:" in line]


def test_signals_save_and_the_second_one_stops_at_once(
    nursery: Nursery, long: dict[str, Any], tmp_path: Path
) -> None:
    with running(tmp_path, "[scorers.jpeg]\n", wait_for=("jpeg",)) as server:
        where = {"REWARD_URL": server.grpc_url}
        assert nursery.start("cli", ["train", save(long, tmp_path, "whole")], **where).wait() == 0
        command, run_dir = ["train", save(long, tmp_path, "parts")], tmp_path / "parts"
        for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
            child = nursery.start("cli", command, **where)
            wait_for_epochs(child, run_dir, 1)
            os.kill(child.pid, number)
            assert child.wait(60) == code, child.log.read_text()
            output = child.log.read_text()
            assert "stopping and saving (once more to stop at once)" in output
            assert f"stopped after epoch {epochs_done(run_dir)} of {run_dir}" in output
            assert not (run_dir / "result.json").exists()
        # A stopped process (as in a debugger) cannot save: only the second signal ends it, once
        # the first has been taken.
        child = nursery.start("cli", command, **where)
        wait_for_epochs(child, run_dir, 1)
        saved = epochs_done(run_dir)
        server.process.send_signal(signal.SIGSTOP)
        try:
            time.sleep(0.5)
            os.kill(child.pid, signal.SIGTERM)
            child.said("stopping and saving")
            assert child.wait(60) == 0, child.log.read_text()
        finally:
            server.process.send_signal(signal.SIGCONT)
        assert epochs_done(run_dir) >= saved
        assert nursery.start("cli", command, **where).wait() == 0
    assert_same_run(tmp_path / "whole", run_dir)


@pytest.mark.exhaustive
def test_two_processes_under_torchrun_s_agent(
    nursery: Nursery, long: dict[str, Any], tmp_path: Path
) -> None:
    """A process is killed, the server dies, SIGTERM to one and to the agent; the same numbers."""
    command, run_dir = ["train", save(long, tmp_path, "parts")], tmp_path / "parts"
    pids = {"PIDS": str(tmp_path / "pid")}

    def pid_of(rank: int) -> int:
        return int((tmp_path / f"pid.{rank}").read_text())

    with running(tmp_path, "[scorers.jpeg]\n", wait_for=("jpeg",)) as server:
        where = {"REWARD_URL": server.grpc_url, **pids}
        whole = ["train", save(long, tmp_path, "whole")]
        assert nursery.start("launch", 2, whole, **where).wait() == 0
        child = nursery.start("launch", 2, command, **where)
        wait_for_epochs(child, run_dir, 1)
        os.kill(pid_of(1), signal.SIGKILL)
        assert child.wait(90) == 1
        child = nursery.start("launch", 2, command, **where)
        wait_for_epochs(child, run_dir, 1)
        server.process.kill()
        assert child.wait(90) == 1
        (line,) = [text for text in errors(child) if "is saved in" in text]
        assert "has not answered for 1 s" in line
        done = epochs_done(run_dir)
        assert f"epoch_{done:06d}" in line
    (tmp_path / "second").mkdir()
    with running(tmp_path / "second", "[scorers.jpeg]\n", wait_for=("jpeg",)) as server:
        where = {"REWARD_URL": server.grpc_url, **pids}
        child = nursery.start("launch", 2, command, **where)
        wait_for_epochs(child, run_dir, 1)
        # Both stop, whichever is asked.
        os.kill(pid_of(1), signal.SIGTERM)
        assert child.wait(60) == 0, child.log.read_text()
        assert f"stopped after epoch {epochs_done(run_dir)}" in child.log.read_text()
        child = nursery.start("launch", 2, command, **where)
        wait_for_epochs(child, run_dir, 1)
        os.kill(child.pid, signal.SIGTERM)
        # The agent calls any signal a failure; its processes have saved and ended with 0.
        assert child.wait(60) == 1, child.log.read_text()
        assert f"stopped after epoch {epochs_done(run_dir)}" in child.log.read_text()
        assert not (run_dir / "result.json").exists()
        child = nursery.start("launch", 2, command, **where)
        assert child.wait() == 0, child.log.read_text()
        assert f"resuming {run_dir} after epoch" in child.log.read_text()
    assert_same_run(tmp_path / "whole", run_dir)


@pytest.mark.exhaustive
def test_make_train_of_two_processes_ends_without_a_traceback(
    long: dict[str, Any], tmp_path: Path
) -> None:
    """Torchrun's own would follow the trainer's last line: on Ctrl-C, and on a wrong setting."""
    script, run_dir = str(ROOT / "scripts" / "train.py"), tmp_path / "parts"
    command = [sys.executable, script, "--preset", save(long, tmp_path, "parts")]
    with running(tmp_path, "[scorers.jpeg]\n", wait_for=("jpeg",)) as server:
        command += ["--processes", "2", "--reward-url", server.grpc_url]
        with (tmp_path / "log").open("w") as log:
            child = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        while epochs_done(run_dir) < 1 if run_dir.exists() else True:
            assert child.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
        os.killpg(child.pid, signal.SIGINT)
        assert child.wait(120) == 130
        said = (tmp_path / "log").read_text()
        assert f"stopped after epoch {epochs_done(run_dir)} of {run_dir}" in said
        assert "Traceback" not in said
        wrong = subprocess.run(
            [*command, "--set", "optim.lr=-1"], capture_output=True, text=True, check=False
        )
        assert wrong.returncode == 2
        assert "optim.lr" in wrong.stderr
        assert "Traceback" not in wrong.stderr
