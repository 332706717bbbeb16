"""Turns whatever a handler may raise into the one error tree both APIs answer with."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import lru_cache
from http import HTTPStatus

import structlog
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from reward_client.errors import (
    STATUS,
    Internal,
    InvalidArgument,
    ItemError,
    NotFound,
    RewardError,
    error_for,
)
from reward_client.types import ScoreResponse, ScorerInfo
from reward_server.api import json_mirror


class BodyTooLarge(InvalidArgument):
    """A request is over the server's limit of bytes: 413 over HTTP."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the body is over the limit of {limit_bytes} bytes: split the request")


def as_reward_error(error: Exception) -> RewardError:
    """A RewardError without paths; anything else is a bug of the server, and logged."""
    if isinstance(error, RewardError):
        # Its traceback holds frames, which hold the request and the error itself: a cycle that
        # would keep the bytes of refused requests until the next full garbage collection.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        return error if isinstance(error, BodyTooLarge) else redacted_error(error)
    structlog.get_logger().error("bug", exc_info=error)
    return Internal(f"a bug of the server ({type(error).__name__}): see its log")


def http_status(error: RewardError) -> int:
    return 413 if isinstance(error, BodyTooLarge) else STATUS[error.code].http


def error_response(error: RewardError, status: int | None = None) -> Response:
    """The JSON body, the status (by default that of its code) and Retry-After of an error."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
        headers["retry-after-ms"] = str(math.ceil(1e3 * error.retry_after_s))
    return JSONResponse(json_mirror.error_to_json(error), status or http_status(error), headers)


_MAX_PATH_CHARS = 200


def answer_framework_errors(
    app: FastAPI, respond: Callable[[RewardError, int], Response], hint: str
) -> None:
    """Answer what no handler of ours has seen (404, 405) in the shape of all other errors."""

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path, headers = request.url.path[:_MAX_PATH_CHARS], Headers(error.headers or {})
        refusal: RewardError = InvalidArgument(f"{path!r}: {error.detail}")
        if error.status_code == HTTPStatus.NOT_FOUND:
            refusal = NotFound(f"no such path {path!r}: {hint}")
        elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = headers.get("allow") or "another method"
            refusal = InvalidArgument(f"{request.method} is not allowed on {path!r}: use {allowed}")
        response = respond(refusal, error.status_code)
        response.headers.update(headers)
        return response

    app.add_exception_handler(HTTPException, refused)


# An absolute path of two parts or more; not the path of a URL.
_PATH = re.compile(r"(?<![\w/:.~-])/([\w.@+~-]+)(?:/[\w.@+=~-]+)+/?")
_TRACEBACK = "Traceback (most recent call last)"
_MAX_CHARS = 2000


def redacted(text: str) -> str:
    """A message without paths of this server, on one line.

    Of a path its last part is left. Only what begins with a folder of this host's root is a path;
    `/v1/score` is not.
    """
    before, traceback, _ = text.partition(_TRACEBACK)
    line = " ".join(before.split()) + (" (traceback in the server's log)" if traceback else "")
    if len(line) > _MAX_CHARS:
        line = line[:_MAX_CHARS] + "..."
    return _PATH.sub(_last_part, line)


def redacted_error(error: RewardError) -> RewardError:
    return error_for(
        error.code,
        redacted(error.message),
        retryable=error.retryable,
        retry_after_s=error.retry_after_s,
        items={index: _item(item) for index, item in error.items.items()},
    )


def redacted_response(response: ScoreResponse) -> ScoreResponse:
    if not any(result.errors for result in response.results.values()):
        return response
    results = {
        name: replace(result, errors={i: _item(error) for i, error in result.errors.items()})
        for name, result in response.results.items()
    }
    return replace(response, results=results)


def redacted_infos(infos: Iterable[ScorerInfo]) -> list[ScorerInfo]:
    return [
        replace(
            info,
            last_error=redacted(info.last_error),
            replicas=tuple(
                replace(one, last_error=redacted(one.last_error)) for one in info.replicas
            ),
        )
        for info in infos
    ]


def _item(error: ItemError) -> ItemError:
    return replace(error, message=redacted(error.message))


def _last_part(match: re.Match[str]) -> str:
    path = match[0].rstrip("/")
    return ".../" + path.rpartition("/")[2] if _is_root_folder(match[1]) else match[0]


@lru_cache(maxsize=256)
def _is_root_folder(name: str) -> bool:
    return os.path.isdir("/" + name)
