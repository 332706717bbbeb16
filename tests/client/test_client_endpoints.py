"""Several real servers behind one client: failover, balance, hedging; and forks."""

from __future__ import annotations

import asyncio
import inspect
import os
import random
import time
from collections.abc import Callable
from typing import Any

import pytest
from client_servers import Script, brightness, grey_items
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_client import (
    AsyncRewardClient,
    Cancelled,
    FakeTransport,
    Hedge,
    Internal,
    Item,
    ItemError,
    NotFound,
    ResourceExhausted,
    RewardClient,
    Unauthenticated,
    Unavailable,
)

Servers = Callable[[int], list[Script]]
URLS = ("fake://a", "fake://b", "fake://c")


def blocking(urls: Any, method: str, *args: Any, options: Any = None, **kwargs: Any) -> Any:
    with RewardClient(urls, **(options or {})) as client:
        return getattr(client, method)(*args, **kwargs)


def awaiting(urls: Any, method: str, *args: Any, options: Any = None, **kwargs: Any) -> Any:
    async def call() -> Any:
        async with AsyncRewardClient(urls, **(options or {})) as client:
            return await getattr(client, method)(*args, **kwargs)

    return asyncio.run(call())


@pytest.fixture(params=[blocking, awaiting])
def call(request: pytest.FixtureRequest) -> Any:
    return request.param


def test_a_dead_server_costs_no_item_and_the_same_id_goes_to_the_next(
    scripts: Servers, call: Any
) -> None:
    dead, alive = scripts(2)
    dead.kill()
    urls = f"{dead.url},{alive.url}"
    options = {"prefer": "first", "attempts": 1}
    response = call(
        urls, "score", grey_items(3), ["brightness"], request_id="mine", options=options
    )
    assert response["brightness"].scores == (0.0, 1.0, 2.0)
    assert alive.seen_ids == ["mine"]
    ready = call(urls, "wait_ready", ["brightness"])
    assert [info.name for info in ready] == ["brightness"]
    assert [info.name for info in call(urls, "list_scorers")] == ["brightness"]


def test_a_refusal_goes_to_the_next_server_with_the_same_id(scripts: Servers, call: Any) -> None:
    first, second = scripts(2)
    first.failures = [ResourceExhausted("full", retry_after_s=30.0)]
    started = time.monotonic()
    call(
        [first.url, second.url],
        "score",
        grey_items(1),
        ["brightness"],
        request_id="mine",
        options={"prefer": "first"},
    )
    assert time.monotonic() - started < 20
    assert first.seen_ids == second.seen_ids == ["mine"]


def test_what_is_wrong_with_the_request_is_not_tried_elsewhere(scripts: Servers, call: Any) -> None:
    first, second = scripts(2)
    for error in (NotFound("no such scorer"), Unauthenticated("no key"), Internal("bug")):
        first.failures = [error]
        with pytest.raises(type(error)):
            call(
                [first.url, second.url],
                "score",
                grey_items(1),
                ["brightness"],
                options={"prefer": "first"},
            )
    assert second.seen_ids == []


def test_parts_are_spread_over_the_servers(scripts: Servers, call: Any) -> None:
    servers = scripts(2)
    for server in servers:
        server.delay_s = 0.02
    urls = [server.url for server in servers]
    seen: list[tuple[int, int]] = []
    response = call(
        urls,
        "score",
        grey_items(40),
        ["brightness"],
        options={"max_message_items": 4},
        progress=lambda done, total: seen.append((done, total)),
    )
    assert response["brightness"].scores == tuple(float(i) for i in range(40))
    assert [len(server.seen_ids) for server in servers] == pytest.approx([5, 5], abs=3)
    assert seen == [(4 * n, 40) for n in range(1, 11)]


def test_the_first_answer_wins_and_the_slow_one_is_not_waited_for(
    scripts: Servers, call: Any
) -> None:
    slow, quick = scripts(2)
    slow.delay_s = 3.0
    started = time.monotonic()
    response = call(
        [slow.url, quick.url],
        "score",
        grey_items(2),
        ["brightness"],
        request_id="mine",
        options={"prefer": "first", "hedge": Hedge(after_s=0.2)},
    )
    assert time.monotonic() - started < 2.9
    assert response["brightness"].scores == (0.0, 1.0)
    assert slow.seen_ids == quick.seen_ids == ["mine"]


def test_ready_is_where_one_server_is_ready_and_hopeless_where_none_can_be(
    scripts: Servers, call: Any
) -> None:
    first, second = scripts(2)
    first.infos = [described("brightness", "STARTING")]
    urls = [first.url, second.url]
    assert call(urls, "wait_ready", ["brightness"])[0].state == "READY"
    first.infos = [described("brightness", "FAILED")]
    assert call(urls, "wait_ready", ["brightness"])[0].state == "READY"
    second.infos = [described("other", "READY")]
    with pytest.raises(Unavailable, match="has failed and will not"):
        call(urls, "wait_ready", ["brightness"], timeout_s=30.0)
    first.infos = [described("brightness", "STARTING")]
    with pytest.raises(Unavailable, match=rf"{first.url}: brightness is STARTING; {second.url}"):
        call(urls, "wait_ready", ["brightness"], timeout_s=0.4)


def described(name: str, state: Any) -> Any:
    from reward_client import ScorerInfo
    from reward_client._wire import convert

    info = ScorerInfo(name, "1", "f", ("image",), ("raw",), "raw", (0.0, 1.0), state, "no weights")
    return convert.info_to_proto(info)


def test_what_a_client_knows_of_its_servers() -> None:
    def fail(_: str, item: Item) -> float:
        raise Unavailable("draining")

    transports = [FakeTransport(fail), FakeTransport(lambda *_: 1.0)]
    client = RewardClient("fake://a,fake://b", transport=transports, prefer="first")
    assert [state.is_up for state in client.endpoints()] == [True, True]
    client.score(grey_items(1), ["fake"])
    down, up = client.endpoints()
    assert (down.url, down.is_up, down.failures, down.last_error) == (
        "fake://a",
        False,
        1,
        "draining",
    )
    assert (up.is_up, up.outstanding, up.last_error) == (True, 0, "")
    assert client.url == "fake://a,fake://b"


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_whatever_fails_every_item_gets_its_own_score_once(data: st.DataObject) -> None:
    luck = random.Random(data.draw(st.integers(0, 2**32)))

    def score(_: str, item: Item) -> float | ItemError:
        if luck.random() < 0.1:
            if luck.random() < 0.5:
                raise Unavailable("down")
            raise ResourceExhausted("full", retry_after_s=0.001)
        return brightness(item)

    count, per_message = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 6))
    servers = data.draw(st.integers(1, 3))
    client = RewardClient(
        URLS[:servers],
        transport=[FakeTransport(score) for _ in range(servers)],
        max_message_items=per_message,
        attempts=4,
        timeout_s=20.0,
    )
    done: list[int] = []
    try:
        response = client.score(
            grey_items(count), ["fake"], progress=lambda part, _: done.append(part)
        )
    except (Unavailable, ResourceExhausted):
        return
    assert response["fake"].scores == tuple(float(i) for i in range(count))
    assert done == sorted(set(done))
    assert done[-1] == count


def test_blocking_and_asyncio_have_the_same_methods_and_arguments() -> None:
    def surface(cls: type) -> dict[str, list[str]]:
        names = [name for name in vars(cls) if not name.startswith("_")]
        return {
            name: [str(p).replace("Async", "") for p in arguments(getattr(cls, name))]
            for name in names
        }

    def arguments(method: Any) -> list[inspect.Parameter]:
        return list(inspect.signature(method).parameters.values())

    assert RewardClient.__init__ is AsyncRewardClient.__init__
    ours, theirs = surface(RewardClient), surface(AsyncRewardClient)
    theirs["score_stream"][1] = theirs["score_stream"][1].replace("Iterable[Item] | ", "", 1)
    assert ours == theirs
    for name in ours:
        if name not in ("endpoints", "score_stream", "from_env", "__init__"):
            assert inspect.iscoroutinefunction(getattr(AsyncRewardClient, name)), name


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_after_a_fork_a_client_refuses_instead_of_hanging() -> None:
    client = RewardClient("fake://", transport=FakeTransport(lambda *_: 1.0))
    client.score(grey_items(1), ["fake"])
    child = os.fork()
    if child == 0:
        try:
            client.score(grey_items(1), ["fake"])
        except Cancelled as error:
            os._exit(0 if "make a client in each process" in error.message else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("name", ["attempts", "max_message_items", "max_message_bytes"])
def test_limits_are_at_least_one(name: str) -> None:
    from reward_client import InvalidArgument

    with pytest.raises(InvalidArgument, match=f"{name} must be at least 1, got 0"):
        blocking("fake://", "close", options={name: 0})
