"""Waiting that is cancelled in the turn of the event loop in which it would have ended."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest

from reward_client.types import Priority
from reward_server.observability.metrics import Metrics
from reward_server.scheduling.batching import BatchLimits, Job
from reward_server.scheduling.gather import within
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
