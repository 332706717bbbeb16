"""Which backend serves a scorer: the one place that knows the kinds."""

from __future__ import annotations

from collections.abc import Callable

from reward_server.backend import Backend
from reward_server.cache import ResultCache
from reward_server.config import ScorerConfig
from reward_server.metrics import Metrics
from reward_server.pool import ScorerPool
from reward_server.upstream.scorer import UpstreamScorer
from reward_server.upstream.settings import read_settings


def open_backend(
    name: str,
    config: ScorerConfig,
    metrics: Metrics,
    on_change: Callable[[], None],
    *,
    cache: ResultCache,
    server_id: str,
) -> Backend:
    """Build the backend of a configured scorer; nothing is started yet.

    Args:
        name: of the scorer.
        config: its table.
        metrics: of the server.
        on_change: called when its state changes.
        cache: of the server; for what is scored here.
        server_id: of this server, by which it recognises requests that come back to it.

    Raises:
        UpstreamConfigError: a key or a certificate for its upstream cannot be read.
    """
    if not config.targets:
        return ScorerPool(name, config, metrics, on_change, cache)
    settings = read_settings(name, config)
    return UpstreamScorer(
        name, settings, own_id=server_id, metrics=metrics.upstream, on_change=on_change
    )
