"""Retries, failover and hedging on a virtual clock: every order of events that hypothesis finds."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from reward_client._endpoints import Endpoints, Hedge, split_urls
from reward_client._exchange import GRACE_S, NEVER, Attempt, Exchange
from reward_client._retries import RetryPolicy
from reward_client.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ResourceExhausted,
    RewardError,
    Unavailable,
)

SECONDS = st.floats(0.0, 20.0).map(lambda value: round(value, 3))
MAX_SHARE = 0.25


def an_error(kind: int, retry_after_s: float | None) -> RewardError:
    return (
        Unavailable("down", retry_after_s=retry_after_s),
        ResourceExhausted("full", retry_after_s=retry_after_s),
        Unavailable("this scorer has failed", retryable=False),
        DeadlineExceeded("slow"),
        InvalidArgument("wrong"),
        Internal("answered something else"),
    )[kind]


class World(RuleBasedStateMachine):
    """A driver, servers and a clock; checks every promise as it goes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.exchange: Exchange[str, str] | None = None
        self.out: list[Attempt[str]] = []
        self.deadlines: dict[int, float] = {}
        self.results: dict[int, str | RewardError] = {}
        self.sent: dict[int, int] = {}
        self.forbidden: dict[tuple[int, int], float] = {}
        self.hedges = 0

    @precondition(lambda self: self.exchange is None)
    @rule(
        servers=st.integers(1, 4),
        attempts=st.integers(1, 4),
        in_flight=st.integers(1, 3),
        prefer=st.sampled_from(["least_busy", "first"]),
        hedge=st.sampled_from([None, Hedge(0.5, MAX_SHARE), Hedge(None, MAX_SHARE), Hedge(0.0)]),
        jitter=st.floats(0, 0.999),
    )
    def start(self, servers, attempts, in_flight, prefer, hedge, jitter) -> None:  # type: ignore[no-untyped-def]
        self.endpoints = Endpoints([f"s{i}" for i in range(servers)], prefer, hedge)
        policy = RetryPolicy(attempts=attempts)
        self.exchange = Exchange(
            self.endpoints, policy, in_flight=in_flight, uniform=lambda: jitter
        )
        self.in_flight, self.limit = in_flight, attempts + servers - 1

    @precondition(lambda self: self.exchange is not None)
    @rule(timeout_s=st.floats(0.1, 30.0))
    def add(self, timeout_s: float) -> None:
        assert self.exchange
        number = self.exchange.add(f"message {len(self.deadlines)}", timeout_s, self.now)
        assert number == len(self.deadlines)
        self.deadlines[number] = self.now + timeout_s
        self.poll()

    @precondition(lambda self: self.exchange is not None)
    @rule(seconds=SECONDS)
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.poll()

    @precondition(lambda self: self.exchange is not None)
    @rule()
    def sleep_as_told(self) -> None:
        assert self.exchange
        wake = self.exchange.wake_at_s()
        if wake != NEVER:
            self.now = max(self.now, wake)
        self.poll()

    @precondition(lambda self: bool(self.out))
    @rule(which=st.integers(0, 100))
    def answer(self, which: int) -> None:
        assert self.exchange
        attempt = self.out.pop(which % len(self.out))
        self.exchange.settle(attempt, f"answer to {attempt.payload}", self.now)
        self.poll()

    @precondition(lambda self: bool(self.out))
    @rule(
        which=st.integers(0, 100),
        kind=st.integers(0, 5),
        retry_after_s=st.one_of(st.none(), SECONDS),
    )
    def fail(self, which: int, kind: int, retry_after_s: float | None) -> None:
        assert self.exchange
        attempt = self.out.pop(which % len(self.out))
        error = an_error(kind, retry_after_s)
        self.exchange.settle(attempt, error, self.now)
        where = (attempt.call, attempt.endpoint)
        if not error.retryable:
            self.forbidden[where] = NEVER
        elif error.retry_after_s:
            self.forbidden[where] = self.now + error.retry_after_s
        self.poll()

    def poll(self) -> None:
        assert self.exchange
        for attempt in self.exchange.due(self.now):
            call = attempt.call
            assert call not in self.results, "sent although it is done"
            self.sent[call] = self.sent.get(call, 0) + 1
            assert self.sent[call] <= self.limit
            assert attempt.started_s == self.now < self.deadlines[call]
            assert self.now + attempt.timeout_s == pytest.approx(self.deadlines[call])
            assert self.now >= self.forbidden.get((call, attempt.endpoint), -NEVER)
            rivals = [other for other in self.out if other.call == call]
            assert len(rivals) <= 1, "more than two under way"
            assert attempt.endpoint not in [other.endpoint for other in rivals]
            self.hedges += len(rivals)
            self.out.append(attempt)
        for attempt in self.exchange.abandoned():
            self.out.remove(attempt)  # raises if it was named before, or had ended
        for number, result in self.exchange.finished():
            assert number not in self.results, "two results"
            self.results[number] = result
            assert isinstance(result, RewardError) or result == f"answer to message {number}"
            assert number not in [attempt.call for attempt in self.out]

    @invariant()
    def what_is_known_of_the_servers_is_true(self) -> None:
        if self.exchange is None:
            return
        for index, state in enumerate(self.endpoints.states(self.now)):
            assert state.outstanding == sum(a.endpoint == index for a in self.out)
        assert len({attempt.call for attempt in self.out}) <= self.in_flight
        if self.endpoints.hedge is None or len(self.endpoints) == 1:
            assert self.hedges == 0
        else:
            share = self.endpoints.hedge.max_share
            assert self.hedges <= 1 + share * sum(self.sent.values())

    @invariant()
    def nobody_sleeps_past_a_deadline(self) -> None:
        if self.exchange is None or self.exchange.is_idle:
            return
        unfinished = sorted(self.deadlines.keys() - self.results.keys())[: self.in_flight]
        latest = min(self.deadlines[number] for number in unfinished) + GRACE_S
        assert self.exchange.wake_at_s() <= latest

    def teardown(self) -> None:
        """Servers fall silent; still every message gets exactly one result, in time."""
        if self.exchange is None:
            return
        for _ in range(20 * len(self.deadlines) + 1):
            if self.exchange.is_idle:
                break
            self.now = max(self.now, self.exchange.wake_at_s())
            self.poll()
        assert self.exchange.is_idle
        assert self.results.keys() == self.deadlines.keys()
        assert not self.out
        assert self.exchange.wake_at_s() == NEVER


World.TestCase.settings = settings(
    max_examples=int(os.environ.get("EXCHANGE_EXAMPLES", "50")),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestExchange = World.TestCase


class Simple:
    """One message at a time, on a clock that jumps to the next event."""

    def __init__(self, servers: int, attempts: int = 5, **options: object) -> None:
        self.endpoints = Endpoints([f"s{i}" for i in range(servers)], **options)  # type: ignore[arg-type]  # Hedge and prefer
        policy = RetryPolicy(attempts=attempts)
        self.exchange: Exchange[str, str] = Exchange(
            self.endpoints, policy, in_flight=1, uniform=lambda: 0.0
        )
        self.now = 0.0

    def next(self) -> Attempt[str]:
        attempts = self.exchange.due(self.now)
        while not attempts:
            self.now = self.exchange.wake_at_s()
            attempts = self.exchange.due(self.now)
        (attempt,) = attempts
        return attempt


def test_a_failure_goes_to_another_server_at_once_and_then_waits() -> None:
    world = Simple(3)
    world.exchange.add("m", 60.0, 0.0)
    visited, times = [], []
    for _ in range(5):
        attempt = world.next()
        visited.append(attempt.endpoint)
        times.append(world.now)
        world.exchange.settle(attempt, Unavailable("down"), world.now)
    assert sorted(visited[:3]) == [0, 1, 2]
    assert times == [0.0, 0.0, 0.0, pytest.approx(0.1), pytest.approx(0.3)]


def test_attempts_count_once_more_per_further_server() -> None:
    world = Simple(3, attempts=2)
    world.exchange.add("m", 60.0, 0.0)
    for _ in range(4):
        world.exchange.settle(world.next(), Unavailable("down"), world.now)
    ((_, result),) = world.exchange.finished()
    assert isinstance(result, Unavailable)


def test_a_full_server_is_left_alone_until_its_retry_after() -> None:
    world = Simple(2)
    world.exchange.add("m", 60.0, 0.0)
    world.exchange.settle(world.next(), ResourceExhausted("full", retry_after_s=9.0), 0.0)
    second = world.next()
    assert world.now == 0.0
    world.exchange.settle(second, ResourceExhausted("full", retry_after_s=4.0), 0.0)
    third = world.next()
    assert third.endpoint == second.endpoint
    assert world.now == 4.0


def test_first_sticks_and_least_busy_spreads() -> None:
    for prefer, expected in (("first", {0}), ("least_busy", {0, 1, 2})):
        endpoints = Endpoints(["a", "b", "c"], prefer)  # type: ignore[arg-type]
        assert {endpoints.take(range(3), 0.0) for _ in range(3)} == expected


def test_one_message_at_a_time_finds_out_whether_a_server_is_back() -> None:
    endpoints = Endpoints(["a", "b"], "first")
    endpoints.take([0], 0.0)
    endpoints.failed(0, Unavailable("gone"), 0.0)
    assert endpoints.take(range(2), 0.4) == 1
    assert endpoints.take(range(2), 0.6) == 0
    assert endpoints.take(range(2), 0.6) == 1
    endpoints.answered(0, 0.1)
    assert endpoints.take(range(2), 0.6) == 0
    assert endpoints.states(0.6)[0].is_up


def test_hedges_wait_for_the_95th_percentile_of_what_was_seen() -> None:
    world = Simple(2, hedge=Hedge(max_share=1.0))
    for number in range(30):
        world.exchange.add("m", 60.0, world.now)
        attempt = world.next()
        assert world.exchange.wake_at_s() > 50 or number >= 20
        world.now += 0.010 * (1 + number % 20)
        world.exchange.settle(attempt, "answer", world.now)
        world.exchange.finished()
    world.exchange.add("m", 60.0, world.now)
    first, started = world.next(), world.now
    hedge = world.next()
    assert hedge.endpoint != first.endpoint
    assert world.now - started == pytest.approx(0.19, abs=0.011)
    world.exchange.settle(hedge, "answer", world.now)
    assert world.exchange.abandoned() == [first]
    assert world.exchange.finished() == [(30, "answer")]
    world.exchange.settle(first, "late answer", world.now)
    assert world.exchange.finished() == []


def test_lists_of_urls() -> None:
    assert split_urls(" grpc://a:1, grpc://b:2 ") == ("grpc://a:1", "grpc://b:2")
    with pytest.raises(InvalidArgument, match="twice"):
        split_urls(["grpc://a:1", "grpc://a:1"])
    with pytest.raises(InvalidArgument, match="no url"):
        split_urls([])
    with pytest.raises(InvalidArgument, match="'first', got 'best'"):
        Endpoints(["a"], "best")  # type: ignore[arg-type]  # wrong on purpose
