"""A real server in a process of its own, for tests."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reward_client import Image, Item, RewardClient
from tests.forking import Forked, fork_server

ROOT = Path(__file__).parents[2]
BAD = "tests.scorers_bad.bad"
HEADER = '[server]\nhttp = "127.0.0.1:0"\ngrpc = "127.0.0.1:0"\nlog_format = "json"\n'
JOBS = "tests.server.server_jobs"
START_TIMEOUT_S = 90.0


@dataclass
class Server:
    process: subprocess.Popen[bytes] | Forked
    log_file: Path
    ports: dict[str, int]

    @property
    def grpc_url(self) -> str:
        return f"grpc://127.0.0.1:{self.ports['grpc']}"

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['http']}"

    def client(self, **options: Any) -> RewardClient:
        return RewardClient(self.grpc_url, **options)

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.http_url + path, timeout=30) as response:
            return response.read().decode()

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of a metric that carry the labels."""
        total = 0.0
        for line in self.get("/metrics").splitlines():
            match = re.fullmatch(rf"{name}(?:{{(.*)}})? (\S+)", line)
            if match and all(f'{k}="{v}"' in (match[1] or "") for k, v in labels.items()):
                total += float(match[2])
        return total

    def log(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log_file.read_text().splitlines() if line]

    def worker_pids(self) -> list[int]:
        """Of all workers ever started."""
        return [event["pid"] for event in self.log() if event["event"] == "worker started"]

    def stop(self, timeout_s: float = 30.0) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@contextmanager
def running(
    folder: Path,
    toml: str,
    *,
    wait_for: tuple[str, ...] = (),
    cwd: Path = ROOT,
    start_timeout_s: float = START_TIMEOUT_S,
) -> Iterator[Server]:
    """Serve a config; the scorers in `wait_for` are ready when the block begins."""
    config, ports, log = folder / "config.toml", folder / "ports.json", folder / "log.jsonl"
    config.write_text((HEADER if "[server]" not in toml else "") + toml)
    log.unlink(missing_ok=True)
    command = ["serve", "--config", str(config), "--port-file", str(ports)]
    process = fork_server(JOBS).start("command_line", command, stdout=log, cwd=cwd)
    server = Server(process, log, {})
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ports.exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        server.ports = json.loads(ports.read_text())
        if wait_for:
            with server.client() as client:
                client.wait_ready(wait_for, start_timeout_s)
        yield server
    finally:
        server.stop()


def eventually(condition: Any, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true"
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def run_python(
    server: Server, *arguments: str, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """What python prints for a user's program, which knows nothing but the server's address."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "REWARD_URL": server.grpc_url},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def run_cli(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """`reward-server` with arguments."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = fork_server(JOBS).start(
            "command_line",
            arguments,
            stdout=out,
            stderr=err,
            cwd=cwd,
            env={**os.environ, **env},
        )
        try:
            code = process.wait(90)
        finally:
            process.kill()
        return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())


def grey(value: int, width: int = 8, height: int = 8) -> Image:
    return Image.from_array(np.full((height, width, 3), value, np.uint8))


def items(prompts: list[str], *, first: int = 10) -> list[Item]:
    """Item i is grey of value first + i, so that its mean tells which one was scored."""
    return [Item(f"i{i}", prompt, (grey(first + i),)) for i, prompt in enumerate(prompts)]
