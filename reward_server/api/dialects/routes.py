"""Where the dialects are found: paths of the HTTP API, and ports of their own."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from starlette.types import ASGIApp

from reward_server.api.dialects import schemas
from reward_server.api.dialects.flow_factory import FlowFactoryApi
from reward_server.api.dialects.oip_http import OipHttpApi
from reward_server.api.dialects.pickle_api import PickleApi, failure
from reward_server.api.dialects.unirl import UniRLApi
from reward_server.api.errors import answer_framework_errors
from reward_server.api.schemas import describe_bodies
from reward_server.observability.telemetry import NO_TELEMETRY
from reward_server.service import RewardService


def add_routes(app: FastAPI, service: RewardService) -> None:
    pickles, flow_factory, unirl = PickleApi(service), FlowFactoryApi(service), UniRLApi(service)
    oip = OipHttpApi(service)
    for path, method, endpoint, described in (
        ("/compat/pickle/{scorer}", "POST", pickles.post, schemas.PICKLE),
        ("/compat/flow-factory/{scorer}/health", "GET", flow_factory.health, schemas.FF_HEALTH),
        ("/compat/flow-factory/{scorer}/compute", "POST", flow_factory.compute, schemas.FF_COMPUTE),
        ("/health", "GET", unirl.health, schemas.UNIRL_HEALTH),
        ("/rewards", "GET", unirl.rewards, schemas.UNIRL_REWARDS),
        ("/score", "POST", unirl.score, schemas.UNIRL_SCORE),
        ("/v2", "GET", oip.server, schemas.OIP_SERVER),
        ("/v2/health/live", "GET", oip.live, schemas.OIP_LIVE),
        ("/v2/health/ready", "GET", oip.ready, schemas.OIP_READY),
        *(
            (f"/v2/models/{{name}}{version}{tail}", method, endpoint, described)
            for version in ("", "/versions/{version}")
            for tail, method, endpoint, described in (
                ("", "GET", oip.model, schemas.OIP_MODEL),
                ("/ready", "GET", oip.model_ready, schemas.OIP_MODEL_READY),
                ("/infer", "POST", oip.infer, schemas.OIP_INFER),
            )
        ),
    ):
        app.add_api_route(path, endpoint, methods=[method], **described)
    describe_bodies(app, schemas.BODIES)


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
    answer_framework_errors(app, failure, "POST to /")
    return app
