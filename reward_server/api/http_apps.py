"""Which HTTP applications a config asks for, and where each listens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from fastapi.responses import Response
from starlette.types import ASGIApp

from reward_client.errors import RewardError
from reward_server.api.dialects.pickle_api import failure
from reward_server.api.dialects.routes import add_routes, port_apps
from reward_server.api.errors import error_response
from reward_server.api.http_api import create_app
from reward_server.api.http_guard import ApiKeyMiddleware
from reward_server.config import Config
from reward_server.service import RewardService


@dataclass(frozen=True, slots=True)
class HttpApp:
    name: str
    address: str
    hint: str
    app: ASGIApp


def http_apps(service: RewardService, config: Config) -> list[HttpApp]:
    """The HTTP API unless it is off, and with `legacy` one application per legacy port."""
    server = config.server
    is_local = not (server.keys_file or server.tls_client_ca_file or server.allow_unauthenticated)

    def guarded(app: ASGIApp, respond: Callable[[RewardError], Response]) -> ASGIApp:
        return ApiKeyMiddleware(app, service.access, service.metrics, respond, is_local=is_local)

    apps: list[HttpApp] = []
    if server.http != "off":
        app = create_app(service)
        if server.legacy:
            add_routes(app, service)
        hint = "--http HOST:PORT"
        apps.append(HttpApp("http", server.http, hint, guarded(app, error_response)))
    if server.legacy:
        for name, address, app in port_apps(service):
            hint = f"[server] legacy_ports.{name}"
            apps.append(HttpApp(f"legacy_{name}", address, hint, guarded(app, failure)))
    return apps
