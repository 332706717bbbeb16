"""Turns whatever a handler may raise into the one error tree both APIs answer with."""

from __future__ import annotations

import math

import structlog
from fastapi.responses import JSONResponse, Response

from reward_client._wire import json_mirror
from reward_client.errors import STATUS, Internal, RewardError
from reward_server.api.redaction import redacted_error


def as_reward_error(error: Exception) -> RewardError:
    """A RewardError without paths; anything else is a bug of the server: logged, told briefly."""
    if isinstance(error, RewardError):
        # Its traceback holds frames, which hold the request and the error itself: a cycle that
        # would keep the bytes of refused requests until the next full garbage collection.
        error.__traceback__ = error.__cause__ = error.__context__ = None
        return redacted_error(error)
    structlog.get_logger().error("bug", exc_info=error)
    return Internal(f"a bug of the server ({type(error).__name__}): see its log")


def error_response(error: RewardError) -> Response:
    """The JSON body, the status and Retry-After of an error."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
        headers["retry-after-ms"] = str(math.ceil(1e3 * error.retry_after_s))
    return JSONResponse(json_mirror.error_to_json(error), STATUS[error.code].http, headers)
