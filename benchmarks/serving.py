"""What the wire costs: the public reward servers, a bare echo, and this project, in one run.

Run: OMP_NUM_THREADS=1 python -m benchmarks.serving [--seconds 2] [--rounds 5] [--json FILE]
     OMP_NUM_THREADS=1 python -m benchmarks.serving --smoke

The scorer reads one pixel of each picture of 512 x 512 px; clients, servers and the worker share
the machine. All ways are measured in turn, round after round, so that a machine that becomes slower
meanwhile does so for all; a ratio compares two ways inside of a round, and its noise is what the
rounds differ by. CPU time is what client and servers used for a picture, whatever else ran.

`--smoke` takes less than 90 s and fails where a ratio of CPU times lies below its bound in `BOUNDS`
by more than the noise of the run.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.wire.samples import Sample, noise, ratios, save
from benchmarks.wire.servers import Server, batches_and_items, running
from benchmarks.wire.ways import WAYS, Load

SHAPES = ((32, 9), (64, 1), (1, 64))  # clients, pictures of a request
SIDE_PX = 512
MAX_WAIT_MS = 5.0  # the server's default, which the benchmark leaves as it is
SMOKE = ("peer", "echo", "grpc raw", "grpc jpeg", "shared memory")
# (clients, pictures, way, base): CPU of the base over CPU of the way, at least.
BOUNDS: dict[tuple[int, int, str, str], float] = {
    (32, 9, "grpc raw", "echo"): 0.5,
    (32, 9, "grpc jpeg", "peer"): 1.0,
    (32, 9, "shared memory", "peer"): 1.6,
    (64, 1, "grpc raw", "peer"): 1.1,
    (64, 1, "grpc jpeg", "peer"): 1.1,
    (64, 1, "shared memory", "peer"): 1.7,
    (1, 64, "shared memory", "peer"): 1.6,
}


def main() -> None:
    """Measure, print tables and ratios, check bounds."""
    parser = argparse.ArgumentParser(description="what the wire costs")
    parser.add_argument("--seconds", type=float, default=2.0, help="per measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ways", nargs="*", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--shapes", nargs="*", help="such as 32x9", default=[])
    parser.add_argument("--json", type=Path, help="write all samples here")
    parser.add_argument("--smoke", action="store_true", help="short, and checks the bounds")
    options = parser.parse_args()
    if options.smoke:
        options.seconds, options.rounds, options.ways = 0.6, 5, list(SMOKE)
    shapes = [(c, n) for c, n in SHAPES if not options.shapes or f"{c}x{n}" in options.shapes]
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, {SIDE_PX} x {SIDE_PX} px")
    found: dict[tuple[int, int], dict[str, list[Sample]]] = {}
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as servers:
        for clients, n in shapes:
            load = Load(pictures(n), clients, options.seconds)
            found[clients, n] = {way: [] for way in options.ways}
            for _ in range(options.rounds):
                for way in options.ways:
                    found[clients, n][way].append(measured(way, servers, load))
            report(clients, n, found[clients, n])
    if options.json:
        rows = {
            f"{c}x{n}": {way: [asdict(s) for s in samples] for way, samples in ways.items()}
            for (c, n), ways in found.items()
        }
        save(options.json, rows)
    if options.smoke:
        check(found)


def pictures(count: int) -> list[np.ndarray]:
    """Smooth pictures with a little noise, which compress about as photographs do."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:SIDE_PX, :SIDE_PX] / SIDE_PX
    found = []
    for phase in random.uniform(0, 6, count):
        waves = [np.sin(6 * x + phase), np.cos(9 * y - phase), np.sin(5 * (x + y) + phase)]
        noisy = 128 + 80 * np.stack(waves, -1) + random.normal(0, 3, (SIDE_PX, SIDE_PX, 3))
        found.append(noisy.clip(0, 255).astype(np.uint8))
    return found


def measured(way: str, servers: dict[str, Server], load: Load) -> Sample:
    """Run one way for a while."""
    measure, names = WAYS[way]
    batches, items = batches_and_items(servers["ours"])
    client_s, server_s = time.process_time(), sum(servers[name].cpu_s() for name in names)
    run = measure(servers, load)
    client_s = time.process_time() - client_s
    server_s = sum(servers[name].cpu_s() for name in names) - server_s
    batches_now, items_now = batches_and_items(servers["ours"])
    is_ours = batches_now > batches
    waits = sorted(run.queue_ms)
    return Sample(
        run.images / run.wall_s,
        1e3 * client_s / run.images,
        1e3 * server_s / run.images,
        (items_now - items) / (batches_now - batches) if is_ours else None,
        waits[int(0.99 * len(waits))] - MAX_WAIT_MS if waits else None,
    )


def report(clients: int, n: int, ways: dict[str, list[Sample]]) -> None:
    """Print medians, and ratios to the peer and to the echo with their quartiles."""
    print(f"\n{clients} clients x {n} pictures")
    bases = [base for base in ("peer", "echo") if base in ways]
    heads = "".join(f"{f'rate / {b}':>20}{f'CPU {b} / way':>20}" for b in bases)
    print(f"{'way':12}{'images/s':>9}{'client ms':>11}{'server ms':>11}{'batch':>7}{heads}")
    for way, samples in ways.items():
        rate, client, server = (
            statistics.median(getattr(s, name) for s in samples)
            for name in ("images_per_s", "client_ms", "server_ms")
        )
        batch = statistics.median(s.mean_batch or 0 for s in samples)
        cells = ""
        for base in bases:
            for cpu in (False, True):
                cells += f"{_told(ratios(samples, ways[base], cpu=cpu)):>20}"
        waits = [s.p99_over_wait_ms for s in samples if s.p99_over_wait_ms is not None]
        tail = f"   p99 of queue over max_wait {statistics.median(waits):.1f} ms" if waits else ""
        shown = f"{batch:.1f}" if batch else ""
        print(f"{way:12}{rate:9.0f}{client:11.2f}{server:11.2f}{shown:>7}{cells}{tail}", flush=True)


def check(found: dict[tuple[int, int], dict[str, list[Sample]]]) -> None:
    """Raise SystemExit where a ratio lies below its bound by more than the noise."""
    failed = []
    print()
    for (clients, n, way, base), bound in BOUNDS.items():
        ways = found[clients, n]
        values = ratios(ways[way], ways[base], cpu=True)
        verdict = "ok" if statistics.median(values) + noise(values) >= bound else "TOO LOW"
        line = f"{clients}x{n}: CPU of {base} / {way} = {_told(values)}, bound {bound}: {verdict}"
        print(line)
        failed += [line] if verdict != "ok" else []
    if failed:
        raise SystemExit(f"{len(failed)} of {len(BOUNDS)} ratios lie below their bounds")


def _told(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ±{noise(values):.2f}"


if __name__ == "__main__":
    main()
