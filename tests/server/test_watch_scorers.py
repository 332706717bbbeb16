"""`reward-server scorers --watch` on a real server: it refreshes, and survives a restart."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

from server_process import BAD, ROOT, running

TOML = f'[scorers.mean]\nscorer = "{BAD}:Mean"\n'


def read_until(fd: int, wanted: bytes, timeout_s: float = 90.0) -> bytes:
    seen, end_s = b"", time.monotonic() + timeout_s
    while wanted not in seen:
        assert time.monotonic() < end_s, seen
        seen += os.read(fd, 4096)
    return seen


def drain(fd: int) -> None:
    """Read until the other end is closed, which Linux reports as an I/O error."""
    with contextlib.suppress(OSError):
        while os.read(fd, 4096):
            pass


def test_watch_redraws_and_reports_a_server_that_is_gone(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with running(tmp_path, TOML, wait_for=("mean",)) as server:
        command = [sys.executable, "-m", "reward_server", "scorers", "--watch"]
        command += ["--url", server.http_url]
        # A shell's background jobs are started with Ctrl-C ignored, and hand that on.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        watching = subprocess.Popen(
            command, stdout=theirs, stderr=theirs, cwd=ROOT, env={**os.environ, "COLUMNS": "150"}
        )
        signal.signal(signal.SIGINT, before)
        os.close(theirs)
        try:
            read_until(ours, b"READY")
            read_until(ours, b"READY")
            server.process.kill()
            read_until(ours, b"cannot")
            watching.send_signal(signal.SIGINT)
            # It redraws on, and a terminal that nobody reads blocks it.
            drain(ours)
            assert watching.wait(20) == 0
        finally:
            watching.kill()
            watching.wait()
            os.close(ours)
