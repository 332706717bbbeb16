"""The servers that `benchmarks.serving` compares, each in processes of its own on loopback."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.request import urlopen

import psutil

CONFIG = """
[server]
http = "127.0.0.1:0"
grpc = "127.0.0.1:0"
log_level = "error"
max_queue_items = 4096
[scorers.null]
"""
SCORER = 'scorer = "benchmarks.wire.null_scorer:NullScorer"\nmax_batch_items = 64\n'
_START_TIMEOUT_S = 60.0


class Server:
    """A server with its children."""

    def __init__(self, command: list[str], ports: Callable[[], dict[str, int] | None]) -> None:
        """Start it and wait until it says its ports; raises SystemExit if it does not."""
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        end_s = time.monotonic() + _START_TIMEOUT_S
        while (found := ports()) is None:
            if self._process.poll() is not None or time.monotonic() > end_s:
                raise SystemExit(f"did not start: {' '.join(command)}")
            time.sleep(0.05)
        self.ports = found

    @property
    def pid(self) -> int:
        """Of its first process."""
        return self._process.pid

    def cpu_s(self) -> float:
        """CPU seconds used so far by it and its children."""
        root = psutil.Process(self._process.pid)
        times = [p.cpu_times() for p in (root, *root.children(recursive=True))]
        return sum(t.user + t.system for t in times)

    def stop(self) -> None:
        """End it and wait."""
        self._process.terminate()
        self._process.wait()


@contextmanager
def running(folder: Path) -> Iterator[dict[str, Server]]:
    """The servers "peer", "echo", "ours", and "gateway" before ours."""
    with ExitStack() as stack:

        def start(name: str, command: list[str], ports: Callable[[], dict[str, int] | None]):
            servers[name] = Server(command, ports)
            stack.callback(servers[name].stop)

        servers: dict[str, Server] = {}
        port = _free_port()
        gunicorn = ["-m", "gunicorn", "--workers", "2", "--bind", f"127.0.0.1:{port}"]
        peer = [sys.executable, *gunicorn, "--log-level", "error", "benchmarks.wire.peer:app"]
        start("peer", peer, lambda: {"http": port} if _listens(port) else None)
        file = folder / "echo"
        echo = [sys.executable, "-m", "benchmarks.wire.echo", str(file)]
        start("echo", echo, lambda: {"grpc": int(file.read_text())} if _has_text(file) else None)
        start("ours", *reward_server(folder / "ours", SCORER))
        upstream = f'upstream = "127.0.0.1:{servers["ours"].ports["grpc"]}"\n'
        start("gateway", *reward_server(folder / "gateway", upstream))
        yield servers


def batches_and_items(server: Server) -> tuple[float, float]:
    """Batches and items that its scorer has run so far."""
    with urlopen(f"http://127.0.0.1:{server.ports['http']}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    name = "reward_batch_items"
    batches, items = (
        sum(float(line.split()[-1]) for line in lines if line.startswith(f"{name}_{kind}"))
        for kind in ("count", "sum")
    )
    return batches, items


def reward_server(folder: Path, scorer: str) -> tuple[list[str], Callable[[], dict | None]]:
    """The command of a server with one scorer "null", and what reads its ports."""
    folder.mkdir()
    config, ports = folder / "config.toml", folder / "ports.json"
    config.write_text(CONFIG + scorer)
    command = [sys.executable, "-m", "reward_server", "serve"]
    command += ["--config", str(config), "--port-file", str(ports)]
    return command, lambda: json.loads(ports.read_text()) if _has_text(ports) else None


def _has_text(file: Path) -> bool:
    return file.exists() and file.stat().st_size > 0


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
