"""Applies a changed config to a running server: on SIGHUP, all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable

import structlog

from reward_server.config import Config, ConfigError, ServerConfig
from reward_server.service import RewardService

# What is looked up per request; everything else in [server] is built into sockets and threads.
LIVE_KEYS = frozenset(
    {"default_deadline_s", "drain_timeout_s", "max_items", "max_queue_items", "max_queue_bytes"}
)


def reload(service: RewardService, load: Callable[[], Config]) -> bool:
    """Load the config again and apply it; a broken one changes nothing and is logged in one line.

    Returns:
        Whether it was applied.
    """
    log = structlog.get_logger()
    try:
        wanted = load()
    except ConfigError as error:
        log.error("config not reloaded: the old one stays", reason=str(error))
        return False
    server, waiting = live_part(service.config.server, wanted.server)
    changes = service.reload(wanted.model_copy(update={"server": server}))
    if waiting:
        log.warning("config keys that need a restart", keys=[f"server.{key}" for key in waiting])
    log.info(
        "config reloaded",
        added=changes.added,
        removed=changes.removed,
        replaced=changes.replaced,
        retried=changes.retried,
    )
    return True


def live_part(present: ServerConfig, wanted: ServerConfig) -> tuple[ServerConfig, list[str]]:
    """The `[server]` table in force after a reload, and the changed keys that it leaves out."""
    changed = {
        key: getattr(wanted, key)
        for key in ServerConfig.model_fields
        if getattr(wanted, key) != getattr(present, key)
    }
    live = {key: value for key, value in changed.items() if key in LIVE_KEYS}
    return present.model_copy(update=live), sorted(set(changed) - LIVE_KEYS)
