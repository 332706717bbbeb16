"""`POST` a pickle, get a pickle: the clients are listed in `pickle_messages`.

What decides the statuses: flow_grpo's client retries 500 a thousand times, and 413, 429 and 503 as
often if they carry Retry-After; verl-omni's retries 408, 429 and every 5xx three times;
deepgen_rl's never. So nothing here answers 500 or 413, and Retry-After goes only with what ends by
itself.
"""

from __future__ import annotations

import math
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from reward_client.errors import STATUS, Code, RewardError, Unavailable
from reward_client.types import ScoreRequest, ScorerSelector
from reward_server.api.dialects import pickle_messages
from reward_server.api.dialects.pickles.machine import PickleLimits
from reward_server.api.dialects.shared import whole_error
from reward_server.api.exchange import Exchange, HttpDialect
from reward_server.service import RewardService

PICKLE_TYPE = "application/octet-stream"
_CLIENTS_WAIT_S = 120.0  # flow_grpo and verl-omni; deepgen_rl waits 600
_TIME_TO_SAY_SO_S = 10.0
_TRANSFORM = "flowgrpo"
_RETRY_AFTER_S = 1.0

_AS_THEY_ARE = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.UNAUTHENTICATED,
        Code.PERMISSION_DENIED,
        Code.CANCELLED,
    }
)
_SCORER_FAILED, _TRY_A_FEW_TIMES, _COME_BACK = 424, 502, 503


class PickleApi:
    def __init__(self, service: RewardService) -> None:
        waits_s = _CLIENTS_WAIT_S - _TIME_TO_SAY_SO_S
        self._dialect = HttpDialect(service, "pickle", "POST pickle", failure, waits_s)

    async def post(self, http: Request, scorer: str) -> Response:
        async def answer(exchange: Exchange) -> Response:
            limits = PickleLimits(max_bytes=exchange.limits.max_message_bytes)
            asked = await exchange.read(lambda body: pickle_messages.parse(body, limits))
            request = ScoreRequest("", (self._selector(scorer),), asked.items)
            result = (await exchange.score(request)).results[scorer]
            if (error := whole_error(result)) is not None:
                raise error
            return Response(pickle_messages.answer(result, asked.tags), media_type=PICKLE_TYPE)

        return await self._dialect.answer(http, answer)

    def _selector(self, scorer: str) -> ScorerSelector:
        """The scorer, with the transform of the config, or what flow_grpo's runs were made with."""
        service = self._dialect.service
        info = next((info for info in service.infos() if info.name == scorer), None)
        if info is not None and info.state == "FAILED":
            # It may recover, but these clients would wait for days without a word.
            raise Unavailable(f"scorer {scorer!r} has failed: {info.last_error}", retryable=False)
        default = _TRANSFORM if info is not None and _TRANSFORM in info.transforms else ""
        chosen = service.config.server.legacy_transforms.get(scorer, default)
        return ScorerSelector(scorer, transform=chosen)


def failure(error: RewardError, status: int | None = None) -> Response:
    """The pickle, the status (by default `status_of`) and Retry-After of an error."""
    status = status or status_of(error)
    headers: dict[str, Any] = {}
    if status == _COME_BACK:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s or _RETRY_AFTER_S)))
    return Response(pickle_messages.error(error.message), status, headers, PICKLE_TYPE)


def status_of(error: RewardError) -> int:
    """The HTTP status that makes each of the clients do the right thing; never 500 or 413."""
    if error.code in _AS_THEY_ARE:
        return STATUS[error.code].http
    if error.retry_after_s is not None or error.code is Code.DEADLINE_EXCEEDED:
        return _COME_BACK  # full, starting, draining, or too late: it passes
    return _TRY_A_FEW_TIMES if error.retryable else _SCORER_FAILED
