"""`python -m tests.fuzz --runs 1000000`: every target in a process of its own, in parallel."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.harness import INPUT_LIMIT_S, Found, fuzz, watch_for_hangs_in_c

# Beyond this the memory of a target grows with its inputs: 1 KiB per input kept.
MAX_SLOPE_BYTES = 1000 * 64
_C_HANG_S = 60 * INPUT_LIMIT_S


def run_one(name: str, runs: int, seed: int) -> None:
    """Fuzz one target in this process; exit status 1 with a reason if something is found."""
    import logging

    from tests.fuzz.targets import TARGETS

    logging.disable(logging.CRITICAL)
    watch_for_hangs_in_c(max(_C_HANG_S, runs / 50))
    try:
        report = fuzz(name, TARGETS[name], runs, seed=seed)
    except Found as error:
        raise SystemExit(str(error)) from error
    print(report.line(), flush=True)
    if report.rss_slope_bytes > MAX_SLOPE_BYTES:
        raise SystemExit(
            f"{name}: memory grows by {report.rss_slope_bytes:.0f} bytes per 1000 inputs"
        )


def run_all(runs: int, seed: int, jobs: int) -> int:
    """Fuzz all targets with `runs` inputs in total; returns how many found something."""
    from tests.fuzz.targets import TARGETS

    share = -(-runs // len(TARGETS))
    waiting, running, failed = list(TARGETS), {}, 0
    begin_s = time.perf_counter()
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            command = [sys.executable, "-m", "tests.fuzz", "--target", name]
            command += ["--runs", str(share), "--seed", str(seed)]
            running[name] = subprocess.Popen(command, cwd=Path(__file__).parents[2])
        for name, process in list(running.items()):
            if process.poll() is not None:
                failed += process.returncode != 0
                if process.returncode < 0:
                    print(f"{name}: killed by signal {-process.returncode}")
                del running[name]
        time.sleep(0.1)
    seconds = time.perf_counter() - begin_s
    print(f"{share * len(TARGETS):,} inputs in {seconds:.0f} s, {failed} targets with findings")
    return failed


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Feed broken input to every parser.")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs in total")
    parser.add_argument("--target", help="only this one, in this process")
    parser.add_argument("--seed", type=int, default=0, help="the same seed, the same inputs")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    arguments = parser.parse_args()
    if arguments.target:
        run_one(arguments.target, arguments.runs, arguments.seed)
    else:
        raise SystemExit(1 if run_all(arguments.runs, arguments.seed, arguments.jobs) else 0)


if __name__ == "__main__":
    main()
