"""Processes for tests, forked from one that has imported what they run.

Importing takes most of a short process's time: one second for a reward server, six for the
trainer. A fork server imports once (`serve`, in a module of its own) and forks a child for every
job; requests and answers are JSON lines on its stdin and stdout.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
Jobs = Mapping[str, Callable[..., int]]


class Forked:
    """A running job, with the methods of `subprocess.Popen`."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server, self.pid = server, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for the signal that killed it; None while it runs."""
        if self.returncode is None:
            self.returncode = self._server.ask({"wait": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once there is one."""
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        """Nothing if it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """Starts jobs of a module that calls `serve`; all end with it."""

    def __init__(self, module: str) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, request: dict[str, Any]) -> Any:
        """Send a request; the answer to it."""
        assert self._process.stdin
        assert self._process.stdout
        with self._lock:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

    def start(
        self,
        job: str,
        *arguments: Any,
        stdout: Path,
        stderr: Path | None = None,
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
    ) -> Forked:
        """Fork a job.

        Args:
            job: its name in the module's jobs.
            arguments: what it is called with; JSON.
            stdout: file to append its output to.
            stderr: likewise; None for the same file.
            cwd: its working directory, also the first place of `sys.path`.
            env: its whole environment; None for that of this process.
        """
        request = {"job": job, "arguments": arguments, "cwd": str(cwd)}
        request |= {"stdout": str(stdout), "stderr": str(stderr or stdout)}
        return Forked(self, self.ask({**request, "env": dict(os.environ if env is None else env)}))

    def close(self) -> None:
        """End the server and all jobs that still run."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(10)


_servers: dict[str, ForkServer] = {}
_starting = threading.Lock()


def fork_server(module: str) -> ForkServer:
    """The fork server of a module; one in each process of pytest."""
    with _starting:
        if module not in _servers:
            _servers[module] = ForkServer(module)
            atexit.register(_servers[module].close)
        return _servers[module]


def serve(jobs: Jobs) -> None:
    """Fork jobs until the other end goes away.

    The imported objects are left out of garbage collections, which would copy their pages in every
    forked process.
    """
    gc.collect()
    gc.freeze()
    running: set[int] = set()
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            pid, status = os.waitpid(request["wait"], os.WNOHANG)
            running.discard(pid)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if answer == 0:
                answers.close()
                _run(jobs, **request)
            running.add(answer)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    for pid in running:
        os.kill(pid, signal.SIGKILL)


def _run(
    jobs: Jobs,
    job: str,
    arguments: list[Any],
    cwd: str,
    stdout: str,
    stderr: str,
    env: dict[str, str],
) -> None:
    """Become a process of its own that runs a job, and exit."""
    code = 1
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for place, name in ((1, stdout), (2, stderr)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), place)
        os.chdir(cwd)
        sys.path[0] = cwd
        os.environ.clear()
        os.environ.update(env)
        code = jobs[job](*arguments)
        # As at the end of any program; a thread that does not end is noticed.
        threading._shutdown()  # type: ignore[attr-defined]
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def exit_code(main: Callable[[], object], *argv: str) -> int:
    """Run the function of a command with these arguments; its exit code."""
    sys.argv = list(argv)
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0
