"""The queue of a scorer as a state machine: whatever happens, every item is answered once."""

from __future__ import annotations

import asyncio
import math

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from reward_client.types import Priority
from reward_server.observability.metrics import Metrics
from reward_server.scheduling.batching import BatchLimits, Job
from reward_server.scheduling.queue import MAX_CRASHES, Answer, Work, WorkQueue, next_batches
from reward_server.workers.ipc import BatchDone, Failure, ItemMessage, Score

LIMITS = BatchLimits(max_items=4, max_pixels=60, max_wait_s=0.0)


class QueueMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.metrics = Metrics()
        self.queue = self.run(self.make())
        self.works: list[Work] = []
        self.running: list[list[Work]] = []
        self.resolved: dict[int, Answer] = {}
        self.left: set[int] = set()  # withdrawn by whoever asked
        self.last_taken: dict[int, int] = {}

    async def make(self) -> WorkQueue:
        return WorkQueue("machine", self.metrics)

    def run(self, coroutine):
        return self.loop.run_until_complete(coroutine)

    def waiting(self) -> list[Work]:
        held = {work.job.key for batch in self.running for work in batch}
        return [work for work in self.works if not work.answer.done() and work.job.key not in held]

    @rule(
        clients=st.lists(st.sampled_from("abc"), min_size=1, max_size=6),
        priority=st.sampled_from(list(Priority)),
        pixels=st.integers(1, 80),
        is_late=st.booleans(),
    )
    def put(self, clients: list[str], priority: Priority, pixels: int, is_late: bool) -> None:
        fresh = []
        for client in clients:
            key = len(self.works)
            now_s = self.loop.time()
            deadline_at_s = now_s - 1.0 if is_late else math.inf
            work = Work(
                Job(key, client, priority, pixels, now_s, deadline_at_s),
                ItemMessage("", [], [], None, "raw"),
                [np.zeros((1, 1, 3), np.uint8)],
                False,
                self.loop.create_future(),
            )
            self.works.append(work)
            fresh.append(work)
        self.queue.put(fresh)

    @precondition(lambda self: len(self.running) < 3)
    @rule()
    def take(self) -> None:
        async def attempt() -> list[Work]:
            return (await asyncio.wait_for(next_batches([(self.queue, LIMITS)]), 0.02))[0]

        alive = [work for work in self.waiting() if work.job.deadline_at_s == math.inf]
        try:
            batch = self.run(attempt())
        except asyncio.TimeoutError:
            assert not alive, "there was work and nobody got it"
            return
        assert alive
        assert 1 <= len(batch) <= LIMITS.max_items
        assert len(batch) == 1 or sum(w.job.pixels for w in batch) <= LIMITS.max_pixels
        assert len(batch) == 1 or not any(work.job.alone for work in batch)
        assert [w.job.key for w in batch] == sorted(w.job.key for w in batch)
        held = {work.job.key for other in self.running for work in other}
        assert not held & {work.job.key for work in batch}, "one item with two workers"
        assert not any(work.answer.done() for work in batch), "answered or withdrawn before"
        self.running.append(batch)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        batch = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        outcomes: list[Score | Failure] = [
            Score(float(work.job.key), float(work.job.key), {}) for work in batch
        ]
        self.queue.finish(batch, BatchDone(1, outcomes, begin_s=0.0, compute_s=0.1))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        batch = self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))
        wanted = [work for work in batch if not work.answer.done()]
        kept = self.queue.requeue(batch, "the worker died")
        again = [work for work in wanted if work.crashes < MAX_CRASHES]
        assert kept == len(again)
        assert all(work.job.alone for work in again)
        assert all(work.answer.done() for work in wanted if work.crashes >= MAX_CRASHES)

    @precondition(lambda self: self.works)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        chosen = data.draw(st.lists(st.sampled_from(range(len(self.works))), max_size=5))
        works = [self.works[index] for index in chosen]
        self.left |= {work.job.key for work in works if not work.answer.done()}
        self.queue.withdraw(works)

    @rule()
    def give_up(self) -> None:
        before = self.waiting()
        self.queue.fail_all("no worker", retryable=True)
        assert all(work.answer.done() for work in before)

    @invariant()
    def nothing_is_lost_or_made_up(self) -> None:
        if not hasattr(self, "works"):
            return
        for work in self.works:
            key = work.job.key
            if not work.answer.done():
                assert key not in self.resolved
                continue
            if work.answer.cancelled():
                assert key in self.left
                continue
            answer = work.answer.result()
            assert self.resolved.setdefault(key, answer) is answer, "answered twice"
            if isinstance(answer.outcome, Score):
                assert answer.outcome.score == key, "the score of another item"
                assert key not in self.left
                assert work.job.deadline_at_s == math.inf
        gauge = self.metrics.registry.get_sample_value("reward_queue_items", {"scorer": "machine"})
        if gauge is not None:
            assert gauge == len(self.waiting()) + sum(len(batch) for batch in self.running)

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            # Whatever state it is in, a worker that never fails gets all that is left.
            while self.running or any(w.job.deadline_at_s == math.inf for w in self.waiting()):
                if not self.running:
                    self.take()
                batch = self.running.pop()
                scores: list[Score | Failure] = [Score(float(w.job.key), 0.0, {}) for w in batch]
                done = BatchDone(1, scores, begin_s=0.0, compute_s=0.1)
                self.queue.finish(batch, done)
                self.nothing_is_lost_or_made_up()
            self.loop.close()


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)
