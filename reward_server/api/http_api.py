"""HTTP: the same service as JSON, multipart or protobuf, with OpenAPI, probes and metrics."""

from __future__ import annotations

import json
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import Headers

from reward_client._transports.base import DEADLINE_HEADER, PROTOBUF_TYPE
from reward_client._wire import convert
from reward_client.errors import InvalidArgument
from reward_client.types import ScoreRequest, ScoreResponse, ScorerInfo
from reward_server.api import json_mirror, schemas
from reward_server.api.bodies import parse_json, parse_protobuf
from reward_server.api.errors import answer_framework_errors, error_response, redacted_infos
from reward_server.api.exchange import Exchange, HttpDialect
from reward_server.api.http_guard import caller_of, is_known
from reward_server.api.pages import add_pages
from reward_server.observability.telemetry import NO_TELEMETRY
from reward_server.service import RewardService


def create_app(service: RewardService) -> FastAPI:
    """The ASGI application over a service; it starts and stops nothing."""
    app = FastAPI(
        title="flow-reward",
        version="1",
        description=schemas.DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        telemetry=NO_TELEMETRY,
    )
    api = _HttpApi(service)
    app.add_api_route(
        "/v1/score",
        api.score,
        methods=["POST"],
        response_class=JSONResponse,
        summary="Score items with one or several scorers",
        openapi_extra=schemas.SCORE_BODY,
        responses=schemas.SCORE,
    )
    for path, endpoint, summary, answers in (
        ("/v1/scorers", api.scorers, "List the scorers, ready or not", schemas.SCORERS),
        ("/livez", api.livez, "Is the process alive?", schemas.LIVEZ),
        ("/readyz", api.readyz, "Can the server score?", schemas.READYZ),
        ("/metrics", api.metrics, "Prometheus metrics", schemas.METRICS),
    ):
        kind = PlainTextResponse if path == "/metrics" else JSONResponse
        app.add_api_route(path, endpoint, response_class=kind, summary=summary, responses=answers)
    add_pages(app)
    answer_framework_errors(app, error_response, "see /docs")
    schemas.describe_bodies(app, schemas.BODIES)
    return app


class _HttpApi:
    def __init__(self, service: RewardService) -> None:
        self._service = service
        self._dialect = HttpDialect(service, "http", "POST /v1/score", error_response)

    async def score(self, http: Request) -> Response:
        return await self._dialect.answer(http, self._score)

    async def _score(self, exchange: Exchange) -> Response:
        headers = exchange.http.headers
        response = await exchange.score(await _read(exchange), _deadline_s(headers))
        is_binary = PROTOBUF_TYPE in headers.get("content-type", "")
        content, media_type = await exchange.in_thread(lambda: _serialised(response, is_binary))
        return Response(content, media_type=media_type)

    async def scorers(self, request: Request) -> Response:
        access, caller = self._service.access, caller_of(request)
        infos = [info for info in self._infos() if access.may_use(caller, info.name)]
        limits = self._service.server_limits()
        if PROTOBUF_TYPE in request.headers.get("accept", ""):
            message = convert.infos_to_proto(infos, limits)
            return Response(message.SerializeToString(), media_type=PROTOBUF_TYPE)
        return JSONResponse(json_mirror.infos_to_json(infos, limits))

    def _infos(self) -> list[ScorerInfo]:
        return redacted_infos(self._service.infos())

    async def livez(self) -> Response:
        return JSONResponse({"status": "alive"})

    async def readyz(self, request: Request, scorer: str = "") -> Response:
        infos = {info.name: info for info in self._infos()}
        states = {name: info.state for name, info in infos.items()}
        is_ready = self._service.is_ready()
        if scorer:
            states = {scorer: states.get(scorer, "UNKNOWN")}
            is_ready = states[scorer] == "READY"
        body: dict[str, Any] = {"ready": is_ready, "scorers": states}
        # Reasons are only for callers with a key.
        if is_known(request):
            body["errors"] = {
                name: infos[name].last_error
                for name, state in states.items()
                if state != "READY" and name in infos and infos[name].last_error
            }
        return JSONResponse(body, 200 if is_ready else 503)

    async def metrics(self) -> Response:
        return Response(self._service.metrics.text(), media_type=CONTENT_TYPE_LATEST)


async def _read(exchange: Exchange) -> ScoreRequest:
    kind = exchange.http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await exchange.read_form()
    if kind not in (PROTOBUF_TYPE, "application/json", ""):
        raise InvalidArgument(
            f"content-type {kind!r} is not accepted: send application/json,"
            f" multipart/form-data or {PROTOBUF_TYPE}"
        )
    parse = parse_protobuf if kind == PROTOBUF_TYPE else parse_json
    return await exchange.read(lambda body: parse(body, exchange.limits))


def _serialised(response: ScoreResponse, is_binary: bool) -> tuple[bytes, str]:
    if is_binary:
        return convert.response_to_proto(response).SerializeToString(), PROTOBUF_TYPE
    body: dict[str, Any] = json_mirror.response_to_json(response)
    return json.dumps(body, allow_nan=False).encode(), "application/json"


def _deadline_s(headers: Headers) -> float | None:
    text = headers.get(DEADLINE_HEADER)
    if text is None:
        return None
    try:
        deadline_ms = float(text)
    except ValueError:
        deadline_ms = math.nan
    if not 0 < deadline_ms < math.inf:
        raise InvalidArgument(f"header {DEADLINE_HEADER}: {text!r} is not a number of ms above 0")
    return deadline_ms / 1e3
