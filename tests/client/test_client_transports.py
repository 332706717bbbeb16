"""Both transports, blocking and asyncio, against real servers that fail as they are told."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
from client_servers import Script, grey_items

from reward_client import (
    AsyncRewardClient,
    Cancelled,
    Code,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ItemError,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    RewardClient,
    ScorerInfo,
    Unauthenticated,
    Unavailable,
    error_for,
)
from reward_client._wire import convert


def blocking(url: str, method: str, *args: Any, options: Any = None, **kwargs: Any) -> Any:
    with RewardClient(url, **(options or {})) as client:
        return getattr(client, method)(*args, **kwargs)


def awaiting(url: str, method: str, *args: Any, options: Any = None, **kwargs: Any) -> Any:
    async def call() -> Any:
        async with AsyncRewardClient(url, **(options or {})) as client:
            return await getattr(client, method)(*args, **kwargs)

    return asyncio.run(call())


Call = Callable[..., Any]


@pytest.fixture(params=[blocking, awaiting])
def call(request: pytest.FixtureRequest) -> Call:
    return request.param


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_scores_arrive_in_order_with_headers(script: Script, call: Call) -> None:
    options = {"api_key": "secret"}
    response = call(
        script.url, "score", grey_items(5), ["brightness"], deadline_s=7.0, options=options
    )
    assert response.results["brightness"].scores == (0.0, 1.0, 2.0, 3.0, 4.0)
    assert script.seen_metadata[0]["authorization"] == "Bearer secret"
    assert 5.0 < script.seen_deadlines_s[0] <= 7.1  # the wire rounds


def test_large_batches_arrive_as_several_messages(script: Script, call: Call) -> None:
    options = {"max_message_bytes": 10_000}
    response = call(script.url, "score", grey_items(60, 16), ["brightness"], options=options)
    assert response.results["brightness"].scores == tuple(float(i) for i in range(60))
    assert len(script.seen_bytes) == 5
    assert max(script.seen_bytes) <= 10_000
    assert len(set(script.seen_ids)) == 5


def test_messages_of_16_mb_pass(script: Script, call: Call) -> None:
    response = call(script.url, "score", grey_items(24, 512), ["brightness"])
    assert response.results["brightness"].scores == tuple(float(i) for i in range(24))
    assert len(script.seen_bytes) == 2
    assert max(script.seen_bytes) > 15_000_000


def test_retries_repeat_the_request_id_until_it_works(script: Script, call: Call) -> None:
    script.failures = [Unavailable("warming up"), ResourceExhausted("full", retry_after_s=0.01)]
    response = call(script.url, "score", grey_items(2), ["brightness"], request_id="mine")
    assert response.results["brightness"].scores == (0.0, 1.0)
    assert script.seen_ids == ["mine"] * 3


def test_attempts_are_bounded(script: Script, call: Call) -> None:
    script.failures = [Unavailable(f"no {i}", retry_after_s=0.01) for i in range(9)]
    with pytest.raises(Unavailable, match="no 2"):
        call(script.url, "score", grey_items(1), ["brightness"], options={"attempts": 3})
    assert len(script.seen_ids) == 3


@pytest.mark.parametrize("asked", ["info", "ms", "pushback", "seconds"])
def test_the_servers_wait_is_honoured(script: Script, call: Call, asked: str) -> None:
    is_http = script.url.startswith("http")
    if (asked == "pushback" and is_http) or (asked == "seconds" and not is_http):
        pytest.skip("the other transport's header")
    script.plain_errors = asked != "info"
    script.failures = [ResourceExhausted("full", retry_after_s=0.6)]
    script.retry_headers = {
        "info": {},
        "ms": {"retry-after-ms": "600"},
        "pushback": {"grpc-retry-pushback-ms": "600"},
        "seconds": {"retry-after": "1"},
    }[asked]
    started = time.monotonic()
    call(script.url, "score", grey_items(1), ["brightness"])
    assert 0.6 <= time.monotonic() - started < 20
    assert len(script.seen_ids) == 2


def test_a_wait_beyond_the_deadline_is_not_waited(script: Script, call: Call) -> None:
    script.failures = [ResourceExhausted("full", retry_after_s=30.0)]
    started = time.monotonic()
    with pytest.raises(ResourceExhausted, match="full") as caught:
        call(script.url, "score", grey_items(1), ["brightness"], deadline_s=15.0)
    assert time.monotonic() - started < 14
    assert caught.value.retry_after_s == 30.0
    assert len(script.seen_ids) == 1


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
@pytest.mark.parametrize("plain", [False, True], ids=["told", "plain"])
def test_every_code_arrives_as_its_class(script: Script, code: Code, plain: bool) -> None:
    script.plain_errors = plain
    sent = error_for(code, "because", items={1: ItemError(code, "this one")})
    script.failures = [sent]
    with pytest.raises(type(sent)) as caught:
        blocking(script.url, "score", grey_items(2), ["brightness"], options={"attempts": 1})
    assert caught.value.code is code
    assert caught.value.retryable is sent.retryable
    if not plain:
        assert caught.value.message == "because"
        assert caught.value.items == sent.items


@pytest.mark.parametrize(
    "error", [InvalidArgument("x"), NotFound("x"), Internal("x"), Unauthenticated("x")]
)
def test_what_will_fail_again_is_not_repeated(script: Script, call: Call, error: Any) -> None:
    script.failures = [error]
    with pytest.raises(type(error)):
        call(script.url, "score", grey_items(1), ["brightness"])
    assert len(script.seen_ids) == 1


def test_the_server_may_say_that_retrying_is_pointless(script: Script, call: Call) -> None:
    script.failures = [Unavailable("gone for good", retryable=False)]
    with pytest.raises(Unavailable, match="gone for good"):
        call(script.url, "score", grey_items(1), ["brightness"])
    assert len(script.seen_ids) == 1


def test_the_nearest_name_passes_through(script: Script, call: Call) -> None:
    with pytest.raises(NotFound, match="did you mean 'brightness'"):
        call(script.url, "score", grey_items(1), ["britghness"])


def test_the_deadline_ends_a_slow_call(script: Script, call: Call) -> None:
    script.delay_s = 4.0
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="deadline_s"):
        call(script.url, "score", grey_items(1), ["brightness"], deadline_s=0.3)
    assert time.monotonic() - started < 3.9
    # The server measures what is left by a clock of its own.
    assert script.seen_deadlines_s[0] <= 0.31


def test_the_deadline_bounds_all_attempts_together(script: Script, call: Call) -> None:
    script.failures = [Unavailable("no") for _ in range(1000)]
    started = time.monotonic()
    with pytest.raises((Unavailable, DeadlineExceeded)):
        call(
            script.url,
            "score",
            grey_items(1),
            ["brightness"],
            deadline_s=2.0,
            options={"attempts": 1000},
        )
    assert time.monotonic() - started < 10
    assert 2 <= len(script.seen_ids) < 12


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_nobody_there_is_a_bounded_clear_error(scheme: str, closed_port: int, call: Call) -> None:
    url = f"{scheme}://127.0.0.1:{closed_port}"
    started = time.monotonic()
    with pytest.raises(Unavailable, match=rf"cannot reach {url}.*is the server running"):
        call(url, "score", grey_items(1), ["brightness"], options={"attempts": 2})
    with pytest.raises(
        Unavailable, match=rf"{url} was not ready within 0.5 s.*reward-server serve"
    ):
        call(url, "wait_ready", ["brightness"], timeout_s=0.5)
    assert time.monotonic() - started < 20


def test_wait_ready_waits_for_the_named_scorers(script: Script, call: Call) -> None:
    assert [info.name for info in call(script.url, "wait_ready", ["brightness"])] == ["brightness"]
    with pytest.raises(NotFound, match="did you mean 'brightness'"):
        call(script.url, "wait_ready", ["brightnes"])
    script.infos = [describe("a", "READY"), describe("b", "STARTING")]
    assert [info.name for info in call(script.url, "wait_ready", ["a"])] == ["a"]
    with pytest.raises(Unavailable, match="b is STARTING"):
        call(script.url, "wait_ready", timeout_s=1.5)


def test_wait_ready_does_not_wait_for_what_has_failed(script: Script, call: Call) -> None:
    script.infos = [describe("a", "FAILED")]
    with pytest.raises(Unavailable, match=r"'a'.*has failed.*no weights") as caught:
        call(script.url, "wait_ready", ["a"], timeout_s=30.0)
    assert not caught.value.retryable


def describe(name: str, state: Any) -> Any:
    info = ScorerInfo(name, "1", "f", ("image",), ("raw",), "raw", (0.0, 1.0), state, "no weights")
    return convert.info_to_proto(info)


def test_wait_ready_stops_at_a_wrong_key() -> None:
    with RewardClient("fake://", transport=Refusing()) as client:
        started = time.monotonic()
        with pytest.raises(PermissionDenied):
            client.wait_ready(timeout_s=30.0)
        assert time.monotonic() - started < 10


class Refusing:
    async def score(self, message: Any, timeout_s: float, headers: Any = ()) -> Any:
        raise PermissionDenied("wrong key")

    async def list_scorers(self, timeout_s: float, headers: Any = ()) -> Any:
        raise PermissionDenied("wrong key")

    def stream(self) -> Any:
        return self

    async def close(self) -> None:
        pass


def test_a_closed_client_says_so(script: Script) -> None:
    client = RewardClient(script.url)
    client.score(grey_items(1), ["brightness"])
    client.close()
    client.close()
    with pytest.raises(Cancelled, match="closed"):
        client.score(grey_items(1), ["brightness"])


def test_a_closed_async_client_says_so(script: Script) -> None:
    async def run() -> None:
        client = AsyncRewardClient(script.url)
        await client.score(grey_items(1), ["brightness"])
        await client.close()
        with pytest.raises(Cancelled, match="closed"):
            await client.score(grey_items(1), ["brightness"])

    asyncio.run(run())


def test_cancelling_an_async_call_ends_it_at_once(script: Script) -> None:
    script.delay_s = 4.0

    async def run() -> None:
        async with AsyncRewardClient(script.url) as client:
            task = asyncio.ensure_future(client.score(grey_items(1), ["brightness"]))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    started = time.monotonic()
    asyncio.run(run())
    assert time.monotonic() - started < 3.9


def test_one_client_serves_many_threads(script: Script) -> None:
    from concurrent.futures import ThreadPoolExecutor

    with RewardClient(script.url) as client, ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(client.score, grey_items(3), ["brightness"]) for _ in range(24)]
        for future in futures:
            assert future.result().results["brightness"].scores == (0.0, 1.0, 2.0)
    assert len(set(script.seen_ids)) == 24
