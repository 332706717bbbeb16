"""Turns two snapshots into the numbers of one frame; pure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from reward_client.types import ScorerInfo
from reward_server.top.reading import Snapshot


@dataclass(frozen=True, slots=True)
class Row:
    """One scorer; None stands for what is not known, rates are over the window of the frame.

    Attributes:
        name: as configured.
        state: of the scorer.
        ready: replicas that can score.
        replicas: all of them.
        items_per_s: answered, failed ones included.
        waiting: items no replica has taken.
        oldest_s: age of the oldest of them.
        fill: mean share of the batch limit in use.
        p50_s: median time from the arrival of a request to the scorer's last answer.
        p95_s: 95th percentile of the same.
        failed_per_s: items without a score.
        restarts: of its workers since the server started.
        rss_bytes: of its workers together.
        gpu_bytes: of its workers together.
        trouble: why it, or one of its replicas, is not well.
    """

    name: str
    state: str
    ready: int
    replicas: int
    items_per_s: float
    waiting: int
    oldest_s: float
    fill: float | None
    p50_s: float | None
    p95_s: float | None
    failed_per_s: float
    restarts: int
    rss_bytes: int | None
    gpu_bytes: int | None
    trouble: str


@dataclass(frozen=True, slots=True)
class Head:
    """The server as a whole."""

    version: str
    revision: str
    uptime_s: float | None
    cpu_share: float
    rss_bytes: int
    requests_per_s: float
    turned_away_per_s: float
    held_bytes: int
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything that is shown at one moment."""

    head: Head
    rows: tuple[Row, ...]
    window_s: float


def frame(old: Snapshot, new: Snapshot, now_unix_s: float) -> Frame:
    """Compare two snapshots of one server, the older first.

    A server that was started again in between counts from zero: then `old` is ignored.
    """
    started = "process_start_time_seconds"
    if old.total(started) != new.total(started):
        old = Snapshot(old.at_s, (), {})
    seconds = max(new.at_s - old.at_s, 1e-3)
    rows = tuple(_row(old, new, info, seconds) for info in new.infos)
    return Frame(_head(old, new, seconds, now_unix_s), rows, seconds)


def quantile(share: float, buckets: dict[float, float]) -> float | None:
    """A quantile of a histogram, interpolated as Prometheus does it.

    Args:
        share: in (0, 1).
        buckets: upper bound -> observations up to it; infinity holds them all.

    Returns:
        None if nothing was observed; the highest finite bound if it lies beyond.
    """
    bounds = sorted(buckets)
    if not bounds or buckets[bounds[-1]] <= 0:
        return None
    rank, below, count_below = share * buckets[bounds[-1]], 0.0, 0.0
    for bound in bounds:
        count = buckets[bound]
        if count >= rank:
            if math.isinf(bound):
                return below
            inside = count - count_below
            return below + (bound - below) * ((rank - count_below) / inside if inside else 1.0)
        below, count_below = bound, count
    return below


def _row(old: Snapshot, new: Snapshot, info: ScorerInfo, seconds: float) -> Row:
    name = info.name

    def gained(metric: str, **labels: str) -> float:
        before, after = old.total(metric, **labels), new.total(metric, **labels)
        return max(after - before, 0.0)

    items = gained("reward_items_total", scorer=name)
    good = gained("reward_items_total", scorer=name, code="OK")
    batches = gained("reward_batch_fill_ratio_count", scorer=name)
    filled = gained("reward_batch_fill_ratio_sum", scorer=name)
    times = _bucket_gains(old, new, "reward_scorer_seconds_bucket", name)
    return Row(
        name=name,
        state=info.state,
        ready=sum(replica.state == "READY" for replica in info.replicas),
        replicas=len(info.replicas),
        items_per_s=items / seconds,
        waiting=info.waiting_items,
        oldest_s=info.oldest_wait_s,
        fill=filled / batches if batches else None,
        p50_s=quantile(0.5, times),
        p95_s=quantile(0.95, times),
        failed_per_s=(items - good) / seconds,
        restarts=sum(replica.restarts for replica in info.replicas),
        rss_bytes=_sum_known(replica.rss_bytes for replica in info.replicas),
        gpu_bytes=_sum_known(replica.device_memory_bytes for replica in info.replicas),
        trouble=_trouble(info),
    )


def _head(old: Snapshot, new: Snapshot, seconds: float, now_unix_s: float) -> Head:
    def per_s(metric: str, **labels: str) -> float:
        return max(new.total(metric, **labels) - old.total(metric, **labels), 0.0) / seconds

    begin_s = new.total("process_start_time_seconds")
    return Head(
        version=new.label("reward_build_info", "version"),
        revision=new.label("reward_build_info", "revision"),
        uptime_s=now_unix_s - begin_s if begin_s else None,
        cpu_share=per_s("process_cpu_seconds_total") if old.samples else 0.0,
        rss_bytes=int(new.total("process_resident_memory_bytes")),
        requests_per_s=per_s("reward_requests_total"),
        turned_away_per_s=per_s("reward_requests_total", code="RESOURCE_EXHAUSTED"),
        held_bytes=int(new.total("reward_admitted_bytes")),
        limit_bytes=int(new.total("reward_admitted_bytes_limit")),
    )


def _bucket_gains(old: Snapshot, new: Snapshot, metric: str, scorer: str) -> dict[float, float]:
    before = old.samples.get(metric, {})
    return {
        float(dict(labels)["le"]): value - before.get(labels, 0.0)
        for labels, value in new.samples.get(metric, {}).items()
        if ("scorer", scorer) in labels
    }


def _sum_known(values: Iterable[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _trouble(info: ScorerInfo) -> str:
    if info.last_error:
        return info.last_error
    lost = [r for r in info.replicas if r.state != "READY" and r.last_error]
    return f"replica {lost[0].name}: {lost[0].last_error}" if lost else ""
