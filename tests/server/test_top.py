"""`reward-server top`: the numbers of a frame, how it is drawn, and the live view on a terminal."""

from __future__ import annotations

import io
import math
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from server_process import BAD, ROOT, eventually, items, run_cli, running

from reward_client import ReplicaInfo, ScorerInfo
from reward_server.observability.metrics import Metrics
from reward_server.top.frames import frame, quantile
from reward_server.top.reading import Snapshot
from reward_server.top.screen import COLUMNS, columns_for, picture

TOML = f"""
[scorers.mean]
scorer = "{BAD}:Mean"
[scorers.broken]
scorer = "{BAD}:FailsSelfTest"
"""


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=60), st.floats(0.01, 0.99))
def test_quantiles_lie_in_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    bounds = [0.01, 0.1, 1.0, 10.0, 1000.0, math.inf]
    found = quantile(share, {b: float(sum(v <= b for v in values)) for b in bounds})
    true = sorted(values)[math.ceil(share * len(values)) - 1]
    upper = next(bound for bound in bounds if true <= bound)
    lower = max((bound for bound in bounds if bound < upper), default=0.0)
    assert found is not None
    assert lower <= found <= upper


def test_no_observations_have_no_quantile() -> None:
    assert quantile(0.5, {}) is None
    assert quantile(0.5, {1.0: 0.0, math.inf: 0.0}) is None


def snapshot(metrics: Metrics, at_s: float, infos: tuple[ScorerInfo, ...]) -> Snapshot:
    samples: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    for family in metrics.registry.collect():
        for sample in family.samples:
            samples.setdefault(sample.name, {})[frozenset(sample.labels.items())] = sample.value
    return Snapshot(at_s, infos, samples)


def info(name: str) -> ScorerInfo:
    replicas = (
        ReplicaInfo("0", "READY", "cpu", 1, 2, 100 << 20),
        ReplicaInfo("1", "STARTING", "cpu", None, 1, None, None, "it died"),
    )
    about = ("1", "f", (), ("raw",), "raw", (0.0, 1.0))
    return ScorerInfo(name, *about, "READY", "", replicas, 3, 1.5)


def test_a_frame_is_the_difference_of_two_moments() -> None:
    metrics = Metrics()
    metrics.items.labels("a", "OK").inc(100)
    old = snapshot(metrics, 10.0, (info("a"),))
    metrics.items.labels("a", "OK").inc(40)
    metrics.items.labels("a", "INTERNAL").inc(10)
    for _ in range(4):
        metrics.batch_fill.labels("a").observe(0.5)
        metrics.total_seconds.labels("a").observe(0.07)
    (row,) = frame(old, snapshot(metrics, 12.0, (info("a"),)), 0.0).rows
    assert (row.items_per_s, row.failed_per_s, row.fill) == (25.0, 5.0, 0.5)
    assert (row.ready, row.replicas, row.restarts) == (1, 2, 3)
    assert (row.rss_bytes, row.gpu_bytes) == (100 << 20, None)
    assert row.p95_s is not None
    assert 0.05 < row.p95_s <= 0.1
    assert row.trouble == "replica 1: it died"


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_narrow_terminals_lose_the_least_dear_columns(width: int) -> None:
    chosen = columns_for(width)
    assert sum(column.width for column in chosen) <= max(width, 35)
    assert {"scorer", "state", "items/s"} <= {column.title for column in chosen}
    assert chosen == [column for column in COLUMNS if column in chosen]
    dropped = [column.rank for column in COLUMNS if column not in chosen]
    assert max((c.rank for c in chosen), default=0) < min(dropped, default=99)
    metrics = Metrics()
    shown = snapshot(metrics, 1.0, (info("a" * 64), info("b")))
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(picture(frame(shown, shown, 0.0), "http://h:1", width, "away"))
    assert all(cell_len(line) <= width for line in console.export_text().splitlines())


def test_one_frame_for_scripts_and_one_line_for_mistakes(tmp_path: Path) -> None:
    with running(tmp_path, TOML, wait_for=("mean",)) as server:
        done = run_cli("top", server.http_url, "--once", "--interval", "0.3")
        assert done.returncode == 0, done.stderr
        assert "mean" in done.stdout
        assert "broken: self-test failed" in done.stdout
        assert "2.0G" in done.stdout
        wrong = run_cli("top", server.grpc_url, "--once")
        assert wrong.returncode == 2
        assert "http://" in wrong.stderr
    gone = run_cli("top", server.http_url, "--once")
    assert gone.returncode == 2
    assert len(gone.stderr.strip().splitlines()) == 1


class Terminal:
    """`top` on a real pseudo-terminal."""

    def __init__(self, url: str) -> None:
        self.master, side = pty.openpty()
        command = [sys.executable, "-m", "reward_server", "top", url, "--interval", "0.2"]
        env = {**os.environ, "TERM": "xterm", "COLUMNS": "110", "LINES": "20"}
        self.process = subprocess.Popen(
            command, stdin=side, stdout=side, stderr=side, env=env, cwd=ROOT, close_fds=True
        )
        os.close(side)
        self.text = ""

    def shows(self, text: str) -> bool:
        while select.select([self.master], [], [], 0.1)[0]:
            if not (more := self._read()):
                break
            self.text += more
        return text in self.text

    def _read(self) -> str:
        try:
            return os.read(self.master, 1 << 16).decode("utf-8", "replace")
        except OSError:  # the other side is closed
            return ""

    def forget(self) -> None:
        self.shows("")
        self.text = ""

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        os.close(self.master)


def test_the_live_view_outlives_its_server_and_ends_with_q(tmp_path: Path) -> None:
    with running(tmp_path, TOML, wait_for=("mean",)) as server:
        terminal = Terminal(server.http_url)
        try:
            eventually(lambda: terminal.shows("READY"))
            with server.client() as client:
                client.score(items(["a"]), ["mean"])
            assert server.stop() == 0
            eventually(lambda: terminal.shows("away for"))
            port = f'[server]\nhttp = "127.0.0.1:{server.ports["http"]}"\ngrpc = "127.0.0.1:0"\n'
            again = tmp_path / "again"
            again.mkdir()
            with running(again, port + 'log_format = "json"\n' + TOML, wait_for=("mean",)):
                time.sleep(0.5)
                terminal.forget()
                eventually(lambda: terminal.shows("READY") and "trying again" not in terminal.text)
                os.write(terminal.master, b"q")
                assert terminal.process.wait(10) == 0
        finally:
            terminal.close()


def test_ctrl_c_ends_the_live_view_without_a_traceback(tmp_path: Path) -> None:
    terminal = Terminal("http://127.0.0.1:9")
    try:
        eventually(lambda: terminal.shows("trying again"))
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.process.wait(10) == 0
        assert not terminal.shows("Traceback")
    finally:
        terminal.close()
