"""Admission by itself, on a clock of the test's own."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_client.errors import InvalidArgument, ResourceExhausted
from reward_server.scheduling.admission import Admission, Ticket


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_items_and_bytes_are_bounded() -> None:
    admission = Admission(10, 1000, Clock())
    with pytest.raises(InvalidArgument, match="smaller requests"):
        admission.admit(["a"], 11, 0, "me")
    with admission.admit(["a"], 8, 400, "me") as first:
        with pytest.raises(ResourceExhausted, match="places of scorer 'a'") as full:
            admission.admit(["a"], 4, 0, "me")
        assert full.value.retry_after_s == 1.0  # nothing has left yet: a guess
        with pytest.raises(ResourceExhausted, match="bytes"):
            admission.admit(["b"], 1, 700, "me")
        with admission.admit(["b"], 10, 0, "me"):  # another scorer has places of its own
            assert (admission.taken("a"), admission.taken("b")) == (8, 10)
        assert admission.bytes == 400
        first.grow(5000)  # alone in the server: never turned away
    assert (admission.taken("a"), admission.taken("b"), admission.bytes) == (0, 0, 0)


def test_a_place_is_free_as_soon_as_its_item_is_answered() -> None:
    admission = Admission(10, 1000, Clock())
    with admission.admit(["a", "b"], 10, 0, "me") as ticket:
        for _ in range(4):
            ticket.answered("a")
        assert (admission.taken("a"), admission.taken("b")) == (6, 10)
        with admission.admit(["a"], 4, 0, "you"), pytest.raises(ResourceExhausted):
            admission.admit(["a", "b"], 1, 0, "you")
    assert (admission.taken("a"), admission.taken("b")) == (0, 0)


def test_retry_after_is_the_drain_rate_and_remembers_promises() -> None:
    clock = Clock()
    admission = Admission(10, 1000, clock)
    ticket = admission.admit(["a"], 10, 0, "me")
    clock.now_s = 2.0
    for _ in range(4):
        ticket.answered("a")
    assert admission.lanes["a"].rate.per_s() == pytest.approx(2.0)

    def told(items: int) -> float:
        with pytest.raises(ResourceExhausted) as full:
            admission.admit(["a"], items, 0, "you")
        assert full.value.retry_after_s is not None
        return full.value.retry_after_s

    # Two places too few at two per second; those who come later are sent behind one another.
    assert told(6) == pytest.approx(1.0)
    assert told(6) == pytest.approx(2.0)
    assert told(6) == pytest.approx(3.0)
    clock.now_s = 8.0  # promises are kept or forgotten; the queue has stood still since
    assert told(6) == pytest.approx(2 / (4 / 8))
    clock.now_s = 1e4
    ticket.release()
    assert admission.bytes == admission.taken("a") == 0


def test_a_stalled_queue_is_not_as_fast_as_it_was() -> None:
    clock = Clock()
    admission = Admission(4, 1000, clock)
    with admission.admit(["a"], 4, 0, "me") as ticket:
        clock.now_s = 1.0
        for _ in range(4):
            ticket.answered("a")
    assert admission.lanes["a"].rate.per_s() == pytest.approx(4.0)
    clock.now_s = 100.0
    with admission.admit(["a"], 4, 0, "me"):
        assert admission.lanes["a"].rate.per_s() == pytest.approx(4.0)  # the last that is known
        clock.now_s = 105.0
        assert admission.lanes["a"].rate.per_s() == pytest.approx(0.2)


def test_a_newcomer_finds_a_place_however_many_one_caller_takes() -> None:
    admission = Admission(160, 10**9, Clock())
    for _ in range(150):
        admission.admit(["a"], 1, 0, "greedy")
    with pytest.raises(ResourceExhausted):
        admission.admit(["a"], 1, 0, "greedy")
    for name in range(10):
        admission.admit(["a"], 1, 0, f"newcomer {name}")
    with pytest.raises(ResourceExhausted):
        admission.admit(["a"], 1, 0, "one too many")


steps = st.lists(
    st.tuples(
        st.sampled_from(["admit", "answer", "grow", "release"]),
        st.integers(0, 30),
        st.sampled_from("xyz"),
        st.sampled_from([("a",), ("b",), ("a", "b")]),
    ),
    max_size=60,
)


def admitted(
    admission: Admission, scorers: tuple[str, ...], amount: int, client: str
) -> Ticket | float | None:
    try:
        return admission.admit(scorers, amount, amount, client)
    except ResourceExhausted as error:
        return error.retry_after_s


@given(steps)
@settings(max_examples=80, deadline=None)
def test_the_books_balance(taken: list[tuple[str, int, str, tuple[str, ...]]]) -> None:
    clock = Clock()
    admission = Admission(64, 500, clock)
    held: list[tuple[Ticket, dict[str, int]]] = []
    for action, amount, client, scorers in taken:
        clock.now_s += 0.1
        if action == "admit":
            found = admitted(admission, scorers, amount, client)
            if isinstance(found, Ticket):
                held.append((found, dict.fromkeys(scorers, amount)))
            else:
                assert 0.1 <= (found or 0) <= 30
        elif held:
            ticket, mine = held[amount % len(held)]
            if action == "release":
                held.pop(amount % len(held))
                ticket.release()
                ticket.release()  # twice is once
            elif action == "answer":
                name = next(iter(mine))
                ticket.answered(name)
                mine[name] = max(0, mine[name] - 1)
            else:
                try:
                    ticket.grow(amount)
                except ResourceExhausted:
                    assert len(held) > 1
        for name in "ab":
            assert admission.taken(name) == sum(mine.get(name, 0) for _, mine in held)
            assert 0 <= admission.taken(name) <= 64
        assert admission.bytes == sum(ticket.bytes for ticket, _ in held)
