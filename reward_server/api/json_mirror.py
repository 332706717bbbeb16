"""The same messages as JSON, as `POST /v1/score` and `GET /v1/scorers` speak them.

It is protobuf's own JSON mapping with the field names of the proto: bytes are base64, enums are
names, 64-bit integers are strings, an infinite range reads "-Infinity". Beyond it, bytes
may be a data URI, as browsers make them, and a GenEval row may be as it stands in GenEval's files:
`position` may be `["left of", 0]`, and the row may repeat its `prompt`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._wire import convert
from reward_client.errors import InvalidArgument, RewardError
from reward_client.types import ScoreRequest, ScoreResponse, ScorerInfo, ServerLimits

# Protobuf 4 and 5 name the same option differently.
_PARAMETERS = inspect.signature(json_format.MessageToDict).parameters
_ALL_FIELDS: dict[str, Any] = (
    {"always_print_fields_with_no_presence": True}
    if "always_print_fields_with_no_presence" in _PARAMETERS
    else {"including_default_value_fields": True}
)

_MIME_TYPES = {
    "image/png": "PNG",
    "image/jpeg": "JPEG",
    "image/jpg": "JPEG",
    "image/webp": "WEBP",
}


def request_from_json(body: object) -> ScoreRequest:
    """Read the JSON body of a request; it is used up.

    Raises:
        InvalidArgument: not an object, an unknown field, a value of the wrong type, or whatever
            `convert.request_from_proto` rejects. The message names the field.
    """
    if not isinstance(body, dict):
        raise InvalidArgument(f"expected a JSON object, got {type(body).__name__}")
    _adapt(body)
    message = pb.ScoreRequest()
    try:
        json_format.ParseDict(body, message)
    except (json_format.ParseError, TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise InvalidArgument(f"the body is not a ScoreRequest: {reason}") from error
    return convert.request_from_proto(message)


def response_to_json(response: ScoreResponse) -> dict[str, Any]:
    """Build the JSON body of a response; failed items have null, not numbers. Raises Internal."""
    body = _to_dict(convert.response_to_proto(response))
    for result in body["results"]:
        failed = [status["index"] for status in result["status"]]
        columns = [result["scores"], result["raw"]]
        columns += [component["values"] for component in result["components"].values()]
        for column in columns:
            for index in failed:
                column[index] = None
    return body


def infos_to_json(
    infos: Iterable[ScorerInfo], limits: ServerLimits | None = None
) -> dict[str, Any]:
    return _to_dict(convert.infos_to_proto(infos, limits))


def error_to_json(error: RewardError) -> dict[str, Any]:
    """Build the JSON body of an error: `{"error": {"code", "message", "retryable", ...}}`."""
    return {"error": _to_dict(convert.error_to_proto(error))}


def _to_dict(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(message, preserving_proto_field_name=True, **_ALL_FIELDS)


def _adapt(body: dict[str, Any]) -> None:
    """Turn what is accepted beyond protobuf's mapping into that mapping, in place."""
    for item in _objects(body.get("items")):
        row = item.get("geneval")
        if isinstance(row, dict):
            row.pop("prompt", None)
            for clause in (*_objects(row.get("include")), *_objects(row.get("exclude"))):
                position = clause.get("position")
                if isinstance(position, list) and len(position) == 2:
                    clause["position"] = {"relation": position[0], "target": position[1]}
        for name in ("images", "references"):
            for index, media in enumerate(_objects(item.get(name))):
                _adapt_data(media, f"item {item.get('id', '')!r}, {name}[{index}].data")


def _objects(value: object) -> list[dict[str, Any]]:
    """The objects of a list; protobuf says what is wrong with anything else."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _adapt_data(media: dict[str, Any], where: str) -> None:
    data = media.get("data")
    if not isinstance(data, str):
        return
    if data.startswith("data:"):
        kind, comma, data = data.partition(",")
        if not comma or not kind.endswith(";base64"):
            raise InvalidArgument(
                f"{where}: a data URI must read data:image/png;base64,..., got {kind[:40]!r}"
            )
        media["data"] = data
        encoding = _MIME_TYPES.get(kind.removeprefix("data:").split(";")[0].lower())
        if encoding is not None:
            media.setdefault("encoding", encoding)
    # Protobuf drops a last letter that stands for no byte.
    letters = len(data) - sum(map(data.count, " \r\n\t="))
    if letters % 4 == 1:
        raise InvalidArgument(f"{where}: not base64: {letters} letters stand for no whole bytes")
