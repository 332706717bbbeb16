"""Waiting that is cancelled in the turn of the event loop in which it would have ended."""

from __future__ import annotations

import ast
import asyncio
import time
from pathlib import Path

import numpy as np
import pytest

from reward_client._tasks import within
from reward_client.types import Priority
from reward_server.api.grpc_intake import Intake
from reward_server.config import ServerConfig
from reward_server.observability.metrics import Metrics
from reward_server.scheduling.batching import BatchLimits, Job
from reward_server.scheduling.queue import Work, WorkQueue, next_batches
from reward_server.workers.ipc import ItemMessage


async def test_a_cancelled_worker_takes_no_items_with_it() -> None:
    queue = WorkQueue("q", Metrics())
    taking = asyncio.create_task(next_batches([(queue, BatchLimits(4, 1 << 20, 0.0))]))
    await asyncio.sleep(0.01)
    answer = asyncio.get_running_loop().create_future()
    job = Job(1, "a", Priority.TRAIN, 1, time.monotonic())
    message = ItemMessage("", [], [], None, "raw")
    queue.put([Work(job, message, [np.zeros((1, 1, 3), np.uint8)], False, answer)])
    # One turn later the waiter has been woken but has not run: what `wait_for` swallowed.
    await asyncio.sleep(0)
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert queue.waiting_items == 1


async def test_cancellation_beats_the_result() -> None:
    done = asyncio.get_running_loop().create_future()
    waiting = asyncio.create_task(within(10.0, done))
    await asyncio.sleep(0.01)
    done.set_result(1)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


class Incoming:
    """A call of gRPC whose message comes when the test says so."""

    def __init__(self) -> None:
        self.message: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def read(self) -> bytes:
        return await self.message


async def test_a_call_that_is_cancelled_as_its_message_comes_is_not_served() -> None:
    call = Incoming()
    reading = asyncio.create_task(Intake(ServerConfig.model_validate({})).read(call))
    await asyncio.sleep(0.01)
    call.message.set_result(b"request")
    # Two turns later the message is there, and nobody has taken it yet.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


def test_nothing_waits_with_what_swallows_a_cancellation() -> None:
    """`asyncio.wait_for` differs between Python 3.11 and 3.12; `within` does not."""
    root = Path(__file__).parents[2]
    files = [f for name in ("reward_client", "reward_server") for f in (root / name).rglob("*.py")]
    assert len(files) > 150
    assert [
        f"{file}:{node.lineno}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr == "wait_for"
    ] == []


async def test_the_time_is_limited_and_the_rest_is_cancelled() -> None:
    sleeping = asyncio.create_task(asyncio.sleep(60))
    with pytest.raises(asyncio.TimeoutError):
        await within(0.01, sleeping)
    assert sleeping.cancelled()
    assert await within(None, asyncio.sleep(0, "value")) == "value"
    with pytest.raises(ValueError, match="inside"):
        await within(1.0, _fail())


async def _fail() -> None:
    raise ValueError("inside")
