"""The metrics of a server; one registry per server, nothing global."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence

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
from reward_server.observability.gauges import WINDOW_SCORES, EndpointUse, ScorerWatch

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# One set for scorers of all ranges: fine inside [0, 1], coarse outside.
_SCORES = (
    *(-10, -1, -0.1, 0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.999, 1),
    *(2, 5, 10, 30, 100),
)


class Metrics:
    """All metrics of one server.

    Label `scorer` is a configured name and `endpoint` an address of the configuration or of its
    DNS, never a caller's text.
    """

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, registry=registry)

        def histogram(
            name: str, text: str, *labels: str, buckets: Sequence[float] = _SECONDS
        ) -> Histogram:
            return Histogram(name, text, labels, buckets=buckets, registry=registry)

        self.requests = counter(
            "reward_requests", "Requests by API and outcome code.", "api", "code"
        )
        self.request_seconds = histogram("reward_request_seconds", "From arrival to answer.", "api")
        self.items = counter("reward_items", "Items by scorer and outcome code.", "scorer", "code")
        self.queue_items = gauge("reward_queue_items", "Items waiting or running.", "scorer")
        self.admitted_bytes = gauge("reward_admitted_bytes", "Bytes of requests and pixels held.")
        self.limit_items = gauge(
            "reward_queue_items_limit",
            "Items a scorer may hold; beyond it requests are turned away.",
        )
        self.limit_bytes = gauge(
            "reward_admitted_bytes_limit",
            "Bytes the server may hold; beyond it requests are turned away.",
        )
        self.batch_items = histogram(
            "reward_batch_items", "Items per batch.", "scorer", buckets=_ITEMS
        )
        self.batch_fill = histogram(
            "reward_batch_fill_ratio",
            "Share of a batch's limit that is used: items or pixels, whichever is nearer.",
            "scorer",
            buckets=_SHARES,
        )
        self.decode_seconds = histogram(
            "reward_decode_seconds",
            "Decoding the images of a request, for each scorer it asks.",
            "scorer",
        )
        self.queue_seconds = histogram(
            "reward_queue_seconds", "Wait of an item for its batch.", "scorer"
        )
        self.compute_seconds = histogram(
            "reward_compute_seconds", "Computing of a batch.", "scorer"
        )
        self.backbone_pictures = counter(
            "reward_backbone_pictures",
            "Pictures a shared network looked at (computed), or had already for another scorer of"
            " the worker (reused).",
            *("scorer", "how"),
        )
        self.total_seconds = histogram(
            "reward_scorer_seconds",
            "From the arrival of a request to the last answer of a scorer.",
            "scorer",
        )
        self.scores = histogram("reward_score", "Transformed scores.", "scorer", buckets=_SCORES)
        self.worker_restarts = counter(
            "reward_worker_restarts",
            "Worker processes started again, by cause: died, hung, memory, self_test or load.",
            *("scorer", "cause"),
        )
        self.ready_workers = gauge("reward_ready_workers", "Workers that can score.", "scorer")
        self.cache_hits = counter(
            "reward_cache_hits", "Items answered from the result cache.", "scorer"
        )
        self.cache_misses = counter(
            "reward_cache_misses", "Items looked up in the result cache in vain.", "scorer"
        )
        self.cache_bytes = gauge("reward_cache_bytes", "Bytes of scores in the result cache.")
        self.upstream_calls = counter(
            "reward_upstream_calls",
            "Messages sent to an endpoint, by outcome code.",
            *("scorer", "endpoint", "code"),
        )
        self.upstream_failovers = counter(
            "reward_upstream_failovers",
            "Messages sent again, to another endpoint or to one that came back.",
            "scorer",
        )
        self.recent_scores: defaultdict[str, deque[float]] = defaultdict(
            lambda: deque(maxlen=WINDOW_SCORES)
        )
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

    def observe_score(self, scorer: str, score: float) -> None:
        """Take a finite, transformed score into the distribution of its scorer."""
        self.scores.labels(scorer).observe(score)
        self.recent_scores[scorer].append(score)

    def watch(
        self,
        infos: Callable[[], Iterable[ScorerInfo]],
        endpoints: Callable[[], Iterable[EndpointUse]] = tuple,
    ) -> None:
        """Report the state of scorers and upstream servers at every scrape."""
        self.registry.register(ScorerWatch(infos, endpoints, self.recent_scores))

    def publish_build(self, build: BuildInfo) -> None:
        info = Info("reward_build", "Version and revision.", registry=self.registry)
        info.info({"version": build.version, "revision": build.revision})

    def text(self) -> bytes:
        return generate_latest(self.registry)
