"""One server process from start to drain: service, transports, signals, port file."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog

from reward_server.api.grpc_api import GrpcApi
from reward_server.api.http_apps import http_apps
from reward_server.api.listening import HttpListener, bind, in_use
from reward_server.config import Config, ConfigError, ServerConfig
from reward_server.observability import telemetry
from reward_server.observability.build_info import build_info
from reward_server.observability.logs import LogLevel
from reward_server.observability.metrics import Metrics
from reward_server.security.guard import log_warnings, open_guard
from reward_server.service import RewardService

_GRACE_S = 2.0
# Threads that parse and decode hand the interpreter back to the event loop after this long, not
# after Python's 5 ms: probes and small requests do not wait for a large one.
_SWITCH_INTERVAL_S = 0.0005


async def serve(
    config: Config,
    port_file: Path | None = None,
    load_again: Callable[[], Config] | None = None,
    log_level: LogLevel | None = None,
    greet: Callable[[Mapping[str, int]], None] | None = None,
) -> None:
    """Run until SIGTERM or SIGINT, then drain; a second signal skips the draining.

    Args:
        config: what to serve where.
        port_file: where to write `{"http": port, "grpc": port, "pid": pid}` once listening; a
            legacy port is called `legacy_NAME` after its scorer.
        load_again: where SIGHUP gets the config from; None to stay with this one.
        log_level: what SIGUSR1 and SIGUSR2 change; None to leave them alone.
        greet: called with the ports once listening.

    Raises:
        AddressInUse: before any worker has been started.
        ConfigError: likewise; it would answer without authentication, or keys or certificates
            cannot be used.
    """
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    log = structlog.get_logger()
    stopping, hurry = asyncio.Event(), asyncio.Event()
    guard = open_guard(config.server)
    _on_signals(stopping, hurry)
    if log_level is not None:
        log_level.follow_signals()
    build, metrics = build_info(), Metrics()
    metrics.publish_build(build)
    stop_traces = telemetry.start(config.server.otlp_endpoint, build)
    service = RewardService(config, metrics, guard.access)
    listeners: list[HttpListener] = []
    grpc_api = GrpcApi(service, config.server, guard.tls) if config.server.grpc != "off" else None
    ports = {"pid": os.getpid()}
    watching = asyncio.create_task(guard.watch())
    tls = guard.tls.context if guard.tls else None
    try:
        apps = http_apps(service, config)
        listeners.extend(HttpListener(app.address, app.hint) for app in apps)
        if grpc_api is not None:
            ports["grpc"] = await _start_grpc(grpc_api, config.server.grpc)
        service.start()
        for app, listener in zip(apps, listeners, strict=True):
            listener.start(
                app.app, config.server.client_timeout_s, config.server.max_connections, tls
            )
            ports[app.name] = listener.port
        _write_port_file(port_file, ports)
        _on_hangup(service, stopping, load_again or (lambda: config))
        log_warnings(config.server, guard)
        log.info("listening", **ports, scorers=list(config.scorers))
        if greet is not None:
            greet(ports)
        await stopping.wait()
        timeout_s = service.config.server.drain_timeout_s
        log.info("draining", timeout_s=timeout_s)
        drained = await _drain(service, hurry, timeout_s)
        log.info("drained" if drained else "stopped without finishing")
    finally:
        watching.cancel()
        # The workers outlive the transports, so that late answers can still be sent.
        await asyncio.gather(*(listener.stop(_GRACE_S) for listener in listeners))
        if grpc_api is not None:
            await grpc_api.stop(_GRACE_S)
        await service.stop()
        stop_traces()
        if port_file is not None:
            port_file.unlink(missing_ok=True)
    log.info("stopped")


async def _start_grpc(api: GrpcApi, address: str) -> int:
    if not address.endswith(":0"):
        # gRPC would say it too, but after several lines of its own.
        bind(address, "--grpc HOST:PORT").close()
    try:
        return await api.start(address)
    except OSError as error:
        raise in_use(address, "--grpc HOST:PORT") from error


async def _drain(service: RewardService, hurry: asyncio.Event, timeout_s: float) -> bool:
    draining = asyncio.create_task(service.drain(timeout_s))
    hurrying = asyncio.create_task(hurry.wait())
    await asyncio.wait({draining, hurrying}, return_when=asyncio.FIRST_COMPLETED)
    hurrying.cancel()
    if draining.done():
        return draining.result()
    draining.cancel()
    return False


def _on_signals(stopping: asyncio.Event, hurry: asyncio.Event) -> None:
    def received() -> None:
        (hurry if stopping.is_set() else stopping).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, received)


def _on_hangup(
    service: RewardService, stopping: asyncio.Event, load_again: Callable[[], Config]
) -> None:
    def received() -> None:
        if not stopping.is_set():
            reload(service, load_again)

    if hasattr(signal, "SIGHUP"):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, received)


def _write_port_file(path: Path | None, ports: dict[str, int]) -> None:
    if path is not None:
        # In one step: a reader that waits for the file must never see half of it.
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(ports), encoding="utf-8")
        temporary.replace(path)


# What is looked up per request; everything else in [server] is built into sockets and threads.
LIVE_KEYS = frozenset(
    {"default_deadline_s", "drain_timeout_s", "max_items", "max_queue_items", "max_queue_bytes"}
)


def reload(service: RewardService, load: Callable[[], Config]) -> bool:
    """Load the config again; returns whether it was applied. A broken one changes nothing."""
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
