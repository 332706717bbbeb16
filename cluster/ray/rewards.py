r"""Reward servers on a Ray cluster, found by trainers through a shared folder.

    ray job submit -- python cluster/ray/rewards.py /shared/rewards --servers 2 --gpus 1 -- \
        --config geneval.toml

What follows `--` are arguments of `reward-server serve`. One actor per server reserves CPUs and
GPUs, supervises the ordinary server in a process of its own, and is started again, on another node
if need be, when server or node are lost. Scores do not travel through Ray. The folder holds what
cluster/slurm/rewards.sbatch writes: `urls` (REWARD_URL=file:FOLDER/urls), `key`, `keys.toml`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import ray

# The process gets SIGTERM when the actor ends, however it ends.
DIE_WITH_ACTOR = ("setpriv", "--pdeathsig", "TERM")
LOOK_EVERY_S = 2.0
# An actor that does not answer for so long is being started again.
ANSWER_S = 5.0


@ray.remote(max_restarts=-1, max_task_retries=-1)
class RewardServer:
    """Supervises one server; when either ends, Ray starts both again.

    Args:
        arguments: of `reward-server serve`.
        keys: the server's file of keys.
        start_s: how long loading and self-tests may take.

    Raises:
        RuntimeError: the server ended, or was not ready in time.
    """

    def __init__(self, arguments: Sequence[str], keys: str, start_s: float) -> None:
        self._host = ray.util.get_node_ip_address()
        self._folder = tempfile.TemporaryDirectory(prefix="reward-")
        self._ports_file = Path(self._folder.name) / "ports.json"
        command = [*DIE_WITH_ACTOR, sys.executable, "-m", "reward_server", "serve", *arguments]
        command += ["--port-file", str(self._ports_file)]
        command += ["--grpc", f"{self._host}:0", "--http", f"{self._host}:0"]
        self._process = subprocess.Popen(
            command,
            env=os.environ | {"REWARD_SERVER__SERVER__KEYS_FILE": keys},
        )
        deadline = time.monotonic() + start_s
        while not self._ready():
            if self._process.poll() is not None:
                raise RuntimeError(f"the reward server ended with {self._process.returncode}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"the rewards were not ready after {start_s:g} s")
            time.sleep(0.2)

    def _ready(self) -> bool:
        """Whether every scorer has passed its self-test."""
        if not self._ports_file.exists() or not (text := self._ports_file.read_text()):
            return False
        self._ports = json.loads(text)
        url = f"http://{self._host}:{self._ports['http']}/readyz"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return True
        return False

    def url(self) -> str:
        """The address of the server; the actor leaves with a server that has ended."""
        if self._process.poll() is not None:
            os._exit(1)
        return f"grpc://{self._host}:{self._ports['grpc']}"

    def stop(self) -> int:
        """Let the server finish what is in flight; its exit code."""
        self._process.terminate()
        return self._process.wait()


def make_key(folder: Path) -> Path:
    """Make the key of the folder once; return the file with its hash.

    Raises:
        SystemExit: others can read the key.
    """
    keys, key = folder / "keys.toml", folder / "key"
    if not key.exists():
        make = [sys.executable, "-m", "reward_server", "keys", "create", "ray", "--file", str(keys)]
        made = subprocess.run(make, check=True, capture_output=True, text=True).stdout
        key.touch(mode=0o600)
        key.write_text(made, encoding="utf-8")
    if key.stat().st_mode & 0o077:
        sys.exit(f"error: {key} can be read by others: chmod 600 it")
    return keys


def publish(folder: Path, urls: Sequence[str]) -> None:
    """Write `urls` at once: readers see the old or the new addresses."""
    new = folder / ".urls.new"
    new.write_text("".join(f"{url}\n" for url in urls), encoding="utf-8")
    new.replace(folder / "urls")


def watch(actors: Sequence[ray.actor.ActorHandle], folder: Path, asked: Sequence[int]) -> None:
    """Keep `urls` true until asked to stop.

    Raises:
        ray.exceptions.RayError: a server cannot be started at all.
    """
    published: list[str] | None = None
    answers = [actor.url.remote() for actor in actors]
    while not asked:
        ready, _ = ray.wait(answers, num_returns=len(answers), timeout=ANSWER_S)
        urls = sorted(ray.get([answer for answer in answers if answer in ready]))
        if urls != published:
            publish(folder, urls)
            print(f"{len(urls)} of {len(actors)} servers: {' '.join(urls)}", flush=True)
            published = urls
        # The call to an actor that is being started again is answered after that.
        answers = [
            actor.url.remote() if answer in ready else answer
            for actor, answer in zip(actors, answers, strict=True)
        ]
        time.sleep(LOOK_EVERY_S)


def main() -> int:
    """Start the servers, publish their addresses, and stop them on SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        usage="%(prog)s [options] FOLDER -- [arguments of reward-server serve]",
    )
    parser.add_argument("folder", type=Path, help="shared by all nodes and trainers")
    parser.add_argument("--servers", type=int, default=1)
    parser.add_argument("--cpus", type=float, default=1, help="per server")
    parser.add_argument("--gpus", type=float, default=0, help="per server")
    parser.add_argument("--start-s", type=float, default=1800, help="for weights and self-tests")
    # After options argparse does not fill a positional with what follows `--`.
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    options, serve = parser.parse_args(words[:cut]), words[cut + 1 :]
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    keys = make_key(folder)
    asked: list[int] = []
    ray.init(logging_level="warning", _node_ip_address=os.environ.get("RAY_NODE_IP"))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, frame: asked.append(got))
    server = RewardServer.options(
        num_cpus=options.cpus, num_gpus=options.gpus, scheduling_strategy="SPREAD"
    )
    actors = [server.remote(serve, str(keys), options.start_s) for _ in range(options.servers)]
    try:
        watch(actors, folder, asked)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        print(f"error: {str(cause).strip().splitlines()[-1]}", file=sys.stderr)
        return 1
    finally:
        publish(folder, [])
        for stopped in [actor.stop.remote() for actor in actors]:
            with contextlib.suppress(ray.exceptions.RayError):
                ray.get(stopped, timeout=60)
    return 0


if __name__ == "__main__":
    sys.exit(main())
