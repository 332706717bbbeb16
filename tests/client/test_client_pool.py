"""Retries, failover, polls and hedging on a virtual clock, with servers that fail as drawn."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import virtual_time
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_client._addresses import parse_sources
from reward_client._call import RetryPolicy
from reward_client._endpoints import Endpoint, Hedge
from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._pool import Pool
from reward_client.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    RewardError,
    Unavailable,
)

Behaviour = Callable[[], "float | RewardError | tuple[float, RewardError]"]


@dataclass
class Server:
    """A transport: `next` says how long a message takes, or how it fails."""

    name: str = ""
    next: Behaviour = lambda: 0.01
    hangs: bool = False
    seen_s: list[float] = field(default_factory=list)
    polls: int = 0
    under_way: int = 0
    cancelled: int = 0

    async def list_scorers(self, timeout_s: float, headers: Any = ()) -> pb.ListScorersResponse:
        self.polls += 1
        if self.hangs:
            await asyncio.sleep(timeout_s)
            raise DeadlineExceeded("silence")
        return pb.ListScorersResponse()

    async def work(self, left_s: float) -> str:
        self.seen_s.append(asyncio.get_running_loop().time())
        self.under_way += 1
        try:
            if self.hangs:
                await asyncio.sleep(left_s)
                raise DeadlineExceeded("silence")
            outcome = self.next()
            takes_s, error = outcome if isinstance(outcome, tuple) else (outcome, None)
            if isinstance(takes_s, RewardError):
                raise takes_s
            if takes_s >= left_s:
                await asyncio.sleep(left_s)
                raise DeadlineExceeded("too slow")
            await asyncio.sleep(takes_s)
            if error is not None:
                raise error
            return self.name
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1

    async def close(self) -> None:
        pass


def pool_of(servers: list[Server], **options: Any) -> Pool:
    names = [f"grpc://s{number}:1" for number in range(len(servers))]
    by_url = dict(zip(names, servers, strict=True))
    for name, server in by_url.items():
        server.name = name
    options.setdefault("policy", RetryPolicy(jitter=0.0))
    sources = parse_sources(names)
    return Pool(sources, lambda address: by_url[address.url], **options)  # type: ignore[arg-type,return-value]


async def send(endpoint: Endpoint, left_s: float) -> str:
    server: Any = endpoint.transport
    return await server.work(left_s)


def failing(*errors: RewardError) -> Behaviour:
    left = list(errors)
    return lambda: left.pop(0) if left else 0.01


def test_a_failure_goes_to_another_server_at_once_and_then_waits() -> None:
    servers = [Server(next=lambda: Unavailable("down")) for _ in range(3)]

    async def run() -> None:
        with pytest.raises(Unavailable, match=r"down \(tried \d+ times\)"):
            await pool_of(servers).call(send, 60.0)

    virtual_time.run(run())
    times = sorted(at for server in servers for at in server.seen_s)
    assert times[:3] == [0.0, 0.0, 0.0]
    assert times[3] == pytest.approx(0.1, abs=0.01)
    assert 59.5 < times[-1] < 60.0


def test_it_tries_until_the_deadline_and_no_longer() -> None:
    server = Server(next=lambda: Unavailable("refused"))

    async def run() -> float:
        with pytest.raises(Unavailable):
            await pool_of([server]).call(send, 60.0)
        return asyncio.get_running_loop().time()

    assert 59 < virtual_time.run(run()) <= 60
    assert 15 < len(server.seen_s) < 40
    waits = [b - a for a, b in zip(server.seen_s, server.seen_s[1:], strict=False)]
    assert waits[0] == pytest.approx(0.1)
    assert max(waits) <= 5.001


def test_a_server_that_comes_back_within_the_deadline_answers() -> None:
    async def run() -> str:
        loop = asyncio.get_running_loop()
        server = Server(next=lambda: 0.01 if loop.time() > 30 else Unavailable("refused"))
        return await pool_of([server]).call(send, 60.0)

    assert virtual_time.run(run()) == "grpc://s0:1"


def test_attempts_bound_what_is_tried_once_more_per_further_server() -> None:
    servers = [Server(next=lambda: Unavailable("down")) for _ in range(3)]

    async def run() -> None:
        with pytest.raises(Unavailable):
            await pool_of(servers, policy=RetryPolicy(attempts=2)).call(send, 60.0)

    virtual_time.run(run())
    assert sum(len(server.seen_s) for server in servers) == 4


def test_a_full_server_is_left_alone_until_its_retry_after() -> None:
    first = Server(next=failing(ResourceExhausted("full", retry_after_s=9.0)))
    second = Server(next=failing(ResourceExhausted("full", retry_after_s=4.0)))

    async def run() -> str:
        return await pool_of([first, second]).call(send, 60.0)

    virtual_time.run(run())
    seen = {server.name: server.seen_s for server in (first, second)}
    assert seen == {"grpc://s0:1": [0.0], "grpc://s1:1": [0.0, 4.0]}


@pytest.mark.parametrize("timeout_s", [2.0, 8.0, 60.0])
def test_a_server_that_hangs_is_left_in_time(timeout_s: float) -> None:
    hung, well = Server(hangs=True), Server()

    async def run() -> tuple[str, float, str]:
        pool = pool_of([hung, well], prefer="first")
        first = await pool.call(send, timeout_s)
        took_s = asyncio.get_running_loop().time()
        return first, took_s, await pool.call(send, timeout_s)

    first, took_s, second = virtual_time.run(run())
    assert first == second == well.name
    assert took_s < min(7.0, timeout_s / 2)
    assert len(hung.seen_s) == hung.cancelled == 1


def test_a_slow_server_that_answers_polls_is_not_left() -> None:
    slow, spare = Server(next=lambda: 50.0), Server()

    async def run() -> str:
        return await pool_of([slow, spare], prefer="first").call(send, 60.0)

    assert virtual_time.run(run()) == slow.name
    assert slow.polls > 5
    assert not spare.seen_s


def test_a_poll_finds_out_whether_a_server_is_back_not_a_message() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        broken = Server(next=failing(Unavailable("gone")))
        well = Server()
        pool = pool_of([broken, well], prefer="first")
        for _ in range(10):
            await pool.call(send, 60.0)
            await asyncio.sleep(0.01)
        assert len(broken.seen_s) == 1
        broken.hangs = True
        await asyncio.sleep(1.0)
        for _ in range(10):
            await pool.call(send, 60.0)
            await asyncio.sleep(1.0)
        assert broken.polls > 0
        assert len(broken.seen_s) == 1
        broken.hangs = False
        until_s = loop.time() + 40
        while loop.time() < until_s and len(broken.seen_s) == 1:
            await pool.call(send, 60.0)
            await asyncio.sleep(1.0)
        assert len(broken.seen_s) == 2
        assert all(state.is_up for state in pool.states())

    virtual_time.run(run())


@pytest.mark.parametrize(
    ("prefer", "expected"), [("first", {0}), ("least_busy", {0, 1, 2}), ("round_robin", {0, 1, 2})]
)
def test_first_sticks_and_the_others_spread(prefer: Any, expected: set[int]) -> None:
    servers = [Server() for _ in range(3)]

    async def run() -> None:
        pool = pool_of(servers, prefer=prefer)
        await asyncio.gather(*(pool.call(send, 60.0) for _ in range(6)))

    virtual_time.run(run())
    counts = {n: len(server.seen_s) for n, server in enumerate(servers) if server.seen_s}
    assert set(counts) == expected
    assert set(counts.values()) == {6 // len(expected)}


def test_the_least_busy_by_weight_gets_the_next() -> None:
    servers = [Server(next=lambda: 1.0) for _ in range(2)]

    async def run() -> None:
        pool = pool_of(servers)
        calls = [asyncio.ensure_future(pool.call(send, 60.0, weight=w)) for w in (10, 1, 1, 1)]
        await asyncio.gather(*calls)

    virtual_time.run(run())
    assert sorted(len(server.seen_s) for server in servers) == [1, 3]


def test_hedges_wait_for_the_95th_percentile_of_what_was_seen() -> None:
    async def run() -> None:
        loop = asyncio.get_running_loop()
        takes_s = iter([0.010 * (1 + n % 20) for n in range(30)] + [9.0])
        slow, quick = Server(next=lambda: next(takes_s)), Server()
        pool = pool_of([slow, quick], prefer="first", hedge=Hedge(max_share=1.0))
        for _ in range(20):
            await pool.call(send, 60.0)
        assert not quick.seen_s
        for _ in range(10):
            await pool.call(send, 60.0)
        began_s, before = loop.time(), len(quick.seen_s)
        assert await pool.call(send, 60.0) == quick.name
        assert quick.seen_s[before] - began_s == pytest.approx(0.19, abs=0.011)
        assert slow.under_way == 0
        assert slow.cancelled >= 1

    virtual_time.run(run())


def errors() -> st.SearchStrategy[RewardError]:
    retry_after = st.one_of(st.none(), st.floats(0, 20))
    return st.one_of(
        st.builds(lambda s: Unavailable("down", retry_after_s=s), retry_after),
        st.builds(lambda s: ResourceExhausted("full", retry_after_s=s), retry_after),
        st.builds(lambda: Unavailable("this scorer has failed", retryable=False)),
        st.builds(lambda: InvalidArgument("wrong")),
        st.builds(lambda: Internal("a bug")),
    )


@settings(max_examples=60, deadline=None)
@given(
    outcomes=st.lists(
        st.lists(
            st.one_of(st.floats(0.0, 30.0), errors(), st.tuples(st.floats(0, 5), errors())),
            max_size=8,
        ),
        min_size=1,
        max_size=4,
    ),
    hanging=st.sets(st.integers(0, 3)),
    calls=st.lists(st.tuples(st.floats(0, 20), st.floats(0.2, 30)), min_size=1, max_size=8),
    attempts=st.one_of(st.none(), st.integers(1, 4)),
    prefer=st.sampled_from(["least_busy", "round_robin", "first"]),
    hedge=st.sampled_from([None, Hedge(0.5, 0.25), Hedge(None, 0.25), Hedge(0.0)]),
    seed=st.integers(0, 1000),
)
def test_every_message_gets_one_result_in_time_and_leaves_nothing_behind(
    outcomes: Any, hanging: Any, calls: Any, attempts: Any, prefer: Any, hedge: Any, seed: int
) -> None:
    random.seed(seed)
    servers = []
    for number, script in enumerate(outcomes):
        left = list(script)
        servers.append(
            Server(next=lambda left=left: left.pop(0) if left else 0.01, hangs=number in hanging)
        )
    results: Counter[str] = Counter()

    async def one(pool: Pool, begin_s: float, timeout_s: float) -> None:
        await asyncio.sleep(begin_s)
        clock = asyncio.get_running_loop().time
        began_s = clock()
        sent = 0

        async def counted(endpoint: Endpoint, left_s: float) -> str:
            nonlocal sent
            sent += 1
            assert clock() + left_s <= began_s + timeout_s + 1e-6
            return await send(endpoint, left_s)

        try:
            assert await pool.call(counted, timeout_s) in {server.name for server in servers}
            results["answered"] += 1
        except RewardError:
            results["failed"] += 1
        assert clock() - began_s <= timeout_s + 0.3
        if attempts is not None:
            assert sent <= attempts + len(servers) - 1

    async def run() -> None:
        pool = pool_of(servers, prefer=prefer, hedge=hedge, policy=RetryPolicy(attempts=attempts))
        await asyncio.gather(*(one(pool, *call) for call in calls))
        assert all(state.outstanding == 0 for state in pool.states())
        assert all(server.under_way == 0 for server in servers)
        await pool.close()

    virtual_time.run(run())
    assert results.total() == len(calls)


def test_lists_of_urls() -> None:
    sources = parse_sources(" grpc://a:1, grpc+dns://b:2 , file:/tmp/urls")
    assert [source.text for source in sources] == ["grpc://a:1", "grpc+dns://b:2", "file:/tmp/urls"]
    assert [source.is_static for source in sources] == [True, False, False]
    with pytest.raises(InvalidArgument, match="twice"):
        parse_sources(["grpc://a:1", "grpc://a:1"])
    with pytest.raises(InvalidArgument, match="no url"):
        parse_sources([])
    with pytest.raises(InvalidArgument, match="names no file"):
        parse_sources("file:")


def test_every_address_of_a_name_and_its_changes() -> None:
    found = ["10.0.0.1", "10.0.0.2"]
    servers: dict[str, Server] = {}

    async def lookup(host: str, port: int) -> list[str]:
        assert (host, port) == ("rewards", 7)
        return list(found)

    async def run() -> None:
        def connect(address: Any) -> Any:
            assert address.server_name == "rewards"
            return servers.setdefault(address.host, Server(address.url))

        pool = Pool(parse_sources("grpc+dns://rewards:7"), connect, lookup=lookup)
        for _ in range(4):
            await pool.call(send, 5.0)
        assert [len(server.seen_s) for server in servers.values()] == [2, 2]
        found[:] = ["10.0.0.3"]
        servers["10.0.0.1"].next = servers["10.0.0.2"].next = lambda: Unavailable("gone")
        await asyncio.sleep(2.0)
        assert await pool.call(send, 5.0) == "grpc://10.0.0.3:7"
        await pool.close()

    virtual_time.run(run())


def test_a_file_that_names_the_server_is_read_again_after_a_failure(tmp_path: Any) -> None:
    path = tmp_path / "rewards.url"

    async def run() -> None:
        old, new = Server("old"), Server("new")
        pool = Pool(
            parse_sources(f"file:{path}"),
            lambda address: old if address.host == "old" else new,  # type: ignore[arg-type,return-value]
        )
        with pytest.raises(Unavailable, match=r"rewards.url: cannot be read \(No such file"):
            await pool.call(send, 2.0)
        path.write_text("grpc://old:1\n")
        await asyncio.sleep(2.0)
        assert await pool.call(send, 5.0) == "old"
        old.next = lambda: Unavailable("gone")
        path.write_text("grpc://new:1\n")
        assert await pool.call(send, 5.0) == "new"
        await pool.close()

    asyncio.run(run())
