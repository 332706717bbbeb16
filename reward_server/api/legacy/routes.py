"""Where the dialects are found: paths of the HTTP API, and ports of their own."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp

from reward_server.api.legacy.pickle_api import PickleApi
from reward_server.service import RewardService
from reward_server.telemetry import NO_TELEMETRY


def add_routes(app: FastAPI, service: RewardService) -> None:
    """Add the dialects to the HTTP API."""
    pickles = PickleApi(service)
    app.add_api_route(
        "/compat/pickle/{scorer}", pickles.post, methods=["POST"], include_in_schema=False
    )


def port_apps(service: RewardService) -> list[tuple[str, str, ASGIApp]]:
    """(scorer, address, application) of every legacy port whose scorer is served."""
    server = service.config.server
    return [
        (scorer, address, _pickle_port(service, scorer))
        for scorer, address in server.legacy_ports.items()
        if scorer in service.config.scorers and address != "off"
    ]


def _pickle_port(service: RewardService, scorer: str) -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, telemetry=NO_TELEMETRY)
    api = PickleApi(service)

    async def post(http: Request) -> Response:
        return await api.post(http, scorer)

    app.add_api_route("/", post, methods=["POST"], response_class=Response)
    return app
