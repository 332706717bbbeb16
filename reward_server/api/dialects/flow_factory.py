"""Flow-Factory's remote reward models: `GET .../health` and `POST .../compute`, per scorer.

Its client tries three times without a pause whatever the status, unless a 200 carries `error`: then
it stops with that message. So what will not get better is a 200 with `error`, and only what passes
has a status. One `rewards` list has no place for a failed item: any failure fails the request.
"""

from __future__ import annotations

import json
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from reward_client.errors import STATUS, Code, InvalidArgument, RewardError
from reward_client.images import Image
from reward_client.types import Item, ScoreRequest, ScorerSelector
from reward_server.api.dialects.shared import as_text, image_at, list_at, read_object, whole_error
from reward_server.api.errors import error_response
from reward_server.api.exchange import Exchange, HttpDialect
from reward_server.limits import RequestLimits
from reward_server.service import RewardService

_CLIENT_WAITS_S = 60.0
_TIME_TO_SAY_SO_S = 5.0
_PASSES = frozenset({Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED})
_CALLERS_ARE_TOLD = frozenset({Code.UNAUTHENTICATED, Code.PERMISSION_DENIED, Code.NOT_FOUND})


class FlowFactoryApi:
    def __init__(self, service: RewardService) -> None:
        self._service = service
        waits_s = _CLIENT_WAITS_S - _TIME_TO_SAY_SO_S
        self._dialect = HttpDialect(service, "flow_factory", "POST flow_factory", _failure, waits_s)

    async def health(self, scorer: str) -> Response:
        """2xx if the scorer is ready; the client asks once, and gives up on anything else."""
        info = next((info for info in self._service.infos() if info.name == scorer), None)
        if info is None:
            return JSONResponse({"status": "unknown scorer"}, STATUS[Code.NOT_FOUND].http)
        if info.state != "READY":
            return JSONResponse({"status": info.state}, STATUS[Code.UNAVAILABLE].http)
        return JSONResponse({"status": "ok"})

    async def compute(self, http: Request, scorer: str) -> Response:
        async def answer(exchange: Exchange) -> Response:
            items = await exchange.read(lambda body: parse(body, exchange.limits))
            request = ScoreRequest("", (ScorerSelector(scorer),), items)
            result = (await exchange.score(request)).results[scorer]
            if (error := whole_error(result)) is not None:
                raise error
            return Response(json.dumps({"rewards": result.scores}), media_type="application/json")

        return await self._dialect.answer(http, answer)


def parse(body: bytes, limits: RequestLimits) -> tuple[Item, ...]:
    message = read_object(body, limits)
    prompts = list_at(message, "prompt")
    if not prompts:
        raise InvalidArgument("prompt: the list is empty: send at least one")
    if message.get("condition_videos"):
        raise InvalidArgument("condition_videos: no scorer here compares with videos")
    columns = {key: _column(message, key, len(prompts)) for key in ("image", "video")}
    references = _column(message, "condition_images", len(prompts))
    items = []
    for i, prompt in enumerate(prompts):
        images: tuple[Image, ...] = ()
        if columns["image"] is not None:
            images = (image_at(columns["image"][i], f"image[{i}]"),)
        elif columns["video"] is not None:
            images = _images(columns["video"][i], f"video[{i}]")
        given = () if references is None else _images(references[i], f"condition_images[{i}]")
        items.append(Item(str(i), as_text(prompt, f"prompt[{i}]"), images, given))
    return tuple(items)


def _column(message: dict[str, Any], key: str, length: int) -> list[Any] | None:
    if message.get(key) is None:
        return None
    column = list_at(message, key)
    if len(column) != length:
        raise InvalidArgument(f"{key}: {len(column)} entries for {length} prompts")
    return column


def _images(value: object, where: str) -> tuple[Image, ...]:
    if not isinstance(value, list):
        raise InvalidArgument(f"{where}: expected a list of base64 images")
    return tuple(image_at(entry, f"{where}[{i}]") for i, entry in enumerate(value))


def _failure(error: RewardError) -> Response:
    passes = error.retryable or error.code is Code.DEADLINE_EXCEEDED
    if (error.code in _PASSES and passes) or error.code in _CALLERS_ARE_TOLD:
        return error_response(error)
    return JSONResponse({"error": error.message})
