"""Which backend serves a scorer: the one place that knows the kinds."""

from __future__ import annotations

from collections.abc import Callable

from reward_server.backend import Backend
from reward_server.config import ScorerConfig
from reward_server.metrics import Metrics
from reward_server.pool import ScorerPool


def open_backend(
    name: str, config: ScorerConfig, metrics: Metrics, on_change: Callable[[], None]
) -> Backend:
    """Build the backend of a configured scorer; nothing is started yet."""
    return ScorerPool(name, config, metrics, on_change)
