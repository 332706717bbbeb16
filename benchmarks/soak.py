"""A server under steady load while faults are injected: what its callers notice of them.

Run: python -m benchmarks.soak [--minutes 10] [--rate 8] [--fault-every 20]   (or: make soak)

Requests are sent at a constant rate whether or not the server keeps up (open loop), and latency is
counted from the moment a request was due, so that a stall is seen by all requests that were due
meanwhile. They mix sizes, numbers of items, scorers, priorities, gRPC and HTTP. Every score is
compared with the one that the scorer gives in this process. In turn a worker is killed, a worker is
stopped (SIGSTOP: a real hang), a burst arrives, callers hang up, and the config is changed and
reloaded with SIGHUP.

Exit status 1 if an item was lost (no score in the end, the client's retries included), a score was
wrong, or the server's own memory grew by more than `--max-growth-mb` over the second half.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from reward_client import AsyncRewardClient, Image, Item, Priority, RewardError
from reward_client._wire.convert import request_to_proto
from reward_client.images import UInt8Image
from reward_client.types import ScoreRequest, ScorerSelector
from reward_server.scorers import load_scorer_class
from reward_server.scorers.base import ItemScore, ScoreInput

ROOT = Path(__file__).parents[1]
SCORERS = {"brightness": "examples.brightness_scorer:BrightnessScorer", "jpeg": "jpeg"}
SIZES_PX = (64, 128, 256, 512)
TIMEOUT_S = 2.0  # after which a stopped worker counts as hung
DEADLINE_S = 60.0


@dataclass(frozen=True)
class Known:
    """A picture and what each scorer says about it."""

    image: Image
    scores: dict[str, float]


@dataclass
class Tally:
    """What came of the requests."""

    latencies_s: list[float] = field(default_factory=list)
    items: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    memory_mb: list[tuple[float, float, float]] = field(default_factory=list)


def known_pictures() -> list[Known]:
    """Pictures of all sizes with their right scores, computed here."""
    draws = np.random.default_rng(0)
    scorers = {name: load_scorer_class(path)() for name, path in SCORERS.items()}
    for scorer in scorers.values():
        scorer.load("cpu")
    found = []
    for size in SIZES_PX * 3:
        array: UInt8Image = draws.integers(0, 256, (size, size, 3), np.uint8) // 16 * 16
        given = ScoreInput("", (array,))
        scores = {}
        for name, scorer in scorers.items():
            (outcome,) = scorer.score([given], details=False)
            assert isinstance(outcome, ItemScore)
            scores[name] = outcome.raw
        found.append(Known(Image.from_array(array), scores))
    return found


def config(batch_items: int) -> str:
    """The server's config; another `batch_items` replaces both scorers on reload."""
    tables = "".join(
        f'[scorers.{name}]\nscorer = "{path}"\nreplicas = {2 if name == "jpeg" else 1}\n'
        f"max_batch_items = {batch_items}\ntimeout_s = {TIMEOUT_S}\n"
        for name, path in SCORERS.items()
    )
    return f'[server]\nhttp = "127.0.0.1:0"\ngrpc = "127.0.0.1:0"\nlog_format = "json"\n{tables}'


class Server:
    """The server under test, in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.config, self.log = folder / "config.toml", folder / "log.jsonl"
        self.config.write_text(config(16))
        ports = folder / "ports.json"
        command = [sys.executable, "-m", "reward_server", "serve", "--config", str(self.config)]
        with self.log.open("wb") as sink:
            self.process = subprocess.Popen(
                [*command, "--port-file", str(ports)], cwd=ROOT, stdout=sink, stderr=sink
            )
        while not ports.exists():
            if self.process.poll() is not None:
                sys.exit(self.log.read_text())
            time.sleep(0.1)
        self.ports = json.loads(ports.read_text())

    def urls(self) -> list[str]:
        """Of both APIs."""
        return [f"grpc://127.0.0.1:{self.ports['grpc']}", f"http://127.0.0.1:{self.ports['http']}"]

    def workers(self) -> list[int]:
        """Process ids of the workers that are alive."""
        events = [json.loads(line) for line in self.log.read_text().splitlines() if line]
        pids = [event["pid"] for event in events if event.get("event") == "worker started"]
        return [pid for pid in pids if Path(f"/proc/{pid}/statm").exists()]

    def memory_mb(self) -> tuple[float, float]:
        """Memory of the server process: its own, and the arenas that it shares with its workers."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        sizes = dict(line.split(":", 1) for line in lines)
        own, shared = (int(sizes[key].split()[0]) / 1e3 for key in ("RssAnon", "RssShmem"))
        return own, shared


class Load:
    """Requests from several clients, and what became of them."""

    def __init__(self, server: Server, pictures: list[Known], tally: Tally) -> None:
        self._clients = [AsyncRewardClient(url, timeout_s=DEADLINE_S) for url in server.urls()]
        self._pictures = pictures
        self._tally = tally
        self._random = random.Random(0)
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, due_s: float) -> None:
        """Send one request that was due at a point of the monotonic clock."""
        task = asyncio.create_task(self._one(due_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self) -> None:
        """Wait for all answers."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))
        for client in self._clients:
            await client.close()

    async def _one(self, due_s: float) -> None:
        draw, tally = self._random, self._tally
        chosen = [draw.choice(self._pictures) for _ in range(draw.randint(1, 6))]
        names = draw.choice([["jpeg"], ["brightness"], ["jpeg", "brightness"]])
        items = [Item(f"{index}", "", (known.image,)) for index, known in enumerate(chosen)]
        tally.items += len(items) * len(names)
        try:
            response = await draw.choice(self._clients).score(
                items, names, priority=draw.choice(list(Priority))
            )
        except RewardError as error:
            tally.lost[f"{error.code.value}: {error.message}"] += len(items) * len(names)
            return
        tally.latencies_s.append(time.monotonic() - due_s)
        for name in names:
            result = response.results[name]
            for index, known in enumerate(chosen):
                if index in result.errors:
                    tally.lost[f"{name}: {result.errors[index].message}"] += 1
                elif result.raw[index] != known.scores[name]:
                    tally.wrong.append(f"{name}: {result.raw[index]}, not {known.scores[name]}")


class Faults:
    """One fault after the other, in turn."""

    def __init__(self, server: Server, load: Load, pictures: list[Known], tally: Tally) -> None:
        self._server = server
        self._load = load
        self._tally = tally
        self._body = _body(pictures)
        self._reloads = 0
        self._turn = 0

    async def next(self) -> None:
        """Inject one."""
        faults = (self._kill, self._hang, self._burst, self._hang_up, self._reload)
        fault = faults[self._turn % len(faults)]
        self._turn += 1
        self._tally.faults[fault.__name__.strip("_")] += 1
        await fault()

    async def _kill(self) -> None:
        os.kill(self._server.workers()[0], signal.SIGKILL)

    async def _hang(self) -> None:
        os.kill(self._server.workers()[-1], signal.SIGSTOP)

    async def _burst(self) -> None:
        now_s = time.monotonic()
        for _ in range(60):
            self._load.send(now_s)

    async def _hang_up(self) -> None:
        head = (
            "POST /v1/score HTTP/1.1\r\nhost: soak\r\ncontent-type: application/x-protobuf\r\n"
            f"content-length: {len(self._body)}\r\n\r\n"
        )
        for share in (1.0, 0.5) * 10:  # half of them in the middle of their request
            _, writer = await asyncio.open_connection("127.0.0.1", self._server.ports["http"])
            writer.write(head.encode() + self._body[: int(share * len(self._body))])
            with contextlib.suppress(ConnectionError):
                await writer.drain()
                writer.close()

    async def _reload(self) -> None:
        self._reloads += 1
        self._server.config.write_text(config(8 if self._reloads % 2 else 16))
        self._server.process.send_signal(signal.SIGHUP)


def _body(pictures: list[Known]) -> bytes:
    items = tuple(Item(f"{index}", "", (known.image,)) for index, known in enumerate(pictures[:8]))
    request = ScoreRequest("", (ScorerSelector("jpeg"),), items)
    return request_to_proto(request).SerializeToString()


async def soak(server: Server, minutes: float, rate: float, fault_every_s: float) -> Tally:
    """Drive the server; returns what came of it."""
    pictures, tally = known_pictures(), Tally()
    async with AsyncRewardClient(server.urls()[0]) as client:
        await client.wait_ready(timeout_s=120)
    load = Load(server, pictures, tally)
    faults = Faults(server, load, pictures, tally)
    begin_s = time.monotonic()

    async def inject() -> None:
        while True:
            await asyncio.sleep(fault_every_s)
            await faults.next()

    async def measure() -> None:
        while True:
            tally.memory_mb.append((time.monotonic() - begin_s, *server.memory_mb()))
            await asyncio.sleep(1.0)

    helpers = [asyncio.create_task(inject()), asyncio.create_task(measure())]
    for number in range(int(60 * minutes * rate)):
        due_s = begin_s + number / rate
        await asyncio.sleep(max(0.0, due_s - time.monotonic()))
        load.send(due_s)
        for helper in helpers:
            if helper.done():
                helper.result()
    for helper in helpers:
        helper.cancel()
    await load.finish()
    return tally


def growth_mb(samples: list[tuple[float, float, float]]) -> tuple[float, float]:
    """Slope of the server's own memory over the second half, in MB per minute and in MB."""
    late = samples[len(samples) // 2 :]
    if len(late) < 3:
        return 0.0, 0.0
    times_s, sizes_mb, _ = np.array(late).T
    per_s = float(np.polyfit(times_s, sizes_mb, 1)[0])
    return 60 * per_s, per_s * float(times_s[-1] - times_s[0])


def report(tally: Tally, exit_status: int, max_growth_mb: float) -> bool:
    """Print the figures; returns whether all is well."""
    p50, p95, p99, worst = 1e3 * np.percentile(
        tally.latencies_s or [float("nan")], [50, 95, 99, 100]
    )
    slope, grown = growth_mb(tally.memory_mb)
    lost, wrong = sum(tally.lost.values()), len(tally.wrong)
    print(f"requests answered {len(tally.latencies_s)}, items x scorers {tally.items}")
    print("faults            " + ", ".join(f"{n} x {name}" for name, n in tally.faults.items()))
    print(f"latency ms        p50 {p50:.0f}  p95 {p95:.0f}  p99 {p99:.0f}  max {worst:.0f}")
    quarters = [tally.memory_mb[int(q * (len(tally.memory_mb) - 1) / 4)] for q in range(5)]
    print(
        "own memory MB     "
        + " -> ".join(f"{own:.0f}" for _, own, _ in quarters)
        + f", second half {slope:+.2f} MB/min"
    )
    print("arenas MB         " + " -> ".join(f"{shared:.0f}" for _, _, shared in quarters))
    print(f"lost {lost}  wrong {wrong}  exit status on SIGTERM {exit_status}")
    for message, count in [*tally.lost.items(), *Counter(tally.wrong).items()][:10]:
        print(f"  {count} x {message}")
    return lost == 0 and wrong == 0 and exit_status == 0 and grown <= max_growth_mb


@contextlib.contextmanager
def running() -> Iterator[Server]:
    """A server that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        server = Server(Path(folder))
        try:
            yield server
        finally:
            if server.process.poll() is None:
                server.process.kill()
            server.process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=8.0, help="requests per second")
    parser.add_argument("--fault-every", type=float, default=20.0, help="seconds")
    parser.add_argument("--max-growth-mb", type=float, default=40.0)
    asked = parser.parse_args()
    sys.path.insert(0, str(ROOT))  # for examples/, when run as a file
    with running() as server:
        tally = asyncio.run(soak(server, asked.minutes, asked.rate, asked.fault_every))
        server.process.terminate()
        exit_status = server.process.wait(60)
    return 0 if report(tally, exit_status, asked.max_growth_mb) else 1


if __name__ == "__main__":
    sys.exit(main())
