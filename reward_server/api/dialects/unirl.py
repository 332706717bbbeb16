"""UniRL's reward service: `GET /health`, `GET /rewards`, `POST /score`.

Its answers have a place for every failure: `errors[i][reward]`. A turn of the history is a picture
with its text; the last turn is scored, earlier ones are what it is compared with. Files are never
opened: `video_path`, `video_b64` and `image_ipc` are refused, item by item.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from reward_client._validation import unknown_scorer
from reward_client._wire import specs
from reward_client.errors import STATUS, Code, InvalidArgument, NotFound, RewardError
from reward_client.types import Item, ScoreRequest, ScorerResult, ScorerSelector, SpecKind
from reward_server.api.dialects.shared import as_text, image_at, list_at, read_object, text_at
from reward_server.api.errors import BodyTooLarge, error_response, http_status
from reward_server.api.exchange import Exchange, HttpDialect
from reward_server.limits import RequestLimits
from reward_server.service import RewardService

PROTOCOL = "1"
IDENTITY_KEYS = (
    "request_id",
    "sample_id",
    "group_id",
    "source_rank",
    "policy_version",
    "idempotency_key",
)
_CLIENT_WAITS_S = 300.0
_TIME_TO_SAY_SO_S = 10.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One entry of `requests`: an item or why it is none, and the rewards wanted for it."""

    item: Item | str
    rewards: tuple[str, ...]
    identity: Mapping[str, Any]


class UniRLApi:
    def __init__(self, service: RewardService) -> None:
        self._service = service
        waits_s = _CLIENT_WAITS_S - _TIME_TO_SAY_SO_S
        self._dialect = HttpDialect(service, "unirl", "POST unirl", _failure, waits_s)

    async def health(self) -> Response:
        """200 once every scorer is ready; the client reads the names from `rewards`."""
        is_ready = self._service.is_ready()
        rewards = {info.name: [{"state": info.state}] for info in self._service.infos()}
        status = 200 if is_ready else STATUS[Code.UNAVAILABLE].http
        return JSONResponse(
            {"status": "ok" if is_ready else "not ready", "rewards": rewards}, status
        )

    async def rewards(self) -> Response:
        return JSONResponse({"rewards": [info.name for info in self._service.infos()]})

    async def score(self, http: Request) -> Response:
        return await self._dialect.answer(http, self._score)

    async def _score(self, exchange: Exchange) -> Response:
        entries = await exchange.read(lambda body: parse(body, exchange.limits))
        names = [info.name for info in self._service.infos()]
        for name in dict.fromkeys(name for entry in entries for name in entry.rewards):
            if name not in names:
                raise unknown_scorer(name, names)
        results: list[dict[str, dict[str, float]]] = [{} for _ in entries]
        errors: list[dict[str, str]] = [{} for _ in entries]
        for i, entry in enumerate(entries):
            if isinstance(entry.item, str):
                errors[i] = dict.fromkeys(entry.rewards, entry.item)
        for rewards, indices in _alike(entries).items():
            await self._fill(exchange, rewards, {i: entries[i] for i in indices}, results, errors)
        answer = {
            "results": results,
            "errors": errors,
            "identities": [{**entry.identity, "scorer_version": None} for entry in entries],
            "protocol_version": PROTOCOL,
        }
        return Response(json.dumps(answer, allow_nan=False), media_type="application/json")

    async def _fill(
        self,
        exchange: Exchange,
        rewards: tuple[str, ...],
        entries: Mapping[int, Asked],
        results: list[dict[str, dict[str, float]]],
        errors: list[dict[str, str]],
    ) -> None:
        items = tuple(e.item for e in entries.values() if isinstance(e.item, Item))
        request = ScoreRequest("", tuple(map(ScorerSelector, rewards)), items)
        try:
            response = await exchange.score(request)
        except RewardError as error:
            if error.retry_after_s is not None or not error.items:
                raise
            for place, i in enumerate(entries):
                message = error.items[place].message if place in error.items else error.message
                errors[i].update(dict.fromkeys(rewards, message))
            return
        for name, result in response.results.items():
            for place, i in enumerate(entries):
                if place in result.errors:
                    errors[i][name] = result.errors[place].message
                else:
                    results[i][name] = _metrics(result, place)


def parse(body: bytes, limits: RequestLimits) -> list[Asked]:
    """Read a request; raises InvalidArgument if no entry of it can be answered."""
    message = read_object(body, limits)
    version = message.get("protocol_version", PROTOCOL)
    if version != PROTOCOL:
        raise InvalidArgument(f"protocol_version: {version!r:.40}, expected {PROTOCOL!r}")
    if message.get("grad_mode"):
        raise InvalidArgument("grad_mode: gradients do not leave a scorer here: leave it out")
    return [_asked(entry, i) for i, entry in enumerate(list_at(message, "requests"))]


def _asked(entry: object, index: int) -> Asked:
    where = f"requests[{index}]."
    if not isinstance(entry, dict):
        raise InvalidArgument(f"requests[{index}]: expected an object")
    rewards = tuple(
        as_text(name, f"{where}required_rewards")
        for name in list_at(entry, "required_rewards", where)
    )
    if not rewards or len(set(rewards)) != len(rewards):
        raise InvalidArgument(f"{where}required_rewards: name at least one scorer, each once")
    if entry.get("scorer_version") is not None:
        raise InvalidArgument(
            f"{where}scorer_version: a request may name several rewards, so it cannot be pinned:"
            " leave expected_scorer_version out"
        )
    identity = {key: entry.get(key) for key in IDENTITY_KEYS}
    try:
        return Asked(_item(entry, index, where), rewards, identity)
    except InvalidArgument as error:
        return Asked(error.message, rewards, identity)


def _item(entry: dict[str, Any], index: int, where: str) -> Item:
    turns = list_at(entry, "history", where)
    if not turns:
        raise InvalidArgument(f"{where}history: expected at least one turn")
    images = []
    for position, turn in enumerate(turns):
        place = f"{where}history[{position}]"
        if not isinstance(turn, dict) or turn.get("image_b64") is None:
            raise InvalidArgument(
                f"{place}: no image_b64, which is all that is taken: files, videos and GPU memory"
                " of the caller are never opened"
            )
        images.append(image_at(turn["image_b64"], f"{place}.image_b64"))
    spec, kind = _spec(entry.get("metadata"), f"{where}metadata")
    prompt = text_at(turns[-1], "text", f"{where}history[{len(turns) - 1}].")
    return Item(str(index), prompt, (images[-1],), tuple(images[:-1]), spec, kind)


def _spec(metadata: object, where: str) -> tuple[dict[str, Any] | None, SpecKind | None]:
    if metadata is None or metadata == {}:
        return None, None
    if not isinstance(metadata, dict):
        raise InvalidArgument(f"{where}: expected an object")
    spec = specs.struct_to_dict(specs.to_struct(metadata, where))
    if "include" in spec:
        return spec, "geneval"
    return (spec, "ocr") if set(spec) == {"target"} else (spec, "metadata")


def _alike(entries: Sequence[Asked]) -> dict[tuple[str, ...], list[int]]:
    """Indices of the entries that can be scored, by the rewards they want."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for i, entry in enumerate(entries):
        if isinstance(entry.item, Item):
            groups.setdefault(entry.rewards, []).append(i)
    return groups


def _metrics(result: ScorerResult, place: int) -> dict[str, float]:
    # UniRL's client takes the first one unless configured to reduce them.
    found = {"score": result.scores[place], "raw": result.raw[place]}
    found |= {name: column[place] for name, column in result.components.items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def _failure(error: RewardError) -> Response:
    # The original's word for an unknown reward or a bad request is 400 with `detail`.
    if isinstance(error, NotFound | InvalidArgument):
        status = http_status(error) if isinstance(error, BodyTooLarge) else 400
        return JSONResponse({"detail": error.message}, status)
    return error_response(error)
