"""What the service costs around a scorer: speed, replicas, time in the queue, memory.

Run: OMP_NUM_THREADS=1 python -m benchmarks.overhead [--parts speed queue ...] [--json FILE]

The scorer sleeps, as a process does whose GPU is computing, so that client and server have the
cores. Four questions: how much of the scorer's own speed is left behind the service, whether N
replicas are N times as fast, how long items wait below saturation, and whether memory grows with
the number of requests.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.wire.null_scorer import SleepingScorer
from benchmarks.wire.samples import save
from benchmarks.wire.servers import Server, reward_server
from reward_client import AsyncRewardClient
from reward_server.scorers.base import ScoreInput

BATCH_S = 0.02
BATCH = 8
REPLICAS = (1, 2, 4)
ARRIVALS_PER_S = (5, 10, 20)  # requests of 9 raw pictures of 512 px
MAX_WAIT_MS = 5.0  # the server's default


def main() -> None:
    """Run the parts and write what they found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seconds", type=float, default=4.0, help="per measurement of speed")
    parser.add_argument("--rounds", type=int, default=5, help="of the measurements of speed")
    parser.add_argument("--requests", type=int, default=100_000, help="of the part `memory`")
    parser.add_argument("--json", type=Path, help="write the results here")
    options = parser.parse_args()
    found = {part: PARTS[part](options) for part in options.parts}
    if options.json:
        save(options.json, found)


def speed(options: argparse.Namespace) -> dict[str, list[float]]:
    """Images per second of the scorer alone, and behind the service, of pictures of 512 px."""
    arrays = [np.full((512, 512, 3), k, np.uint8) for k in range(BATCH)]
    alone: list[float] = []
    behind: list[float] = []
    with serving(replicas=1) as server:
        for _ in range(options.rounds):
            alone.append(in_process(arrays, options.seconds))
            behind.append(through(server, arrays, clients=3, seconds=options.seconds))
            print(
                f"alone {alone[-1]:.1f}, behind the service {behind[-1]:.1f} images/s", flush=True
            )
    return {"alone": alone, "behind": behind}


def replicas(options: argparse.Namespace) -> dict[str, list[float]]:
    """Images per second by the number of replicas, of pictures of 64 px."""
    arrays = [np.full((64, 64, 3), k, np.uint8) for k in range(BATCH)]
    found: dict[str, list[float]] = {}
    for count in REPLICAS:
        with serving(count) as server:
            found[str(count)] = [
                through(server, arrays, clients=3 * count, seconds=options.seconds)
                for _ in range(options.rounds)
            ]
        print(f"{count} replicas: {statistics.median(found[str(count)]):.1f} images/s", flush=True)
    return found


def queue(options: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds in the queue beyond `max_wait`, p99 of requests that arrive at random times."""
    arrays = [np.full((512, 512, 3), k, np.uint8) for k in range(9)]
    found: dict[str, list[float]] = {}
    with serving(replicas=1, seconds=0.0) as server:
        for rate in ARRIVALS_PER_S:
            waits = [
                asyncio.run(open_loop(server, arrays, rate, 2 * options.seconds, seed))
                for seed in range(options.rounds)
            ]
            found[str(rate * len(arrays))] = [
                sorted(one)[int(0.99 * len(one))] - MAX_WAIT_MS for one in waits
            ]
            print(f"{rate} requests/s: {found[str(rate * len(arrays))]} ms", flush=True)
    return found


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Memory of the server's own process over many requests, and its slope past the first tenth."""
    arrays = [np.full((64, 64, 3), 7, np.uint8)]
    points: list[tuple[int, int]] = []
    with serving(replicas=1, seconds=0.0) as server:
        process = psutil.Process(server.pid)
        asyncio.run(requests(server, arrays, options.requests, process, points))
    slope, error = slope_of([point for point in points if point[0] >= options.requests / 10])
    print(
        f"{slope:.0f} ±{error:.0f} bytes per 1000 requests; {points[-1][1] / 1e6:.0f} MB at the end"
    )
    return {"points": points, "bytes_per_1000_requests": slope, "standard_error": error}


PARTS = {"speed": speed, "replicas": replicas, "queue": queue, "memory": memory}


@contextmanager
def serving(replicas: int, seconds: float = BATCH_S) -> Iterator[Server]:
    """A server with one scorer of so many replicas."""
    scorer = (
        'scorer = "benchmarks.wire.null_scorer:SleepingScorer"\n'
        f"options = {{ seconds = {seconds} }}\nmax_batch_items = {BATCH}\nreplicas = {replicas}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        server = Server(*reward_server(Path(folder) / "server", scorer))
        try:
            yield server
        finally:
            server.stop()


def in_process(arrays: Sequence[np.ndarray], seconds: float) -> float:
    """Images per second of the scorer called by itself."""
    scorer = SleepingScorer(BATCH_S)
    batch = [ScoreInput("", (array,)) for array in arrays]
    begin_s, done = time.perf_counter(), 0
    while (now_s := time.perf_counter()) - begin_s < seconds:
        done += len(scorer.score(batch, details=False))
    return done / (now_s - begin_s)


def through(server: Server, arrays: list[np.ndarray], *, clients: int, seconds: float) -> float:
    """Images per second of closed loops of `client.score`."""

    async def run() -> float:
        async with AsyncRewardClient(f"grpc://127.0.0.1:{server.ports['grpc']}") as client:
            await client.wait_ready(["null"])
            done = 0

            async def loop() -> None:
                nonlocal done
                while time.perf_counter() < end_s:
                    await client.score(arrays, scorers=["null"])
                    done += len(arrays)

            begin_s = time.perf_counter()
            end_s = begin_s + seconds
            await asyncio.gather(*(loop() for _ in range(clients)))
            return done / (time.perf_counter() - begin_s)

    return asyncio.run(run())


async def open_loop(
    server: Server, arrays: list[np.ndarray], rate: float, seconds: float, seed: int
) -> list[float]:
    """Milliseconds that requests of raw pictures spent in the queue; they wait for no other."""
    random = np.random.default_rng(seed)
    waits: list[float] = []
    url = f"grpc://127.0.0.1:{server.ports['grpc']}"
    async with AsyncRewardClient(url, shared_memory=False) as client:
        await client.wait_ready(["null"])

        async def send() -> None:
            waits.append((await client.score(arrays, scorers=["null"])).results["null"].queue_ms)

        tasks = []
        for pause_s in random.exponential(1 / rate, round(rate * seconds)):
            await asyncio.sleep(pause_s)
            tasks.append(asyncio.ensure_future(send()))
        await asyncio.gather(*tasks)
    return waits


async def requests(
    server: Server,
    arrays: list[np.ndarray],
    count: int,
    process: psutil.Process,
    points: list[tuple[int, int]],
) -> None:
    """Send so many requests from 16 loops; add (requests so far, resident bytes) to `points`."""
    async with AsyncRewardClient(f"grpc://127.0.0.1:{server.ports['grpc']}") as client:
        await client.wait_ready(["null"])
        sent = 0

        async def loop() -> None:
            nonlocal sent
            while sent < count:
                sent += 1
                if sent % (count // 100) == 0:
                    points.append((sent, process.memory_info().rss))
                await client.score(arrays, scorers=["null"])

        await asyncio.gather(*(loop() for _ in range(16)))


def slope_of(points: Sequence[tuple[int, int]]) -> tuple[float, float]:
    """Least-squares slope in bytes per 1000 requests, and its standard error."""
    x, y = np.array(points, float).T
    (slope, _), covariance = np.polyfit(x / 1000, y, 1, cov=True)
    return float(slope), float(covariance[0, 0] ** 0.5)


if __name__ == "__main__":
    main()
