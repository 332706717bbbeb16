"""One server process from start to drain: service, transports, signals, port file."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import structlog
import uvicorn

from reward_server import reloading
from reward_server.api.grpc_api import GrpcApi
from reward_server.api.http_api import create_app
from reward_server.api.patience import patient_protocol
from reward_server.build_info import build_info
from reward_server.config import Config
from reward_server.metrics import Metrics
from reward_server.service import RewardService

_GRACE_S = 2.0


class AddressInUse(Exception):
    """An address cannot be listened on; one line that says what to do."""


class _Uvicorn(uvicorn.Server):
    """uvicorn without its signal handlers: the server drains first and stops it afterwards."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    config: Config,
    port_file: Path | None = None,
    load_again: Callable[[], Config] | None = None,
) -> None:
    """Run until SIGTERM or SIGINT, then drain; a second signal skips the draining.

    Args:
        config: what to serve where.
        port_file: where to write `{"http": port, "grpc": port, "pid": pid}` once listening.
        load_again: where SIGHUP gets the config from; None to stay with this one.

    Raises:
        AddressInUse: before any worker has been started.
    """
    log = structlog.get_logger()
    stopping, hurry = asyncio.Event(), asyncio.Event()
    _on_signals(stopping, hurry)
    metrics = Metrics()
    metrics.tell_build(build_info())
    service = RewardService(config, metrics)
    http_socket = _bind(config.server.http, "http") if config.server.http != "off" else None
    grpc_api = GrpcApi(service, config.server) if config.server.grpc != "off" else None
    ports = {"pid": os.getpid()}
    http_server: _Uvicorn | None = None
    http_task: asyncio.Task[None] | None = None
    try:
        if grpc_api is not None:
            ports["grpc"] = await _start_grpc(grpc_api, config.server.grpc)
        service.start()
        if http_socket is not None:
            app = create_app(service, config.server.max_message_bytes)
            http_server = _Uvicorn(
                uvicorn.Config(
                    app,
                    http=patient_protocol(
                        config.server.client_timeout_s, config.server.max_connections
                    ),
                    log_config=None,
                    access_log=False,
                    lifespan="off",
                )
            )
            http_task = asyncio.create_task(http_server.serve(sockets=[http_socket]))
            ports["http"] = http_socket.getsockname()[1]
        _write_port_file(port_file, ports)
        _on_hangup(service, stopping, load_again or (lambda: config))
        log.info("listening", **ports, scorers=list(config.scorers))
        await stopping.wait()
        timeout_s = service.config.server.drain_timeout_s
        log.info("draining", timeout_s=timeout_s)
        drained = await _drain(service, hurry, timeout_s)
        log.info("drained" if drained else "stopped without finishing")
    finally:
        # The workers outlive the transports, so that late answers can still be sent.
        if http_server is not None and http_task is not None:
            http_server.should_exit = True
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(http_task, _GRACE_S)
        if grpc_api is not None:
            await grpc_api.stop(_GRACE_S)
        await service.stop()
        if http_socket is not None:
            http_socket.close()
        if port_file is not None:
            port_file.unlink(missing_ok=True)
    log.info("stopped")


async def _start_grpc(api: GrpcApi, address: str) -> int:
    if not address.endswith(":0"):
        # gRPC would say it too, but after several lines of its own.
        _bind(address, "grpc").close()
    try:
        return await api.start(address)
    except OSError as error:
        raise _in_use("grpc", address) from error


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
            reloading.reload(service, load_again)

    if hasattr(signal, "SIGHUP"):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, received)


def _bind(address: str, key: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host.strip("[]"), int(port)))
        sock.listen(1024)
    except OSError as error:
        sock.close()
        raise _in_use(key, address) from error
    return sock


def _in_use(key: str, address: str) -> AddressInUse:
    return AddressInUse(
        f"cannot listen on {address} ({key}): the port is in use or the address is not this"
        f" machine's; stop the other server, or choose another with --{key} HOST:PORT (port 0"
        " picks a free one)"
    )


def _write_port_file(path: Path | None, ports: dict[str, int]) -> None:
    if path is not None:
        # In one step: whoever waits for the file must never read half of it.
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(json.dumps(ports), encoding="utf-8")
        temporary.replace(path)
