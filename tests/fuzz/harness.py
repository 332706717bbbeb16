"""Feeds a parser mutated input, many times, and measures: crashes, hangs, memory.

A target is a function of bytes that either returns or raises one of the errors it promises. Any
other exception is a crash; an input that takes longer than the limit is a hang; both keep the input
for whoever has to repair it. Runs are reproducible: the same seed gives the same inputs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

INPUT_LIMIT_S = 2.0
_INTERESTING = (0, 1, 127, 128, 255, 256, 32767, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
_MAX_INPUT_BYTES = 1 << 16
_RSS_SAMPLES = 40
_RSS_EVERY = 500  # at most: collecting garbage takes longer than most inputs
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Target:
    """What is fuzzed.

    Attributes:
        run: the parser; returning means that it took the input.
        seeds: valid inputs to start from.
        refuses: what it may raise instead.
        tokens: byte strings that mean something in this format, to be strewn in.
    """

    run: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    refuses: tuple[type[Exception], ...]
    tokens: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Report:
    """What a run found; `rss_slope_bytes` is the growth of memory per 1000 inputs, by regression
    over the second half of the run (the first half fills caches)."""

    name: str
    runs: int
    accepted: int
    seconds: float
    slowest_s: float
    rss_slope_bytes: float
    rss_growth_bytes: int

    def line(self) -> str:
        """For people."""
        per_s = self.runs / max(self.seconds, 1e-9)
        return (
            f"{self.name:<16} {self.runs:>9,} inputs  {self.accepted:>9,} accepted"
            f"  {per_s:>7,.0f}/s  slowest {self.slowest_s * 1e3:>6.1f} ms"
            f"  memory {self.rss_growth_bytes / 2**20:+.1f} MiB,"
            f" {self.rss_slope_bytes / 1024:+.2f} KiB per 1000 inputs"
        )


class Found(AssertionError):
    """An input that crashed or hung the target; the message says where it is kept."""


class _TooSlow(BaseException):
    """Raised by the timer inside the target; not an Exception, so that no handler swallows it."""


def fuzz(
    name: str, target: Target, runs: int, *, seed: int = 0, keep_in: Path = Path("runs/fuzz")
) -> Report:
    """Run a target `runs` times.

    Raises:
        Found: a crash or a hang.
    """
    inputs = mutations(target, random.Random(seed))
    accepted, slowest_s = 0, 0.0
    samples: list[tuple[int, int]] = []
    begin_s = time.perf_counter()
    with _alarm():
        for number in range(runs):
            data = next(inputs)
            took_s, took = attempt(name, target, data, keep_in)
            accepted += took
            slowest_s = max(slowest_s, took_s)
            if number % max(_RSS_EVERY, runs // _RSS_SAMPLES) == 0:
                gc.collect()
                samples.append((number, rss_bytes()))
    seconds = time.perf_counter() - begin_s
    late = samples[len(samples) // 2 :]
    growth = late[-1][1] - late[0][1] if late else 0
    return Report(name, runs, accepted, seconds, slowest_s, 1000 * slope(late), growth)


def attempt(name: str, target: Target, data: bytes, keep_in: Path) -> tuple[float, bool]:
    """Run one input; returns (seconds, whether it was accepted).

    Raises:
        Found: a crash or a hang.
    """
    begin_s = time.perf_counter()
    taken = False
    signal.setitimer(signal.ITIMER_REAL, INPUT_LIMIT_S)
    try:
        target.run(data)
        taken = True
    except target.refuses:
        pass
    except _TooSlow as error:
        raise Found(f"{name}: a hang; {_kept(name, data, keep_in)}") from error
    except (Exception, RecursionError) as error:
        what = f"{type(error).__name__}: {str(error)[:200]}"
        raise Found(f"{name}: {what}; {_kept(name, data, keep_in)}") from error
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return time.perf_counter() - begin_s, taken


def mutations(target: Target, rng: random.Random) -> Iterator[bytes]:
    """The seeds as they are, then mutants of them without end."""
    seeds = list(target.seeds())
    yield from seeds
    while True:
        data = bytearray(rng.choice(seeds))
        for _ in range(1 + int(rng.expovariate(0.7))):
            _mutate(data, rng, seeds, target.tokens)
        yield bytes(data[:_MAX_INPUT_BYTES])


def slope(samples: Sequence[tuple[int, int]]) -> float:
    """The slope of the least-squares line through (x, y)."""
    if len(samples) < 2:
        return 0.0
    mean_x = sum(x for x, _ in samples) / len(samples)
    mean_y = sum(y for _, y in samples) / len(samples)
    spread = sum((x - mean_x) ** 2 for x, _ in samples)
    return sum((x - mean_x) * (y - mean_y) for x, y in samples) / spread if spread else 0.0


def rss_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def _mutate(
    data: bytearray, rng: random.Random, seeds: Sequence[bytes], tokens: Sequence[bytes]
) -> None:
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(9)
    length = min(1 << rng.randrange(9), len(data) - at)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << rng.randrange(8)
    elif kind == 1 and at < len(data):
        data[at] = rng.randrange(256)
    elif kind == 2:
        del data[at : at + length]
    elif kind == 3:
        data[at:at] = data[at : at + length]
    elif kind == 4:
        data[at:at] = rng.randbytes(max(length, 1))
    elif kind == 5:
        width = rng.choice((1, 2, 4, 8))
        value = rng.choice(_INTERESTING) % (1 << 8 * width)
        data[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))
    elif kind == 6:
        other = rng.choice(seeds)
        begin = rng.randrange(len(other) + 1)
        data[at:] = other[begin:]
    elif kind == 7:
        del data[at:]
    elif tokens:
        token = rng.choice(tokens)
        data[at : at + rng.choice((0, len(token)))] = token * rng.choice((1, 1, 1, 2, 200))


@contextlib.contextmanager
def _alarm() -> Iterator[None]:
    def ring(*_: object) -> None:
        raise _TooSlow

    before = signal.signal(signal.SIGALRM, ring)
    try:
        yield
    finally:
        signal.signal(signal.SIGALRM, before)


def _kept(name: str, data: bytes, folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}-{len(data)}-{hash(data) & 0xFFFFFFFF:08x}.bin"
    file.write_bytes(data)
    return f"the input is in {file}"


def watch_for_hangs_in_c(limit_s: float) -> None:
    """Kill the process with a traceback if a call into C never comes back."""
    faulthandler.dump_traceback_later(limit_s, exit=True)
