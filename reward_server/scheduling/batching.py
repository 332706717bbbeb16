"""The scheduler of one scorer, as a pure function of (queue, clock).

`plan` decides which waiting jobs form the next batch, which have expired, and when to look again.
It reads no clock and keeps no state, so that all of its promises can be tested as properties:

* nothing is lost and nothing is chosen twice: every job is in the batch, expired, or still waiting;
* a batch never exceeds `max_items`, nor `max_pixels` (except for one job that is larger by itself);
* a job waits at most `max_wait_s` for others, and not at all once the batch is full;
* TRAIN before EVAL before BULK, but every `starvation_s` of waiting lifts a job by one class, so
  that no class waits for ever;
* inside a class clients share the pixels by start-time fair queueing: neither a thousand jobs nor
  huge pictures of one client hold up a client with one;
* a client's own jobs go earliest deadline first, then first come first served.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from reward_client.types import Priority

# What a job costs beside its pixels: messages, text towers, a share of the batch.
_COST_PER_JOB_PX = 64 * 64
_RANK: Mapping[Priority, int] = MappingProxyType(
    {Priority.TRAIN: 0, Priority.EVAL: 1, Priority.BULK: 2}
)


@dataclass(frozen=True, slots=True)
class Job:
    """One item that waits for one scorer.

    Attributes:
        key: unique, and increasing with arrival.
        client: who shares the queue fairly with whom.
        priority: the class.
        pixels: of all its images and references together.
        arrival_s: when it came, on the caller's monotonic clock.
        deadline_at_s: the result is not needed after this; infinity for none.
        alone: must not share a batch (its last batch died with the worker: it may be the cause).
    """

    key: int
    client: str
    priority: Priority
    pixels: int
    arrival_s: float
    deadline_at_s: float = math.inf
    alone: bool = False


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What a batch may hold and how long a job may wait for it.

    Attributes:
        max_items: jobs per batch, at least 1.
        max_pixels: pixels per batch, at least 1.
        max_wait_s: longest wait for a fuller batch while a worker is free.
        starvation_s: waiting that lifts a job by one priority class.
    """

    max_items: int
    max_pixels: int
    max_wait_s: float
    starvation_s: float = 10.0

    def fill(self, batch: Sequence[Job]) -> float:
        """The share of the limits that a batch uses, in [0, 1]."""
        pixels = sum(job.pixels for job in batch)
        return min(1.0, max(len(batch) / self.max_items, pixels / self.max_pixels))


@dataclass(frozen=True, slots=True)
class FairShares:
    """How much each client has had: virtual time by client (pixels), and the clock of the queue.

    A client that was idle joins at `clock`: idleness earns no credit.
    """

    clock: float = 0.0
    by_client: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now.

    Attributes:
        batch: keys to run together, in the order they arrived; empty if it is not time yet.
        expired: keys whose deadline has passed; they are never in `batch`.
        wake_at_s: when to plan again if nothing arrives; None if nothing waits.
        shares: to be passed to the next call; unchanged while `batch` is empty.
    """

    batch: tuple[int, ...]
    expired: tuple[int, ...]
    wake_at_s: float | None
    shares: FairShares


def plan(jobs: Sequence[Job], limits: BatchLimits, shares: FairShares, now_s: float) -> Plan:
    """Choose the next batch of a free worker.

    Args:
        jobs: all that wait, in any order.
        limits: of this worker.
        shares: from the previous plan of this queue.
        now_s: on the clock of `Job.arrival_s`.
    """
    expired = tuple(sorted(job.key for job in jobs if job.deadline_at_s <= now_s))
    gone = frozenset(expired)
    waiting = [job for job in jobs if job.key not in gone]
    if not waiting:
        return Plan((), expired, None, shares)
    chosen, full = _fill(_ordered(waiting, limits, shares, now_s), limits)
    release_at_s = min(_release_at_s(job, limits) for job in waiting)
    if not full and now_s < release_at_s:
        next_expiry_s = min(job.deadline_at_s for job in waiting)
        return Plan((), expired, min(release_at_s, next_expiry_s), shares)
    batch = tuple(sorted(job.key for job in chosen))
    return Plan(batch, expired, now_s, _charged(shares, chosen, waiting))


def _ordered(
    waiting: list[Job], limits: BatchLimits, shares: FairShares, now_s: float
) -> list[Job]:
    def rank(job: Job) -> int:
        return _RANK[job.priority] - int(max(0.0, now_s - job.arrival_s) / limits.starvation_s)

    own_order = sorted(waiting, key=lambda job: (rank(job), job.deadline_at_s, job.key))
    turn = {job.client: shares.by_client.get(job.client, shares.clock) for job in waiting}
    keyed = []
    for job in own_order:
        start = max(turn[job.client], shares.clock)
        turn[job.client] = start + _cost_px(job)
        keyed.append((rank(job), start, job.deadline_at_s, job.key, job))
    keyed.sort(key=lambda entry: entry[:4])
    return [entry[4] for entry in keyed]


def _fill(ordered: list[Job], limits: BatchLimits) -> tuple[list[Job], bool]:
    """The longest prefix within the limits, and whether there is no room for more."""
    first = ordered[0]
    if first.alone or first.pixels >= limits.max_pixels:
        return [first], True
    chosen: list[Job] = []
    pixels = 0
    for job in ordered:
        if len(chosen) == limits.max_items or job.alone or pixels + job.pixels > limits.max_pixels:
            return chosen, True
        chosen.append(job)
        pixels += job.pixels
    return chosen, len(chosen) == limits.max_items or pixels == limits.max_pixels


def _release_at_s(job: Job, limits: BatchLimits) -> float:
    # Waiting for a fuller batch must not cost a job its chance: max_wait_s stays in hand.
    latest = job.deadline_at_s - limits.max_wait_s
    return max(job.arrival_s, min(job.arrival_s + limits.max_wait_s, latest))


def _cost_px(job: Job) -> int:
    return job.pixels + _COST_PER_JOB_PX


def _charged(shares: FairShares, chosen: list[Job], waiting: list[Job]) -> FairShares:
    turn = dict(shares.by_client)
    for job in chosen:
        start = max(turn.get(job.client, shares.clock), shares.clock)
        turn[job.client] = start + _cost_px(job)
    # The clock follows the least served client that still waits, so that debts are remembered
    # exactly as long as any client competes.
    taken = {job.key for job in chosen}
    left = {job.client for job in waiting if job.key not in taken}
    floor = min((turn.get(client, shares.clock) for client in left), default=max(turn.values()))
    clock = max(shares.clock, floor)
    kept = {client: value for client, value in turn.items() if value > clock}
    return FairShares(clock, kept)
