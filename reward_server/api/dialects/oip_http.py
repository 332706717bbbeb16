"""The Open Inference Protocol over HTTP: JSON, and binary tensors behind it."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from reward_client.errors import STATUS, Code, InvalidArgument, RewardError
from reward_client.types import ScoreRequest, ScorerSelector
from reward_server.api.dialects import oip
from reward_server.api.dialects.shared import as_text, list_at, read_object, text_at
from reward_server.api.errors import BodyTooLarge, http_status
from reward_server.api.exchange import Exchange, HttpDialect
from reward_server.limits import RequestLimits
from reward_server.service import RewardService

HEADER = "inference-header-content-length"


@dataclass(frozen=True, slots=True)
class Infer:
    """A request: its tensors, and how the outputs are wanted (name -> whether in binary)."""

    id: str
    tensors: Sequence[oip.Tensor]
    outputs: dict[str, bool]
    is_binary: bool


class OipHttpApi:
    """`/v2` of the HTTP API; every scorer is a model."""

    def __init__(self, service: RewardService) -> None:
        self._service = service
        self._dialect = HttpDialect(service, "oip", "POST oip", _failure)

    async def server(self) -> Response:
        body = {"name": oip.SERVER_NAME, "version": oip.SERVER_VERSION}
        return JSONResponse({**body, "extensions": ["binary_tensor_data"]})

    async def live(self) -> Response:
        return JSONResponse({"live": True})

    async def ready(self) -> Response:
        ready = self._service.is_ready()
        return JSONResponse({"ready": ready}, 200 if ready else STATUS[Code.UNAVAILABLE].http)

    async def model(self, name: str, version: str = "") -> Response:
        try:
            info = oip.model_of(self._service.infos(), name, version)
        except RewardError as error:
            return _failure(error)
        body: dict[str, Any] = {"name": info.name, "platform": oip.PLATFORM}
        body["versions"] = [info.version] if info.version else []
        for key, tensors in (("inputs", oip.inputs_of(info)), ("outputs", oip.outputs_of())):
            body[key] = [{"name": n, "datatype": d, "shape": s} for n, d, s in tensors]
        return JSONResponse(body)

    async def model_ready(self, name: str, version: str = "") -> Response:
        try:
            ready = oip.model_of(self._service.infos(), name, version).state == "READY"
        except RewardError as error:
            return _failure(error)
        status = 200 if ready else STATUS[Code.UNAVAILABLE].http
        return JSONResponse({"name": name, "ready": ready}, status)

    async def infer(self, http: Request, name: str, version: str = "") -> Response:
        async def answer(exchange: Exchange) -> Response:
            header = http.headers.get(HEADER)
            asked, items = await exchange.read(
                lambda body: (
                    found := parse(body, header, exchange.limits),
                    oip.items_from(found.tensors),
                )
            )
            oip.model_of(self._service.infos(), name, version)
            request = ScoreRequest("", (ScorerSelector(name, version),), items)
            result = (await exchange.score(request)).results[name]
            outputs = oip.outputs_from(result, list(asked.outputs))
            head = {"model_name": name, "model_version": result.version, "id": asked.id}
            return _answer(head, outputs, asked)

        return await self._dialect.answer(http, answer)


def parse(body: bytes, json_length: str | None, limits: RequestLimits) -> Infer:
    """Read a request; raises InvalidArgument.

    Args:
        body: JSON, and behind it the binary tensors in order.
        json_length: bytes of JSON in the body, as the header says; None for all.
        limits: of the JSON.
    """
    size = len(body) if json_length is None else _size(json_length, len(body), HEADER)
    message, rest = read_object(body[:size], limits), memoryview(body)[size:]
    tensors = []
    for index, entry in enumerate(list_at(message, "inputs")):
        read, rest = _input(entry, f"inputs[{index}].", rest)
        tensors.append(read)
    if len(rest):
        raise InvalidArgument(f"{len(rest)} bytes follow the last binary tensor")
    is_binary = _flag(message, "binary_data_output")
    outputs: dict[str, bool] = {}
    entries = list_at(message, "outputs") if message.get("outputs") is not None else []
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict):
            raise InvalidArgument(f"outputs[{index}]: expected an object")
        name = text_at(entry, "name", f"outputs[{index}].")
        outputs[name] = _flag(entry, "binary_data", default=is_binary)
    return Infer(as_text(message.get("id", ""), "id"), tensors, outputs, is_binary)


def _input(entry: object, where: str, rest: memoryview) -> tuple[oip.Tensor, memoryview]:
    if not isinstance(entry, dict):
        raise InvalidArgument(f"{where[:-1]}: expected an object")
    name, datatype = text_at(entry, "name", where), text_at(entry, "datatype", where)
    shape = list_at(entry, "shape", where)
    if any(type(side) is not int for side in shape):
        raise InvalidArgument(f"{where}shape: expected whole numbers")
    size = _parameters(entry).get("binary_data_size")
    if size is not None:
        length = _size(str(size), len(rest), f"{where}parameters.binary_data_size")
        raw, rest = bytes(rest[:length]), rest[length:]
        data = oip.split_bytes(raw, name) if datatype == "BYTES" else raw
    else:
        flat = list(_flat(list_at(entry, "data", where), where, depth=1))
        data = _from_json(name, datatype, flat, where)
    return oip.tensor(name, datatype, shape, data), rest


def _flat(values: list[Any], where: str, depth: int) -> Iterator[Any]:
    if depth > 8:
        raise InvalidArgument(f"{where}data: nested deeper than 8")
    for value in values:
        if isinstance(value, list):
            yield from _flat(value, where, depth + 1)
        else:
            yield value


def _from_json(name: str, datatype: str, flat: list[Any], where: str) -> list[bytes] | bytes:
    try:
        if datatype == "UINT8":
            return bytes(flat)
        if name == "IMAGE":
            return [base64.b64decode(as_text(v, f"{where}data"), validate=True) for v in flat]
    except (ValueError, TypeError, binascii.Error) as error:
        expected = "numbers 0 to 255" if datatype == "UINT8" else "base64 strings"
        raise InvalidArgument(f"{where}data: expected {expected}") from error
    return [as_text(value, f"{where}data").encode() for value in flat]


def _answer(head: dict[str, Any], outputs: list[oip.Output], asked: Infer) -> Response:
    described, tail = [], []
    for output in outputs:
        entry: dict[str, Any] = {"name": output.name, "datatype": output.datatype}
        entry["shape"] = [len(output.values)]
        if asked.outputs.get(output.name, asked.is_binary):
            tail.append(oip.binary(output))
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            entry["data"] = [v.decode() if isinstance(v, bytes) else v for v in output.values]
        described.append(entry)
    text = json.dumps({**head, "outputs": described}, allow_nan=False).encode()
    if not tail:
        return Response(text, media_type="application/json")
    headers = {"Inference-Header-Content-Length": str(len(text))}
    return Response(b"".join([text, *tail]), 200, headers, "application/octet-stream")


def _failure(error: RewardError) -> Response:
    status = http_status(error)
    if error.code is Code.INVALID_ARGUMENT and not isinstance(error, BodyTooLarge):
        status = 400
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    return JSONResponse({"error": error.message}, status, headers)


def _parameters(entry: dict[str, Any]) -> dict[str, Any]:
    found = entry.get("parameters")
    return found if isinstance(found, dict) else {}


def _flag(entry: dict[str, Any], key: str, *, default: bool = False) -> bool:
    return _parameters(entry).get(key, default) is True


def _size(text: str, available: int, where: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 12 or int(text) > available:
        raise InvalidArgument(f"{where}: {text!r:.40} is not a number of the bytes that are there")
    return int(text)
