"""The script that training pods start: its exit code tells Kubernetes whether a run is finished."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from server_process import ROOT, Server, running

from tests_cluster.runs import EPOCHS, FAST, SETTINGS, SLOW, epochs, scorer
from tests_cluster.slurm import PATIENCE, wait_for

SCRIPT = ROOT / "docker" / "k8s" / "components" / "runs" / "train.sh"


@pytest.fixture
def rewards(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "pace").write_text(SLOW)
    with running(tmp_path, scorer(tmp_path / "pace"), wait_for=("paced",)) as server:
        yield server


@dataclass
class Pod:
    """Starts the script as a container would; nothing of it outlives the test."""

    folder: Path
    rewards: Server
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, *more: str, options: tuple[str, ...] = ()) -> subprocess.Popen[bytes]:
        (self.folder / "mine.toml").write_text(SETTINGS)
        command = ["sh", str(SCRIPT), str(self.folder / "run"), "--standalone", *options]
        command += ["--nproc-per-node=1", "-m", "trainer", "train"]
        command += [str(self.folder / "mine.toml"), *more]
        changed = {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "REWARD_URL": self.rewards.grpc_url,
        }
        # A session of its own, as in a pod: a signal goes to the script alone.
        process = subprocess.Popen(command, env=os.environ | changed, start_new_session=True)
        self.started.append(process)
        return process

    def ends(self, *more: str, options: tuple[str, ...] = ()) -> int:
        return self.start(*more, options=options).wait(180 * PATIENCE)


@pytest.fixture
def pod(tmp_path: Path, rewards: Server) -> Iterator[Pod]:
    made = Pod(tmp_path, rewards)
    yield made
    for process in made.started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_it_ends_with_0_only_when_the_run_is_finished(tmp_path: Path, pod: Pod) -> None:
    run = tmp_path / "run"
    evicted = pod.start()
    wait_for("epoch 1", lambda: 1 in epochs(run) or evicted.poll() is not None, 120)
    assert evicted.poll() is None
    evicted.send_signal(signal.SIGTERM)
    assert evicted.wait(120 * PATIENCE) == 1
    assert not (run / "result.json").exists()
    assert list(run.glob("checkpoints/epoch_*"))
    assert pod.ends("--set", "optim.lrr=1") == 2
    # torchrun's own complaint, also a 2, is no wrong setting of the run.
    assert pod.ends(options=("--no-such-option",)) == 1
    (tmp_path / "pace").write_text(FAST)
    assert pod.ends() == 0
    assert epochs(run) == list(range(1, EPOCHS + 1))
    assert (run / "result.json").exists()
