"""The threads that decode: priorities, fairness between callers, nothing lost."""

from __future__ import annotations

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_process import items, running

from reward_client import Encoding, Item, Priority, codec
from reward_server.scheduling.threads import FairQueue, FairThreads


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9)), max_size=60))
def test_between_two_backlogged_callers_the_costs_differ_by_one_task(
    tasks: list[tuple[str, int]],
) -> None:
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for client, cost in tasks:
        queue.push((client, cost), client, cost)
    had, left = {"a": 0, "b": 0}, [client for client, _ in tasks]
    while queue:
        client, cost = queue.pop()
        left.remove(client)
        had[client] += cost
        if "a" in left and "b" in left:
            assert abs(had["a"] - had["b"]) <= 9
    assert not left


class Blocked:
    """One thread, busy until `go`, with what waits behind it."""

    def __init__(self, clock_s: list[float]) -> None:
        self.threads = FairThreads(1, "test", lambda: clock_s[0])
        self._free = threading.Event()
        self.order: list[str] = []
        self.tasks = [asyncio.create_task(self._put(self._free.wait, "x"))]

    async def _put(self, function: object, client: str, **more: object) -> None:
        await self.threads.run(function, client=client, cost=1, **more)  # type: ignore[arg-type]

    async def put(self, name: str, client: str, priority: Priority = Priority.TRAIN) -> None:
        coroutine = self._put(lambda: self.order.append(name), client, priority=priority)
        self.tasks.append(asyncio.create_task(coroutine))
        await asyncio.sleep(0)

    async def go(self) -> list[str]:
        self._free.set()
        await asyncio.gather(*self.tasks)
        self.threads.shutdown()
        return self.order


async def test_classes_then_callers_and_waiting_lifts_a_class() -> None:
    clock_s = [0.0]
    blocked = Blocked(clock_s)
    await asyncio.sleep(0.05)
    await blocked.put("old bulk", "a", Priority.BULK)
    clock_s[0] = 35.0
    for name in ("a1", "a2", "a3"):
        await blocked.put(name, "a")
    await blocked.put("b1", "b")
    await blocked.put("fresh bulk", "b", Priority.BULK)
    assert await blocked.go() == ["old bulk", "a1", "b1", "a2", "a3", "fresh bulk"]


async def test_a_cancelled_task_never_runs_and_errors_reach_the_caller() -> None:
    blocked = Blocked([0.0])
    await blocked.put("never", "a")
    await blocked.put("runs", "a")
    blocked.tasks.pop(1).cancel()
    await asyncio.sleep(0)
    assert await blocked.go() == ["runs"]
    threads = FairThreads(1, "test")
    with pytest.raises(ZeroDivisionError):
        await threads.run(lambda: 1 / 0, client="a", cost=1)
    threads.shutdown()


def test_a_bulk_request_does_not_hold_up_a_training_call(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    png = codec.encode(noise, Encoding.PNG)
    bulk = [Item(f"i{i}", "", (png,)) for i in range(24)]
    toml = '[scorers.bright]\nscorer = "tests.scorers_bad.bad:Mean"\nmax_batch_items = 1\n'
    with (
        running(tmp_path, toml, wait_for=("bright",)) as server,
        server.client() as client,
        server.client() as other,
        ThreadPoolExecutor(1) as pool,
    ):
        client.score(items(["warm"]), ["bright"])
        begin_s = time.monotonic()
        running_bulk = pool.submit(other.score, bulk, ["bright"], priority=Priority.BULK)
        time.sleep(0.3)
        train_s = []
        while not running_bulk.done():
            asked_s = time.monotonic()
            client.score(items(["train"]), ["bright"], priority=Priority.TRAIN)
            train_s.append(time.monotonic() - asked_s)
        assert running_bulk.result().results["bright"].errors == {}
        bulk_s = time.monotonic() - begin_s
    assert len(train_s) >= 3, train_s
    assert min(train_s) < bulk_s / 4, (train_s, bulk_s)
