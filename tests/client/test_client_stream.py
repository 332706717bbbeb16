"""Items sent as they are made, over ScoreStream and over HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from client_servers import Script, brightness, grey, grey_items

from reward_client import (
    AsyncRewardClient,
    Code,
    FakeTransport,
    InvalidArgument,
    Item,
    ItemError,
    ItemScores,
    NotFound,
    RewardClient,
    Unavailable,
)

Servers = Callable[[int], list[Script]]


def blocking(urls: Any, items: Any, *args: Any, options: Any = None, **more: Any) -> Any:
    with RewardClient(urls, **(options or {})) as client:
        return list(client.score_stream(items, *args, **more))


def awaiting(urls: Any, items: Any, *args: Any, options: Any = None, **more: Any) -> Any:
    async def call() -> list[ItemScores]:
        async with AsyncRewardClient(urls, **(options or {})) as client:
            return [scored async for scored in client.score_stream(items, *args, **more)]

    return asyncio.run(call())


@pytest.fixture(params=[blocking, awaiting])
def stream(request: pytest.FixtureRequest) -> Any:
    return request.param


def by_index(results: list[ItemScores]) -> list[float | None]:
    assert sorted(scored.index for scored in results) == list(range(len(results)))
    assert all(scored.id == f"item-{scored.index}" for scored in results)
    ordered = sorted(results, key=lambda scored: scored.index)
    return [scored.scores["brightness"] for scored in ordered]


@pytest.mark.parametrize("per_message", [1, 7])
def test_every_item_comes_back_once(script: Script, stream: Any, per_message: int) -> None:
    results = stream(
        script.url, iter(grey_items(50)), ["brightness"], items_per_message=per_message
    )
    assert by_index(results) == [float(i) for i in range(50)]
    assert len(set(script.seen_ids)) == -(-50 // per_message)
    assert script.streams == (1 if script.url.startswith("grpc") else 0)


def test_nothing_to_score_is_nothing(script: Script, stream: Any) -> None:
    assert stream(script.url, [], ["brightness"]) == []
    assert script.seen_ids == []


def test_results_come_while_items_are_still_being_made(script: Script) -> None:
    order: list[str] = []

    def made() -> Iterator[Item]:
        for item in grey_items(4):
            order.append(f"made {item.id}")
            yield item
            time.sleep(0.3)

    with RewardClient(script.url) as client:
        for scored in client.score_stream(made(), ["brightness"]):
            order.append(f"scored {scored.id}")  # noqa: PERF401 (others append in between)
    assert order.index("scored item-0") < order.index("made item-3")


def test_an_asynchronous_source_does_not_delay_answers(script: Script) -> None:
    async def run() -> float:
        scored_first = asyncio.Event()

        async def made() -> AsyncIterator[Item]:
            yield grey_items(1)[0]
            # Only the answer to the first item lets the second be made.
            await asyncio.wait_for(scored_first.wait(), 20)
            yield Item("item-1", "", (grey(9),))

        total = 0.0
        async with AsyncRewardClient(script.url) as client:
            async for scored in client.score_stream(made(), ["brightness"]):
                total += scored.scores["brightness"] or 0.0
                scored_first.set()
        return total

    assert asyncio.run(run()) == 9.0


def test_a_broken_stream_is_reopened_and_loses_nothing(grpc_script: Script, stream: Any) -> None:
    grpc_script.breaks_streams = 2
    results = stream(grpc_script.url, grey_items(12), ["brightness"], in_flight=4)
    assert by_index(results) == [float(i) for i in range(12)]
    assert grpc_script.streams >= 3


def test_a_stream_survives_the_death_of_a_server(scripts: Servers, stream: Any) -> None:
    dying, alive = scripts(2)

    def made() -> Iterator[Item]:
        for number, item in enumerate(grey_items(20)):
            if number == 10:
                dying.kill()
            yield item

    results = stream([dying.url, alive.url], made(), ["brightness"], in_flight=4)
    assert by_index(results) == [float(i) for i in range(20)]
    assert alive.seen_ids


def test_a_message_that_fails_for_good_fails_its_items_alone(script: Script, stream: Any) -> None:
    script.failures = [Unavailable("gone for good", retryable=False)]
    results = stream(script.url, grey_items(6), ["brightness"], items_per_message=2, in_flight=1)
    assert by_index(results) == [None, None, 2.0, 3.0, 4.0, 5.0]
    failed = [scored for scored in results if scored.errors]
    assert {scored.errors["brightness"].code for scored in failed} == {Code.UNAVAILABLE}


def test_items_that_fail_and_details() -> None:
    def score(_: str, item: Item) -> float | ItemError:
        return ItemError(Code.INTERNAL, "no") if item.id == "item-1" else brightness(item)

    with RewardClient("fake://", transport=FakeTransport(score, ["brightness"])) as client:
        results = list(client.score_stream(grey_items(3), ["brightness"], items_per_message=3))
    assert by_index(results) == [0.0, None, 2.0]
    assert [list(scored.errors) for scored in results] == [[], ["brightness"], []]


def test_a_wrong_call_ends_the_stream(script: Script, stream: Any) -> None:
    with pytest.raises(NotFound, match="did you mean 'brightness'"):
        stream(script.url, grey_items(40), ["brightnes"])
    with pytest.raises(InvalidArgument, match="non-empty string"):
        stream(script.url, [Item("", "", ())], ["brightness"])
    with pytest.raises(InvalidArgument, match="in_flight must be at least 1"):
        stream(script.url, [], ["brightness"], in_flight=0)


def test_the_deadline_of_a_message_ends_its_wait(script: Script, stream: Any) -> None:
    script.delay_s = 2.5
    started = time.monotonic()
    (scored,) = stream(script.url, grey_items(1), ["brightness"], deadline_s=0.3)
    assert time.monotonic() - started < 8
    assert scored.errors["brightness"].code is Code.DEADLINE_EXCEEDED


def test_leaving_a_stream_early_leaves_nothing_behind(script: Script) -> None:
    with RewardClient(script.url) as client:
        results = client.score_stream(iter(grey_items(64)), ["brightness"], in_flight=4)
        assert next(results).scores["brightness"] is not None
        results.close()  # type: ignore[attr-defined]  # a generator
        assert client.endpoints()[0].outstanding == 0
        client.score(grey_items(1), ["brightness"])
