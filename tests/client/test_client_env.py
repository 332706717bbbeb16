"""`from_env`, `array`, `raise_for_items`, and callers that share a request."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from client_servers import Script, brightness, grey_items
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_client import (
    AsyncRewardClient,
    Code,
    FakeTransport,
    InvalidArgument,
    Item,
    ItemError,
    ResourceExhausted,
    RewardClient,
    ScoreResponse,
    ScorerResult,
    Unavailable,
)
from reward_client.integrations._coalesce import BatchWindow, Coalescer


def test_a_client_from_the_environment(script: Script) -> None:
    environ = {"REWARD_URL": script.url, "REWARD_API_KEY": "secret", "REWARD_TIMEOUT_S": "7.5"}
    with RewardClient.from_env(environ) as client:
        client.score(grey_items(1), ["brightness"])
    assert script.seen_metadata[0]["authorization"] == "Bearer secret"
    assert 5.0 < script.seen_deadlines_s[0] <= 7.6


@pytest.mark.parametrize("cls", [RewardClient, AsyncRewardClient])
def test_what_the_environment_lacks_is_one_clear_line(cls: Any) -> None:
    for environ in ({}, {"REWARD_URL": ""}):
        with pytest.raises(InvalidArgument, match=r"^REWARD_URL is not set: set it to the address"):
            cls.from_env(environ)
    for text in ("soon", "-1", "nan"):
        with pytest.raises(InvalidArgument, match=r"^REWARD_TIMEOUT_S must be a .*number"):
            cls.from_env({"REWARD_URL": "http://127.0.0.1:1", "REWARD_TIMEOUT_S": text})
    with pytest.raises(InvalidArgument, match="expected grpc://host:port"):
        cls.from_env({"REWARD_URL": "grpc://a:1,nonsense"})


def half(_: str, item: Item) -> float | ItemError:
    if item.id == "item-1":
        return ItemError(Code.RESOURCE_EXHAUSTED, "out of memory", retryable=True)
    return brightness(item)


def test_an_array_never_shows_a_number_for_a_failure() -> None:
    with RewardClient("fake://", transport=FakeTransport(half)) as client:
        result = client.score(grey_items(3), ["fake"])["fake"]
    array = result.array()
    assert array.dtype == np.float64
    assert array.mask.tolist() == [False, True, False]
    assert array.mean() == 1.0
    assert np.isnan(np.asarray(array)[1])
    assert np.isnan(array.filled()[1])
    with pytest.raises(KeyError):
        result.array("official")


def test_raise_for_items_says_which_and_keeps_all() -> None:
    with RewardClient("fake://", transport=FakeTransport(half)) as client:
        response = client.score(grey_items(3), ["fake"])
        assert client.score(grey_items(1), ["fake"]).raise_for_items()["fake"].scores == (0.0,)
    with pytest.raises(ResourceExhausted, match="1 of 3 items, first item 1: out of") as caught:
        response.raise_for_items()
    assert caught.value.retryable
    assert list(caught.value.items) == [1]
    assert response["fake"].at(2).raise_for_items().scores == (2.0,)
    assert response["fake"].at(1).errors[0].message == "out of memory"


def answer(items: list[Item]) -> ScoreResponse:
    scores = tuple(brightness(item) for item in items)
    return ScoreResponse("r", {"b": ScorerResult("b", "1", "f", scores, scores)})


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from([0.0, 2.0]))
def test_every_task_gets_its_own_score(callers: int, most: int, wait_ms: float) -> None:
    sizes: list[int] = []

    async def send(items: list[Item]) -> ScoreResponse:
        assert len({item.id for item in items}) == len(items)
        sizes.append(len(items))
        await asyncio.sleep(0)
        return answer(items)

    async def run() -> list[ScoreResponse]:
        calls = Coalescer(send, BatchWindow(most, wait_ms))
        return await asyncio.gather(*[calls.awaited(item) for item in grey_items(callers)])

    found = asyncio.run(run())
    assert [r["b"].scores for r in found] == [(float(i),) for i in range(callers)]
    assert sum(sizes) == callers
    assert max(sizes) <= most


def test_every_thread_gets_its_own_score_and_errors_reach_all() -> None:
    sizes: list[int] = []

    async def send(items: list[Item]) -> ScoreResponse:
        sizes.append(len(items))
        if len(sizes) == 1:
            raise Unavailable("down")
        return answer(items)

    calls = Coalescer(send, BatchWindow(4, 2000.0))
    with ThreadPoolExecutor(4) as pool:
        failed = [pool.submit(calls.blocking, item) for item in grey_items(4)]
        assert all(isinstance(future.exception(20), Unavailable) for future in failed)
        found = list(pool.map(calls.blocking, grey_items(4)))
    assert [r["b"].scores for r in found] == [(0.0,), (1.0,), (2.0,), (3.0,)]
    assert sizes == [4, 4]
    started = time.monotonic()
    alone = Coalescer(send, BatchWindow(4, 30.0)).blocking(grey_items(1)[0])
    assert time.monotonic() - started >= 0.03
    assert alone["b"].scores == (0.0,)
    assert threading.active_count() < 50


def test_a_wrong_item_costs_its_caller_alone() -> None:
    sizes: list[int] = []

    async def send(items: list[Item]) -> ScoreResponse:
        sizes.append(len(items))
        wrong = [i for i, item in enumerate(items) if item.prompt == "unreadable"]
        if wrong:  # as a server refuses a request that it cannot read
            errors = {i: ItemError(Code.INVALID_ARGUMENT, "no such class") for i in wrong}
            raise InvalidArgument("no such class", items=errors)
        return answer(items)

    items = grey_items(4)
    items[1] = dataclasses.replace(items[1], prompt="unreadable")
    items[2] = dataclasses.replace(items[2], spec={"include": "a star"}, spec_kind="geneval")

    async def run() -> list[Any]:
        calls = Coalescer(send, BatchWindow(3, 500.0))
        return await asyncio.gather(*map(calls.awaited, items), return_exceptions=True)

    first, unreadable, unsendable, last = asyncio.run(run())
    assert first["b"].scores == (0.0,)
    assert last["b"].scores == (3.0,)
    assert isinstance(unreadable, InvalidArgument)
    assert unreadable.message == "no such class"
    assert isinstance(unsendable, InvalidArgument)
    assert "expected a list of clauses" in unsendable.message
    assert sizes == [3, 2]


def test_cancelling_one_caller_costs_the_others_nothing_and_all_cancel_the_request() -> None:
    async def run() -> list[str]:
        happened: list[str] = []
        begun = threading.Event()

        async def send(items: list[Item]) -> ScoreResponse:
            begun.set()
            try:
                await asyncio.sleep(0.2)
            except asyncio.CancelledError:
                happened.append("cancelled")
                raise
            happened.append("sent")
            return answer(items)

        calls = Coalescer(send, BatchWindow(2, 1000.0))
        for kept in (1, 0):
            begun.clear()
            tasks = [asyncio.create_task(calls.awaited(item)) for item in grey_items(2)]
            await asyncio.to_thread(begun.wait)
            for task in tasks[kept:]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert [task.cancelled() for task in tasks] == [kept == 0, True]
        await asyncio.sleep(0.1)
        return happened

    assert asyncio.run(run()) == ["sent", "cancelled"]


def test_the_window_is_checked() -> None:
    for wrong in ((0, 1.0), (1, -1.0), (1, float("inf"))):
        with pytest.raises(InvalidArgument, match="max_items must be at least 1"):
            BatchWindow(*wrong)
