"""The metrics of a server; one registry per server, nothing global."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

from reward_client.types import ScorerInfo
from reward_server.observability.build_info import BuildInfo
from reward_server.observability.gauges import ScorerWatch
from reward_server.observability.score_window import ScoreWindow
from reward_server.upstream.metrics import UpstreamMetrics

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# One set for scorers of all ranges: fine inside [0, 1], coarse outside.
_SCORES = (
    -10,
    -1,
    -0.1,
    0,
    0.1,
    0.2,
    0.3,
    0.4,
    0.5,
    0.6,
    0.7,
    0.8,
    0.9,
    0.999,
    1,
    2,
    5,
    10,
    30,
    100,
)


class Metrics:
    """All metrics of one server. Label `scorer` is a configured name, never a caller's text."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "reward_requests",
            "Requests by API and outcome code.",
            ["api", "code"],
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "reward_request_seconds",
            "From arrival to answer.",
            ["api"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.items = Counter(
            "reward_items",
            "Items by scorer and outcome code.",
            ["scorer", "code"],
            registry=self.registry,
        )
        self.queue_items = Gauge(
            "reward_queue_items", "Items waiting or running.", ["scorer"], registry=self.registry
        )
        self.admitted_bytes = Gauge(
            "reward_admitted_bytes", "Bytes of requests and pixels held.", registry=self.registry
        )
        self.limit_items = Gauge(
            "reward_queue_items_limit",
            "Items a scorer may hold; beyond it requests are turned away.",
            registry=self.registry,
        )
        self.limit_bytes = Gauge(
            "reward_admitted_bytes_limit",
            "Bytes the server may hold; beyond it requests are turned away.",
            registry=self.registry,
        )
        self.batch_items = Histogram(
            "reward_batch_items",
            "Items per batch.",
            ["scorer"],
            buckets=_ITEMS,
            registry=self.registry,
        )
        self.batch_fill = Histogram(
            "reward_batch_fill_ratio",
            "Share of a batch's limit that is used: items or pixels, whichever is nearer.",
            ["scorer"],
            buckets=_SHARES,
            registry=self.registry,
        )
        self.decode_seconds = Histogram(
            "reward_decode_seconds",
            "Decoding the images of a request, for each scorer it asks.",
            ["scorer"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.queue_seconds = Histogram(
            "reward_queue_seconds",
            "Wait of an item for its batch.",
            ["scorer"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.compute_seconds = Histogram(
            "reward_compute_seconds",
            "Computing of a batch.",
            ["scorer"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.total_seconds = Histogram(
            "reward_scorer_seconds",
            "From the arrival of a request to the last answer of a scorer.",
            ["scorer"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.scores = Histogram(
            "reward_score",
            "Transformed scores.",
            ["scorer"],
            buckets=_SCORES,
            registry=self.registry,
        )
        self.worker_restarts = Counter(
            "reward_worker_restarts",
            "Worker processes started again, by cause: died, hung, memory or load.",
            ["scorer", "cause"],
            registry=self.registry,
        )
        self.ready_workers = Gauge(
            "reward_ready_workers", "Workers that can score.", ["scorer"], registry=self.registry
        )

        self.cache_hits = Counter(
            "reward_cache_hits",
            "Items answered from the result cache.",
            ["scorer"],
            registry=self.registry,
        )
        self.cache_misses = Counter(
            "reward_cache_misses",
            "Items looked up in the result cache in vain.",
            ["scorer"],
            registry=self.registry,
        )
        self.cache_bytes = Gauge(
            "reward_cache_bytes", "Bytes of scores in the result cache.", registry=self.registry
        )
        self.upstream = UpstreamMetrics(self.registry)
        self.recent_scores: defaultdict[str, ScoreWindow] = defaultdict(ScoreWindow)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def observe_score(self, scorer: str, score: float) -> None:
        """Take a finite, transformed score into the distribution of its scorer."""
        self.scores.labels(scorer).observe(score)
        self.recent_scores[scorer].add(score)

    def watch(self, infos: Callable[[], Iterable[ScorerInfo]]) -> None:
        """Report the state of the scorers at every scrape; `infos` returns them with replicas."""
        self.registry.register(ScorerWatch(infos, self.recent_scores))

    def tell_build(self, build: BuildInfo) -> None:
        """Publish which build this is."""
        info = Info("reward_build", "Version and revision.", registry=self.registry)
        info.info({"version": build.version, "revision": build.revision})

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)
