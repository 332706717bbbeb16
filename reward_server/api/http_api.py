"""HTTP: the same service as JSON, multipart or protobuf, with OpenAPI, probes and metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from reward_client import _tracing
from reward_client._transports.base import DEADLINE_HEADER, PROTOBUF_TYPE
from reward_client._wire import convert, json_mirror
from reward_client.errors import Cancelled, InvalidArgument, NotFound
from reward_client.types import ScoreRequest, ScoreResponse, ScorerInfo
from reward_server.api import schemas
from reward_server.api.bodies import parse_form, parse_json, parse_protobuf, read_body
from reward_server.api.callers import unless_disconnected
from reward_server.api.errors import (
    as_reward_error,
    error_response,
    redacted_infos,
    redacted_response,
)
from reward_server.api.http_guard import caller_of, is_known
from reward_server.api.pages import add_pages
from reward_server.limits import RequestLimits
from reward_server.observability.requests import RequestWatch
from reward_server.observability.telemetry import NO_TELEMETRY
from reward_server.scheduling.arrival import Arrival
from reward_server.service import RewardService

_MAX_PATH_CHARS = 200


def create_app(service: RewardService, max_message_bytes: int) -> FastAPI:
    """The ASGI application over a service; it starts and stops nothing."""
    app = FastAPI(
        title="flow-reward",
        version="1",
        description=schemas.DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        telemetry=NO_TELEMETRY,
    )
    api = _HttpApi(service, max_message_bytes)
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
    app.add_exception_handler(HTTPException, refused_by_the_framework)
    schemas.describe_bodies(app, schemas.BODIES)
    return app


class _HttpApi:
    def __init__(self, service: RewardService, max_message_bytes: int) -> None:
        self._service = service
        self._watch = RequestWatch("http", service.metrics, service.config.server.slow_request_s)
        self._max_message_bytes = max_message_bytes

    async def score(self, request: Request) -> Response:
        is_binary = PROTOBUF_TYPE in request.headers.get("content-type", "")
        caller = caller_of(request)
        with self._watch.request("POST /v1/score", caller.name, request.headers) as seen:
            try:
                with self._service.arrival(caller) as arrival:
                    with _tracing.span("receive"):
                        seen.request = await self._parse_unless_disconnected(request, arrival)
                    response = await unless_disconnected(
                        request,
                        self._service.score(
                            seen.request,
                            caller=caller,
                            arrived_bytes=arrival.held_bytes,
                            deadline_s=_deadline_s(request),
                        ),
                    )
                    content, media_type = await self._service.in_thread(
                        lambda: _serialised(redacted_response(response), is_binary),
                        seen.request,
                        caller.name,
                    )
            except Exception as error:  # the boundary: whatever it is, the caller gets a status
                seen.failure = as_reward_error(error)
                return error_response(seen.failure)
            seen.response = response
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

    async def _parse_unless_disconnected(self, request: Request, arrival: Arrival) -> ScoreRequest:
        try:
            return await self._parse(request, arrival)
        except ClientDisconnect as error:
            raise Cancelled("the caller hung up before the request was complete") from error

    async def _parse(self, request: Request, arrival: Arrival) -> ScoreRequest:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            return await parse_form(request, self._max_message_bytes, self._service.limits, arrival)
        parsers: dict[str, Callable[[bytes, RequestLimits], ScoreRequest]] = {
            PROTOBUF_TYPE: parse_protobuf,
            "application/json": parse_json,
            "": parse_json,
        }
        parse = parsers.get(kind)
        if parse is None:
            raise InvalidArgument(
                f"content-type {kind!r} is not accepted: send application/json,"
                f" multipart/form-data or {PROTOBUF_TYPE}"
            )
        body = await read_body(request, self._max_message_bytes, arrival)
        return await arrival.parse(lambda: parse(body, self._service.limits))


async def refused_by_the_framework(request: Request, error: Exception) -> Response:
    """What no handler of ours has seen (404, 405), in the shape of all other errors."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:_MAX_PATH_CHARS]
    if error.status_code == HTTPStatus.NOT_FOUND:
        return error_response(NotFound(f"no such path {path!r}: see /docs"))
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = Headers(error.headers or {}).get("allow")
        message = f"{request.method} is not allowed on {path!r}: use {allowed or 'another method'}"
    else:
        message = f"{path!r}: {error.detail}"
    refusal = error_response(InvalidArgument(message), error.status_code)
    refusal.headers.update(error.headers or {})
    return refusal


def _serialised(response: ScoreResponse, is_binary: bool) -> tuple[bytes, str]:
    if is_binary:
        return convert.response_to_proto(response).SerializeToString(), PROTOBUF_TYPE
    body: dict[str, Any] = json_mirror.response_to_json(response)
    return json.dumps(body, allow_nan=False).encode(), "application/json"


def _deadline_s(request: Request) -> float | None:
    text = request.headers.get(DEADLINE_HEADER)
    if text is None:
        return None
    try:
        deadline_ms = float(text)
    except ValueError:
        deadline_ms = math.nan
    if not 0 < deadline_ms < math.inf:
        raise InvalidArgument(f"header {DEADLINE_HEADER}: {text!r} is not a number of ms above 0")
    return deadline_ms / 1e3
