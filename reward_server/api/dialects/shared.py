"""What dialects share: JSON bodies whose every mistake is named, and failures of whole requests."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from reward_client.errors import Code, InvalidArgument, ItemError, RewardError, error_for
from reward_client.images import Image, sniff
from reward_client.types import ScorerResult
from reward_server.limits import RequestLimits, load_json


def read_object(body: bytes, limits: RequestLimits) -> dict[str, Any]:
    """Parse a JSON object within the limits; raises InvalidArgument."""
    found = load_json(body, limits)
    if not isinstance(found, dict):
        raise InvalidArgument(f"the body is a JSON {_name(found)}, expected an object")
    return found


def list_at(message: dict[str, Any], key: str, where: str = "") -> list[Any]:
    found = message.get(key)
    if not isinstance(found, list):
        raise InvalidArgument(f"{where}{key}: expected a list, got {_name(found)}")
    return found


def text_at(message: dict[str, Any], key: str, where: str = "") -> str:
    return as_text(message.get(key), f"{where}{key}")


def as_text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise InvalidArgument(f"{where}: expected a string, got {_name(value)}")
    return value


def image_at(value: object, where: str) -> Image:
    if not isinstance(value, str):
        raise InvalidArgument(f"{where}: expected a base64 string, got {_name(value)}")
    try:
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidArgument(f"{where}: not base64: {error}") from error
    return Image(data, sniff(data, what=where))


def _name(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def whole_error(result: ScorerResult) -> RewardError | None:
    """The error of a request some of whose items have no score, or None.

    Most dialects cannot say that one item failed: then the whole request does. The caller's own
    mistakes come first, then what will not get better, then what may.
    """
    if not result.errors:
        return None
    index, first = min(result.errors.items(), key=lambda entry: (_rank(entry[1]), entry[0]))
    more = len(result.errors) - 1
    others = f" (and {more} more of {len(result.scores)})" if more else ""
    return error_for(
        first.code,
        f"{first.message}{others}; the first without a score is image {index}",
        retryable=first.retryable,
        items=result.errors,
    )


def _rank(error: ItemError) -> int:
    if error.code is Code.INVALID_ARGUMENT:
        return 0
    return 2 if error.retryable or error.code is Code.DEADLINE_EXCEEDED else 1
