"""The same messages as JSON, as `POST /v1/score` and `GET /v1/scorers` speak them.

It is protobuf's own JSON mapping with the field names of the proto: bytes are base64, enums are
names, 64-bit integers are strings, an infinite range reads "-Infinity". Beyond it, bytes
may be a data URI, as browsers make them, and a GenEval row may be as it stands in GenEval's files:
`position` may be `["left of", 0]`, and the row may repeat its `prompt`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
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
    """Read the JSON body of a request.

    Raises:
        InvalidArgument: not an object, an unknown field, a value of the wrong type, or whatever
            `convert.request_from_proto` rejects. The message names the field.
    """
    if not isinstance(body, Mapping):
        raise InvalidArgument(f"expected a JSON object, got {type(body).__name__}")
    message = pb.ScoreRequest()
    try:
        json_format.ParseDict(_with_geneval_rows_adapted(body), message)
    except (json_format.ParseError, TypeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())
        raise InvalidArgument(f"the body is not a ScoreRequest: {reason}") from error
    return convert.request_from_proto(message)


def response_to_json(response: ScoreResponse) -> dict[str, Any]:
    """Build the JSON body of a response; placeholders of failed items are null, not numbers.

    Raises:
        Internal: a result breaks the contract.
    """
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
    """Build the JSON body of `GET /v1/scorers`."""
    return _to_dict(convert.infos_to_proto(infos, limits))


def error_to_json(error: RewardError) -> dict[str, Any]:
    """Build the JSON body of an error: `{"error": {"code", "message", "retryable", ...}}`."""
    return {"error": _to_dict(convert.error_to_proto(error))}


def _to_dict(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(message, preserving_proto_field_name=True, **_ALL_FIELDS)


def _with_geneval_rows_adapted(body: Mapping[str, Any]) -> dict[str, Any]:
    items = body.get("items")
    if not isinstance(items, list):
        return dict(body)
    return {**body, "items": [_with_data_uris_read(_with_row_adapted(item)) for item in items]}


def _with_row_adapted(item: object) -> object:
    row = item.get("geneval") if isinstance(item, Mapping) else None
    if not isinstance(item, Mapping) or not isinstance(row, Mapping):
        return item
    adapted = {key: value for key, value in row.items() if key != "prompt"}
    for name in ("include", "exclude"):
        if isinstance(row.get(name), list):
            adapted[name] = [_with_position_adapted(clause) for clause in row[name]]
    return {**item, "geneval": adapted}


def _with_position_adapted(clause: object) -> object:
    position = clause.get("position") if isinstance(clause, Mapping) else None
    if not isinstance(clause, Mapping) or not isinstance(position, list) or len(position) != 2:
        return clause
    return {**clause, "position": {"relation": position[0], "target": position[1]}}


def _with_data_uris_read(item: object) -> object:
    if not isinstance(item, Mapping):
        return item
    read = dict(item)
    for name in ("images", "references"):
        if isinstance(item.get(name), list):
            where = f"item {item.get('id', '')!r}, {name}"
            read[name] = [
                _with_data_read(media, f"{where}[{position}].data")
                for position, media in enumerate(item[name])
            ]
    return read


def _with_data_read(media: object, where: str) -> object:
    data = media.get("data") if isinstance(media, Mapping) else None
    if not isinstance(media, Mapping) or not isinstance(data, str):
        return media
    read = dict(media)
    if data.startswith("data:"):
        kind, comma, data = data.partition(",")
        if not comma or not kind.endswith(";base64"):
            raise InvalidArgument(
                f"{where}: a data URI must read data:image/png;base64,..., got {kind[:40]!r}"
            )
        encoding = _MIME_TYPES.get(kind.removeprefix("data:").split(";")[0].lower())
        read["data"] = data
        if encoding is not None:
            read.setdefault("encoding", encoding)
    # Protobuf drops a last letter that stands for no byte.
    letters = len(data) - sum(map(data.count, " \r\n\t="))
    if letters % 4 == 1:
        raise InvalidArgument(f"{where}: not base64: {letters} letters stand for no whole bytes")
    return read
