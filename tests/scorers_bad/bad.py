"""Scorers that misbehave on request.

The prompt says what to do: "raise", "nan", "crash", "hang", "unavailable"; anything else scores
the mean of the image.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reward_client.errors import Code
from reward_server.scorers.base import (
    ItemFailure,
    ItemScore,
    Outcome,
    ScoreInput,
    ScorerSpec,
    SelfTestError,
    raw,
)


def halved(score: ItemScore) -> float:
    return score.raw / 2


def spec_named(name: str, inputs: tuple[str, ...] = ("image",)) -> ScorerSpec:
    return ScorerSpec(
        name=name,
        version="7",
        inputs=inputs,
        transforms={"raw": raw, "halved": halved},
        default_transform="raw",
        output_range=(0.0, 255.0),
    )


class Mean:
    """The mean of the first image; optionally slow, optionally noting the sizes of its batches."""

    spec = spec_named("mean")

    def __init__(self, sleep_s: float = 0.0, log_file: str = "", inputs: str = "image") -> None:
        self._sleep_s = sleep_s
        self._log_file = log_file
        self.spec = spec_named("mean", tuple(inputs.split(",")))

    def load(self, device: str) -> None:
        self._device = device

    def fingerprint(self) -> str:
        return "f" * 8

    def self_test(self) -> None:
        pass

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        if self._log_file:
            with Path(self._log_file).open("a") as file:
                file.write(f"{os.getpid()} {len(batch)}\n")
        time.sleep(self._sleep_s)
        return [self.one(item, details) for item in batch]

    def one(self, item: ScoreInput, details: bool) -> Outcome:
        value = float(item.images[0].mean())
        shown = {"prompt": item.prompt} if details else None
        return ItemScore(value, {"width": float(item.images[0].shape[1])}, shown)


class Obedient(Mean):
    """Fails as the prompt says."""

    def one(self, item: ScoreInput, details: bool) -> Outcome:
        match item.prompt:
            case "raise":
                raise ValueError("poison")
            case "nan":
                return ItemScore(float("nan"))
            case "nan component":
                return ItemScore(1.0, {"x": float("inf")})
            case "crash":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hang":
                time.sleep(3600)
            case "unavailable":
                return ItemFailure(Code.UNAVAILABLE, "the judge is away", retryable=True)
        return super().one(item, details)


class OutOfMemoryError(RuntimeError):
    """Called as torch calls it."""


class Small(Mean):
    """Runs out of memory over `room_px` pixels."""

    def __init__(self, room_px: int = 200, log_file: str = "") -> None:
        super().__init__(log_file=log_file)
        self._room_px = room_px

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        if sum(i.images[0].shape[0] * i.images[0].shape[1] for i in batch) > self._room_px:
            raise OutOfMemoryError("CUDA out of memory")
        return super().score(batch, details=details)


class WrongLength(Mean):
    """Forgets an outcome unless asked for one item that is not the prompt "short"."""

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        found = super().score(batch, details=details)
        return found[:-1] if any(item.prompt == "short" for item in batch) else found


class FailsSelfTest(Mean):
    """Knows that it is wrong."""

    def self_test(self) -> None:
        raise SelfTestError("self-test red: expected 1, found 2; likely cause: bad weights")


class FailsToLoad(Mean):
    """Cannot load, ever."""

    def load(self, device: str) -> None:
        raise OSError("no such weights: /nowhere")


class DiesWhileLoading(Mean):
    """Dies at its first start, and loads at its second."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self._marker = Path(marker)

    def load(self, device: str) -> None:
        if not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)


class SlowToLoad(Mean):
    """Takes its time."""

    def load(self, device: str) -> None:
        time.sleep(4.0)


class DiesWhile(Mean):
    """Dies while loading as long as a file exists."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self._file = Path(file)

    def load(self, device: str) -> None:
        if self._file.exists():
            print("no weights today", flush=True)
            os._exit(3)


class WrongUntil(Mean):
    """Fails its self-test until a file exists."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self._file = Path(file)

    def self_test(self) -> None:
        if not self._file.exists():
            raise SelfTestError("not blessed yet")


class Hungry(Mean):
    """Needs memory for every item, under a limit that the operating system enforces."""

    def __init__(self, room_bytes: int, item_bytes: int) -> None:
        super().__init__()
        self._room_bytes = room_bytes
        self._item_bytes = item_bytes

    def load(self, device: str) -> None:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + self._room_bytes
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        activations = np.ones(len(batch) * self._item_bytes, np.uint8)
        assert activations[-1] == 1
        return super().score(batch, details=details)


class Parent(Mean):
    """Has a child process that holds its output open, and dies without it on request."""

    def load(self, device: str) -> None:
        self._child = subprocess.Popen(["sleep", "3600"])

    def one(self, item: ScoreInput, details: bool) -> Outcome:
        if item.prompt == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().one(item, details)


class Breakable(Obedient):
    """Its "device" breaks for good with the prompt "break", or silently after "break later"."""

    def __init__(self, self_test_s: float = 0.0) -> None:
        super().__init__()
        self._is_broken = False
        self._self_test_s = self_test_s

    def self_test(self) -> None:
        time.sleep(self._self_test_s)
        self._touch_device()

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        found = super().score(batch, details=details)
        self._is_broken |= any(item.prompt == "break later" for item in batch)
        return found

    def one(self, item: ScoreInput, details: bool) -> Outcome:
        self._is_broken |= item.prompt == "break"
        self._touch_device()
        return super().one(item, details)

    def _touch_device(self) -> None:
        if self._is_broken:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")


class BusyAtFirst(Mean):
    """Its first self-test finds no memory on the device; the second one does."""

    def __init__(self, marker: str) -> None:
        super().__init__()
        self._marker = Path(marker)

    def self_test(self) -> None:
        if not self._marker.exists():
            self._marker.touch()
            raise OutOfMemoryError("CUDA out of memory")


class SlowItems(Mean):
    """Takes its time for every item, as networks on CPUs do."""

    def __init__(self, item_s: float) -> None:
        super().__init__()
        self._item_s = item_s

    def self_test(self) -> None:
        time.sleep(self._item_s)

    def one(self, item: ScoreInput, details: bool) -> Outcome:
        time.sleep(self._item_s)
        return super().one(item, details)


class Forker(Parent):
    """Has a forked child in a session of its own, which inherits socket and output."""

    def load(self, device: str) -> None:
        if os.fork() == 0:
            os.setsid()
            time.sleep(60)
            os._exit(0)


class OfThisProcess(Mean):
    """Every process computes something else, and says so."""

    def fingerprint(self) -> str:
        return f"{os.getpid():064d}"


class Environment(Mean):
    """Explains a score by the names of its environment variables."""

    def one(self, item: ScoreInput, details: bool) -> Outcome:
        return ItemScore(1.0, details={"names": sorted(os.environ)})
