"""Gauges of the scorers, computed at scrape time.

A gauge that has to be kept up to date is wrong as soon as an update is missed. What is not known is
absent, never zero.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple, get_args

import numpy as np
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
        self._infos = infos
        self._endpoints = endpoints
        self._recent_scores = recent_scores

    def collect(self) -> Iterable[Metric]:
        infos = tuple(self._infos())
        yield from self._scorers(infos)
        yield from self._replicas(infos)
        yield from self._upstream()
        yield from self._scores()

    def _scorers(self, infos: Sequence[ScorerInfo]) -> Iterable[Metric]:
        yield _gauge(
            "reward_scorer_state",
            "1 for the state a scorer is in.",
            ("scorer", "state"),
            {(i.name, s): float(i.state == s) for i in infos for s in get_args(ScorerState)},
        )
        yield _gauge(
            "reward_waiting_items",
            "Items that no worker has taken yet.",
            _SCORER,
            {(i.name,): i.waiting_items for i in infos},
        )
        yield _gauge(
            "reward_oldest_wait_seconds",
            "Age of the item that waits longest.",
            _SCORER,
            {(i.name,): i.oldest_wait_s for i in infos},
        )

    def _replicas(self, infos: Sequence[ScorerInfo]) -> Iterable[Metric]:
        found = {(info.name, one.name): one for info in infos for one in info.replicas}
        for name, text, value in (
            (
                "reward_replica_ready",
                "Whether a replica can score.",
                lambda one: one.state == "READY",
            ),
            ("reward_worker_rss_bytes", "Resident memory of a worker.", attrgetter("rss_bytes")),
            (
                "reward_worker_gpu_memory_bytes",
                "GPU memory a worker holds.",
                attrgetter("device_memory_bytes"),
            ),
        ):
            yield _gauge(name, text, _REPLICA, {key: value(one) for key, one in found.items()})

    def _upstream(self) -> Iterable[Metric]:
        labels = ("scorer", "endpoint")
        found: dict[tuple[str, ...], list[EndpointUse]] = {}
        for use in self._endpoints():
            found.setdefault((use.scorer, use.endpoint), []).append(use)
        yield _gauge(
            "reward_upstream_outstanding_items",
            "Items sent to an endpoint and not answered.",
            labels,
            {key: sum(use.outstanding_items for use in uses) for key, uses in found.items()},
        )
        yield _gauge(
            "reward_upstream_usable",
            "1 if the endpoint gets items, else 0.",
            labels,
            {key: float(any(use.is_usable for use in uses)) for key, uses in found.items()},
        )

    def _scores(self) -> Iterable[Metric]:
        # A reward that drifts or collapses shows here at once. It does not in a histogram, whose
        # buckets are the same for scorers of all ranges.
        recent = {(name,): np.array(found) for name, found in self._recent_scores.items() if found}
        for name, text, value in (
            ("reward_recent_score_mean", "Mean of the latest 1024 scores.", np.mean),
            ("reward_recent_score_std", "Spread of the latest 1024 scores.", np.std),
        ):
            yield _gauge(
                name, text, _SCORER, {key: float(value(found)) for key, found in recent.items()}
            )


def _gauge(
    name: str,
    text: str,
    labels: tuple[str, ...],
    values: Mapping[tuple[str, ...], float | None],
) -> Metric:
    """A gauge with those of the values that are known."""
    family = GaugeMetricFamily(name, text, labels=labels)
    for key, value in values.items():
        if value is not None:
            family.add_metric(key, float(value))
    return family
