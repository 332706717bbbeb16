"""What the server tells Prometheus about its upstream scorers."""

from __future__ import annotations

from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge


class UpstreamMetrics:
    """Label `endpoint` is an address of the configuration or of its DNS, never a caller's text."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.calls = Counter(
            "reward_upstream_calls",
            "Messages sent to an endpoint, by outcome code.",
            ["scorer", "endpoint", "code"],
            registry=registry,
        )
        self.outstanding = Gauge(
            "reward_upstream_outstanding_items",
            "Items sent to an endpoint and not answered.",
            ["scorer", "endpoint"],
            registry=registry,
        )
        self.usable = Gauge(
            "reward_upstream_usable",
            "1 if the endpoint gets items, else 0.",
            ["scorer", "endpoint"],
            registry=registry,
        )
        self.failovers = Counter(
            "reward_upstream_failovers",
            "Messages sent again, to another endpoint or to one that came back.",
            ["scorer"],
            registry=registry,
        )

    def forget(self, scorer: str, endpoint: str) -> None:
        """Drop the gauges of an endpoint that is gone."""
        for gauge in (self.outstanding, self.usable):
            with suppress(KeyError):  # a successor of the scorer may have removed them
                gauge.remove(scorer, endpoint)
