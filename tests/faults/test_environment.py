"""The machine misbehaves: no space for logs, and a wall clock that jumps."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from server_process import BAD, HEADER, ROOT, Server, eventually, items
from unharmed import unharmed, within

from reward_client import DeadlineExceeded
from reward_server.observability.logs import LogSink

TOML = f"""{HEADER}
[scorers.mean]
scorer = "{BAD}:Obedient"
[scorers.slow]
scorer = "{BAD}:Mean"
options = {{ sleep_s = 0.5 }}
"""


def start(folder: Path, log: Path, **env: str) -> Server:
    """A server whose log goes to any file, a device included."""
    (folder / "config.toml").write_text(TOML)
    ports = folder / "ports.json"
    command = [sys.executable, "-m", "reward_server", "serve"]
    command += ["--config", str(folder / "config.toml"), "--port-file", str(ports)]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=sink, stderr=sink, env={**os.environ, **env}
        )
    server = Server(process, log, {})
    eventually(ports.exists, 60)
    server.ports = json.loads(ports.read_text())
    with server.client() as client:
        client.wait_ready((), 60)
    return server


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_behind_the_log_stops_nothing(tmp_path: Path) -> None:
    server = start(tmp_path, Path("/dev/full"))  # every write fails with ENOSPC
    try:
        with unharmed(server, scorers=["mean"]) as watched, server.client(attempts=1) as client:
            for prompts in (["ok"] * 4, ["ok", "raise"], ["ok", "crash"]):
                sent = items(prompts)
                watched.answered(sent, client.score(sent, ["mean"]))
    finally:
        assert server.stop() == 0


def test_lost_log_lines_are_counted_and_lines_stay_whole(tmp_path: Path) -> None:
    full, good = (
        os.open("/dev/full", os.O_WRONLY),
        os.open(tmp_path / "log", os.O_CREAT | os.O_RDWR),
    )
    target = os.dup(full)
    sink = LogSink(target)
    for number in range(3):
        print(f"line {number}", file=sink, flush=True)  # type: ignore[arg-type]
    os.dup2(good, target)  # somebody made room
    print("line 3", file=sink, flush=True)  # type: ignore[arg-type]
    print("line 4", file=sink, flush=True)  # type: ignore[arg-type]
    assert (tmp_path / "log").read_text().splitlines() == [
        '{"event": "log lines lost", "lines": 3}',
        "line 3",
        "line 4",
    ]
    for fd in (full, good, target):
        os.close(fd)


JUMPING_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
/* The wall clock, moved by as many seconds as the file named by JUMP says. */
static long jump(void) {
    const char *path = getenv("JUMP");
    FILE *file = path ? fopen(path, "r") : NULL;
    long seconds = 0;
    if (file) { if (fscanf(file, "%ld", &seconds) != 1) seconds = 0; fclose(file); }
    return seconds;
}
int clock_gettime(clockid_t id, struct timespec *ts) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(id, ts);
    if (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) ts->tv_sec += jump();
    return result;
}
int gettimeofday(struct timeval *tv, void *tz) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
    int result = real(tv, tz);
    tv->tv_sec += jump();
    return result;
}
time_t time(time_t *out) {
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    if (out) *out = ts.tv_sec;
    return ts.tv_sec;
}
"""


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler for the moving clock")
def test_a_clock_that_jumps_moves_no_deadline(tmp_path: Path) -> None:
    """The wall clock of server and workers jumps by a year, both ways, with work in flight."""
    source, library, jump = tmp_path / "jump.c", tmp_path / "jump.so", tmp_path / "jump"
    source.write_text(JUMPING_CLOCK)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True
    )
    jump.write_text("0")
    server = start(tmp_path, tmp_path / "log", LD_PRELOAD=str(library), JUMP=str(jump))
    year_s = 366 * 24 * 3600
    try:
        with unharmed(server, scorers=["mean", "slow"]) as watched:
            for seconds in (year_s, -year_s, 0):
                with server.client(attempts=1) as client:
                    sent = items(["ok"] * 64)
                    with ThreadPoolExecutor(1) as pool:
                        waiting = pool.submit(client.score, sent, ["slow"], deadline_s=30)
                        # More than what else is sent here: gRPC itself reads the wall clock when
                        # a call arrives, so this one has to be in.
                        eventually(lambda: server.metric("reward_queue_items") > 20)
                        temporary = tmp_path / "next"
                        temporary.write_text(str(seconds))
                        temporary.replace(jump)
                        # Neither expired nor hung: nobody looks at the wall clock.
                        response = watched.answered(sent, waiting.result(30))
                        assert response.results["slow"].errors == {}
                    with within(10), pytest.raises(DeadlineExceeded):
                        client.score(items(["ok"] * 64), ["slow"], deadline_s=0.5)
        last = server.log()[-1]["timestamp"]
        assert last[:4] == time.strftime("%Y")
        assert server.metric("reward_worker_restarts_total") == 0
    finally:
        assert server.stop() == 0


# Who may ask for the time of day, and why it does not matter when that jumps.
WALL_CLOCK = {
    "reward_client/_retry_after.py": "Retry-After may be a date; who waits bounds it",
    "reward_server/security/tls.py": "certificates expire by the wall clock",
    "reward_server/observability/spans.py": "collectors want wall-clock times",
}


def test_only_the_monotonic_clock_decides_anything() -> None:
    found = []
    for package in ("reward_server", "reward_client"):
        for file in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
                if name.split(".")[-2:] in (["time", "time"], ["time", "time_ns"]) or name.endswith(
                    ("datetime.now", "datetime.utcnow", "date.today")
                ):
                    found.append(str(file.relative_to(ROOT)))
    assert not set(found) - set(WALL_CLOCK), "use time.monotonic(), or say why not"
