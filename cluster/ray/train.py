r"""A training run on a Ray cluster: torchrun in one actor per node, until the run is finished.

    ray job submit -- python cluster/ray/train.py /shared/runs/mine my.toml --nodes 4 \
        --processes 8 --gpus 8 --rewards /shared/rewards

A lost node or a killed trainer is a new start from the newest checkpoint. `ray job stop` saves:
raise RAY_JOB_STOP_WAIT_TIME_S on the head to your longest update and one checkpoint. Rewards:
REWARD_URL, or `--rewards FOLDER`, where cluster/ray/rewards.py publishes them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import ray

# The process gets SIGTERM when the actor ends, however it ends.
DIE_WITH_ACTOR = ("setpriv", "--pdeathsig", "TERM")
SETTINGS = 2


@ray.remote(max_restarts=0)
class Agent:
    """One node's torchrun."""

    def meeting(self) -> tuple[str, int]:
        """An address of this node where the processes can meet."""
        with socket.socket() as free:
            free.bind((ray.util.get_node_ip_address(), 0))
            host, port = free.getsockname()
        return host, port

    def start(
        self, nodes: int, rank: int, processes: int, at: tuple[str, int], run: Sequence[str],
        environment: Mapping[str, str],
    ) -> None:  # fmt: skip
        """Start torchrun; it ends with this actor."""
        command = [*DIE_WITH_ACTOR, sys.executable, "-m", "torch.distributed.run"]
        command += [
            "--nnodes",
            str(nodes),
            "--node-rank",
            str(rank),
            "--nproc-per-node",
            str(processes),
        ]
        command += ["--master-addr", at[0], "--master-port", str(at[1]), *run]
        self._process = subprocess.Popen(command, env=os.environ | environment)

    def poll(self) -> int | None:
        """Its exit code, or None while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """Ask it to save."""
        self._process.terminate()


def one_start(options: argparse.Namespace, run: Sequence[str], asked: Sequence[int]) -> None:
    """Run torchrun on all nodes, and wait until it has ended on all or a node is lost."""
    resources = {"num_cpus": options.cpus or options.processes, "num_gpus": options.gpus}
    agents = [
        Agent.options(scheduling_strategy="SPREAD", **resources).remote()
        for _ in range(options.nodes)
    ]
    told = False
    try:
        at = ray.get(agents[0].meeting.remote())
        print(f"{options.nodes} nodes meet at {at[0]}:{at[1]}", flush=True)
        environment = rewards(options.rewards)
        ray.get([
            agent.start.remote(options.nodes, rank, options.processes, at, run, environment)
            for rank, agent in enumerate(agents)
        ])  # fmt: skip
        while None in (codes := ray.get([agent.poll.remote() for agent in agents])):
            # One node's torchrun that has ended ends the others': they wait for it otherwise.
            if not told and (asked or any(code is not None for code in codes)):
                told = True
                ray.get([agent.terminate.remote() for agent in agents])
            time.sleep(0.5)
    except ray.exceptions.RayError as error:
        print(f"a node is lost: {type(error).__name__}", flush=True)
    finally:
        for agent in agents:
            ray.kill(agent)


def rewards(folder: Path | None) -> dict[str, str]:
    """What the trainer needs to know of the rewards in a folder."""
    if folder is None:
        return {}
    folder = folder.resolve()
    key = (folder / "key").read_text(encoding="utf-8").strip()
    return {"REWARD_URL": f"file:{folder / 'urls'}", "REWARD_API_KEY": key}


def ended(out: Path) -> tuple[int | None, str]:
    """The trainer's own exit code and error; None where it was killed."""
    try:
        found = json.loads((out / "exit.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None, "it was killed"
    return found["exit_code"], found["error"]


def arguments() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, help="the run's folder, shared by all nodes")
    parser.add_argument("preset", help="or a .toml file")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1, help="per node")
    parser.add_argument("--cpus", type=float, default=0, help="per node; 0: one per process")
    parser.add_argument("--gpus", type=float, default=0, help="per node")
    parser.add_argument("--rewards", type=Path, help="folder of cluster/ray/rewards.py")
    parser.add_argument("--tries", type=int, default=4, help="failed starts from one checkpoint")
    return parser


def main() -> int:
    """Start until the run is finished, no start gets further, or somebody stops this job."""
    options = arguments().parse_args()
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    # Actors have working folders of their own.
    preset = os.path.abspath(options.preset) if options.preset.endswith(".toml") else options.preset
    run = ["-m", "trainer", "train", preset, "--out", str(out)]
    run += [word for setting in options.set for word in ("--set", setting)]
    asked: list[int] = []
    ray.init(logging_level="warning", _node_ip_address=os.environ.get("RAY_NODE_IP"))
    signal.signal(signal.SIGTERM, lambda got, frame: asked.append(got))
    before, failures = None, 0
    while not asked:
        (out / "exit.json").unlink(missing_ok=True)
        one_start(options, run, asked)
        code, error = ended(out)
        print(f"the trainer ended with {code} {error}".rstrip(), flush=True)
        if code == 0 and (out / "result.json").exists():
            return 0
        if code == SETTINGS:
            return SETTINGS
        newest = max((path.name for path in out.glob("checkpoints/epoch_*")), default="")
        failures = failures + 1 if newest == before and code != 0 else 1
        before = newest
        if failures >= options.tries:
            print(f"gave up: {failures} starts got no further than {newest or 'nothing'}")
            return 1
    return 143


if __name__ == "__main__":
    sys.exit(main())
