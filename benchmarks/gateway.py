"""What a gateway costs: the same requests straight to a server and through one hop.

Run: OMP_NUM_THREADS=1 python -m benchmarks.gateway [--scorers 5] [--seconds 8] [--rounds 3]

Starts one server with the scorer of examples/brightness_scorer.py under several names and a gateway
before it, both on this machine, and lets closed loops of one and of several threads send requests
of 8 raw images each, for all names at once. Rounds alternate
between direct and gateway, so that a machine that becomes slower meanwhile does so for both;
printed are medians over the rounds, and the CPU time of the gateway's process per item, which a
busy machine changes least. Scores must be the same.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil

from reward_client import Image, Item, RewardClient

ITEMS = 8
HEAD = '[server]\nhttp = "127.0.0.1:0"\ngrpc = "127.0.0.1:0"\nlog_level = "error"\n'

TABLE = '[scorers.{}]\nscorer = "examples.brightness_scorer:BrightnessScorer"\n'


@dataclass(frozen=True)
class Figures:
    """Of one run: items, items per second, and seconds per request."""

    items: int
    items_per_s: float
    p50_s: float
    p99_s: float


@contextmanager
def serving(folder: Path, toml: str) -> Iterator[tuple[str, psutil.Process]]:
    """A server of its own process; its gRPC address, and the process."""
    folder.mkdir()
    config, ports = folder / "config.toml", folder / "ports.json"
    config.write_text(HEAD + toml)
    command = [sys.executable, "-m", "reward_server", "serve"]
    command += ["--config", str(config), "--port-file", str(ports)]
    process = subprocess.Popen(command)
    try:
        while not ports.exists():
            time.sleep(0.05)
        address = f"127.0.0.1:{json.loads(ports.read_text())['grpc']}"
        with RewardClient(f"grpc://{address}") as client:
            client.wait_ready()
        yield address, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def measured(
    address: str, items: list[Item], names: list[str], threads: int, seconds: float
) -> Figures:
    """Closed loops: every thread sends its next request when the last one is answered."""
    latencies: list[float] = []
    end_s = time.perf_counter() + seconds

    def loop(client: RewardClient) -> None:
        while (begin_s := time.perf_counter()) < end_s:
            client.score(items, names)
            latencies.append(time.perf_counter() - begin_s)

    with RewardClient(f"grpc://{address}") as client:
        client.score(items, names)
        begin_s = time.perf_counter()
        workers = [threading.Thread(target=loop, args=(client,)) for _ in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        spent_s = time.perf_counter() - begin_s
    n = len(latencies) * len(items)
    cuts = statistics.quantiles(latencies, n=100)
    return Figures(n, n / spent_s, cuts[49], cuts[98])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--scorers", type=int, default=1)
    options = parser.parse_args()
    names = [f"brightness{number}" for number in range(options.scorers)]
    noise = np.random.default_rng(0).integers(0, 256, (ITEMS, options.size, options.size, 3))
    items = [Item(str(i), "", (Image.from_array(a.astype(np.uint8)),)) for i, a in enumerate(noise)]
    print(
        f"{os.cpu_count()} CPUs, {ITEMS} raw images of {options.size}x{options.size} px a request,"
        f" {options.scorers} scorers"
    )
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        far, _ = stack.enter_context(
            serving(Path(folder) / "far", "".join(TABLE.format(name) for name in names))
        )
        toml = "".join(f'[scorers.{name}]\nupstream = "{far}"\n' for name in names)
        near, gateway = stack.enter_context(serving(Path(folder) / "near", toml))
        ways = {"direct": far, "gateway": near}
        check_scores(list(ways.values()), items, names)
        for threads in (1, 4):
            runs: dict[str, list[Figures]] = {way: [] for way in ways}
            begin_s = sum(gateway.cpu_times()[:2])
            for _ in range(options.rounds):
                for way, address in ways.items():
                    runs[way].append(measured(address, items, names, threads, options.seconds))
            cpu_s = sum(gateway.cpu_times()[:2]) - begin_s
            for way, figures in runs.items():
                rate = statistics.median(f.items_per_s for f in figures)
                p50 = statistics.median(f.p50_s for f in figures)
                p99 = statistics.median(f.p99_s for f in figures)
                print(
                    f"{threads} threads, {way:8s} {rate:7.1f} items/s"
                    f"   p50 {1e3 * p50:6.1f} ms   p99 {1e3 * p99:6.1f} ms"
                )
            through = sum(f.items for f in runs["gateway"])
            print(
                f"{threads} threads, CPU time of the gateway: {1e3 * cpu_s / through:.2f} ms/item"
            )


def check_scores(addresses: list[str], items: list[Item], names: list[str]) -> None:
    scores = []
    for address in addresses:
        with RewardClient(f"grpc://{address}") as client:
            scores.append(client.score(items, names).results[names[0]].scores)
    if len(set(scores)) != 1:
        raise SystemExit(f"the scores differ: {scores}")


if __name__ == "__main__":
    main()
