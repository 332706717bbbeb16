"""Which HTTP applications a config asks for, and where each listens."""

from __future__ import annotations

from dataclasses import dataclass, replace

from starlette.types import ASGIApp

from reward_server.api.dialects.routes import add_routes, port_apps
from reward_server.api.http_api import create_app
from reward_server.api.http_guard import ApiKeyMiddleware
from reward_server.config import Config
from reward_server.service import RewardService


@dataclass(frozen=True, slots=True)
class HttpApp:
    """One application.

    Attributes:
        name: what the port file calls its port.
        address: HOST:PORT.
        hint: how to choose another address.
        app: the application.
    """

    name: str
    address: str
    hint: str
    app: ASGIApp


def http_apps(service: RewardService, config: Config) -> tuple[HttpApp, ...]:
    """The HTTP API unless it is off, and with `legacy` one application per legacy port."""
    apps: list[HttpApp] = []
    if config.server.http != "off":
        app = create_app(service, config.server.max_message_bytes)
        if config.server.legacy:
            add_routes(app, service)
        apps.append(HttpApp("http", config.server.http, "--http HOST:PORT", app))
    if config.server.legacy:
        apps += [
            HttpApp(f"legacy_{name}", address, f"[server] legacy_ports.{name}", app)
            for name, address, app in port_apps(service)
        ]
    server = config.server
    is_local = not (server.keys_file or server.tls_client_ca_file or server.allow_unauthenticated)
    return tuple(
        replace(
            app,
            app=ApiKeyMiddleware(app.app, service.access, service.metrics, is_local=is_local),
        )
        for app in apps
    )
