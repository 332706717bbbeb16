"""A Slurm cluster of three virtual nodes, and what is submitted to it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
KIT = ROOT / "cluster" / "slurm"
SCRIPT = ROOT / "scripts" / "slurm_cluster.sh"
NODES = 3
PORT = 26817  # of the first cluster's controller; its nodes have the next ones
# Waits are for a quiet machine with two cores; CLUSTER_PATIENCE=5 is for a busy one.
PATIENCE = float(os.environ.get("CLUSTER_PATIENCE", "1"))


def wait_for(what: str, met: Callable[[], object], timeout_s: float) -> None:
    """Wait until `met()` is true.

    Raises:
        TimeoutError: it was not, in time.
    """
    deadline = time.monotonic() + timeout_s * PATIENCE
    while not met():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s * PATIENCE:g} s")
        time.sleep(0.3)


@dataclass
class Cluster:
    """The cluster in `folder`; jobs run in `work`, which all of its nodes share.

    `port` is the first of its ports.
    """

    folder: Path
    work: Path
    port: int
    jobs: list[str] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        given = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "REWARD_"))}
        return given | {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "SLURM_CLUSTER_PORT": str(self.port),
            "PYTHON": sys.executable,
            "PYTHONPATH": str(ROOT),
        }

    def call(self, *command: str, **environment: str) -> str:
        """What a command prints.

        Raises:
            AssertionError: it failed.
        """
        done = subprocess.run(
            command,
            cwd=self.work,
            env=self.environment | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60 * PATIENCE,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def up(self) -> None:
        self.call(str(SCRIPT), "up", str(self.folder), str(NODES))

    def crash(self, node: str) -> None:
        self.call(str(SCRIPT), "crash", str(self.folder), node)

    def down(self) -> None:
        self.call(str(SCRIPT), "down", str(self.folder))

    def submit(
        self, script: str, *arguments: str, options: tuple[str, ...] = (), **environment: str
    ) -> str:
        """Submit a file of the kit as a user would; return the job's number."""
        command = [
            "sbatch",
            "--parsable",
            "--cpus-per-task=1",
            *options,
            str(KIT / script),
            *arguments,
        ]
        self.jobs.append(self.call(*command, **environment))
        return self.jobs[-1]

    def field(self, job: str, name: str) -> str:
        """A field of `scontrol show job`."""
        found = re.search(rf"\b{name}=(\S*)", self.call("scontrol", "show", "job", job))
        assert found, name
        return found[1]

    def state(self, job: str) -> str:
        return self.field(job, "JobState")

    def output(self, job: str) -> str:
        """All that a job has printed, over all of its starts."""
        return "".join(p.read_text() for p in self.work.glob(f"*-{job}.out"))

    def ends(self, job: str, timeout_s: float) -> str:
        """Wait for the end of a job; its final state."""
        ended = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        try:
            wait_for(f"the end of job {job}", lambda: self.state(job) in ended, timeout_s)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.output(job)[-4000:]}") from None
        return self.state(job)
