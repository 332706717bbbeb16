"""Gauges of the scorers, computed at scrape time.

A gauge that has to be kept up to date is wrong as soon as an update is missed. What is not known is
absent, never zero.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple, get_args

from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from reward_client.types import ScorerInfo, ScorerState

WINDOW_SCORES = 1024
_SCORER = ("scorer",)
_REPLICA = ("scorer", "replica")


class EndpointUse(NamedTuple):
    """How an upstream server is used for a scorer: items not answered yet, whether it gets any."""

    scorer: str
    endpoint: str
    outstanding_items: int
    is_usable: bool


class ScorerWatch(Collector):
    """Gauges of scorers, replicas and upstream servers, read at every scrape."""

    def __init__(
        self,
        infos: Callable[[], Iterable[ScorerInfo]],
        endpoints: Callable[[], Iterable[EndpointUse]],
        recent_scores: Mapping[str, Collection[float]],
    ) -> None:
        """Prepare."""
        self._infos = infos
        self._endpoints = endpoints
        self._recent_scores = recent_scores

    def collect(self) -> Iterable[Metric]:
        """Yield the families, in the order they are documented."""
        infos = tuple(self._infos())
        yield from self._scorers(infos)
        yield from self._replicas(infos)
        yield from self._upstream()
        yield from self._scores()

    def _scorers(self, infos: Iterable[ScorerInfo]) -> Iterable[Metric]:
        state = GaugeMetricFamily(
            "reward_scorer_state", "1 for the state a scorer is in.", labels=("scorer", "state")
        )
        waiting = GaugeMetricFamily(
            "reward_waiting_items", "Items that no worker has taken yet.", labels=_SCORER
        )
        oldest = GaugeMetricFamily(
            "reward_oldest_wait_seconds", "Age of the item that waits longest.", labels=_SCORER
        )
        for info in infos:
            for name in get_args(ScorerState):
                state.add_metric((info.name, name), float(info.state == name))
            waiting.add_metric((info.name,), info.waiting_items)
            oldest.add_metric((info.name,), info.oldest_wait_s)
        return state, waiting, oldest

    def _replicas(self, infos: Iterable[ScorerInfo]) -> Iterable[Metric]:
        ready = GaugeMetricFamily(
            "reward_replica_ready", "Whether a replica can score.", labels=_REPLICA
        )
        rss = GaugeMetricFamily(
            "reward_worker_rss_bytes", "Resident memory of a worker.", labels=_REPLICA
        )
        device = GaugeMetricFamily(
            "reward_worker_gpu_memory_bytes", "GPU memory a worker holds.", labels=_REPLICA
        )
        for info in infos:
            for replica in info.replicas:
                labels = (info.name, replica.name)
                ready.add_metric(labels, float(replica.state == "READY"))
                _add_known(rss, labels, replica.rss_bytes)
                _add_known(device, labels, replica.device_memory_bytes)
        return ready, rss, device

    def _upstream(self) -> Iterable[Metric]:
        labels = ("scorer", "endpoint")
        outstanding = GaugeMetricFamily(
            "reward_upstream_outstanding_items",
            "Items sent to an endpoint and not answered.",
            labels=labels,
        )
        usable = GaugeMetricFamily(
            "reward_upstream_usable", "1 if the endpoint gets items, else 0.", labels=labels
        )
        found: dict[tuple[str, str], list[EndpointUse]] = {}
        for use in self._endpoints():
            found.setdefault((use.scorer, use.endpoint), []).append(use)
        for key, uses in found.items():
            outstanding.add_metric(key, sum(use.outstanding_items for use in uses))
            usable.add_metric(key, float(any(use.is_usable for use in uses)))
        return outstanding, usable

    def _scores(self) -> Iterable[Metric]:
        # A reward that drifts or collapses shows here at once. It does not in a histogram, whose
        # buckets are the same for scorers of all ranges.
        mean = GaugeMetricFamily(
            "reward_recent_score_mean", "Mean of the latest 1024 scores.", labels=_SCORER
        )
        std = GaugeMetricFamily(
            "reward_recent_score_std", "Spread of the latest 1024 scores.", labels=_SCORER
        )
        for name, scores in self._recent_scores.items():
            if scores:
                values = mean_and_std(scores)
                mean.add_metric((name,), values[0])
                std.add_metric((name,), values[1])
        return mean, std


def mean_and_std(scores: Collection[float]) -> tuple[float, float]:
    """Mean and population standard deviation of at least one score."""
    mean = statistics.fmean(scores)
    return mean, statistics.fmean((score - mean) ** 2 for score in scores) ** 0.5


def _add_known(family: GaugeMetricFamily, labels: tuple[str, ...], value: float | None) -> None:
    if value is not None:
        family.add_metric(labels, value)
