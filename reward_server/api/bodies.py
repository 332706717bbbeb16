"""Reads the three kinds of body `POST /v1/score` accepts, never more than the limit."""

from __future__ import annotations

import json
import uuid

from fastapi import Request
from google.protobuf.message import DecodeError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException

from reward_client import codec, convert, json_mirror
from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client.errors import InvalidArgument
from reward_client.types import Image, Item, Priority, ScoreRequest, ScorerSelector

_FORM_FIELDS = frozenset({"images", "prompt", "scorers", "spec", "priority", "include_details"})


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The whole body; raises InvalidArgument as soon as it is over the limit."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit_bytes:
            raise _too_large(limit_bytes)
        parts.append(part)
    return b"".join(parts)


def parse_protobuf(body: bytes) -> ScoreRequest:
    """Read a serialised `reward.v1.ScoreRequest`; raises InvalidArgument."""
    try:
        message = pb.ScoreRequest.FromString(body)
    except DecodeError as error:
        raise InvalidArgument("the body is not a serialised reward.v1.ScoreRequest") from error
    return convert.request_from_proto(message)


def parse_json(body: bytes) -> ScoreRequest:
    """Read a ScoreRequest as JSON with base64 images; raises InvalidArgument."""
    try:
        decoded = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"the body is not JSON: {error}") from error
    return json_mirror.request_from_json(decoded)


async def parse_form(request: Request, limit_bytes: int) -> ScoreRequest:
    """Read a form for people with curl: files `images`, texts `prompt`, `scorers`, `spec`.

    One file is one item. `prompt` and `spec` are given once for all files, or once per file.
    `spec` is the JSON of an item's spec: `{"geneval": {...}}` or `{"ocr": {...}}`.

    Raises:
        InvalidArgument: anything else; names the field.
    """
    if int(request.headers.get("content-length") or 0) > limit_bytes:
        raise _too_large(limit_bytes)
    try:
        form = await request.form(max_files=512, max_fields=2048, max_part_size=1 << 20)
    except (MultiPartException, HTTPException) as error:
        reason = getattr(error, "message", None) or getattr(error, "detail", "")
        raise InvalidArgument(f"the body is not a valid form: {reason}") from error
    try:
        unknown = sorted(set(form) - _FORM_FIELDS)
        if unknown:
            known = ", ".join(sorted(_FORM_FIELDS))
            raise InvalidArgument(f"unknown form field {unknown[0]!r}: known are {known}")
        files = [entry for entry in form.getlist("images") if isinstance(entry, UploadFile)]
        if not files:
            raise InvalidArgument("no file in the form field `images`")
        data = [await file.read() for file in files]
        names = [file.filename or "file" for file in files]
        texts = {key: [str(v) for v in form.getlist(key)] for key in _FORM_FIELDS - {"images"}}
    finally:
        await form.close()
    return _request_from_form(data, names, texts)


def _request_from_form(
    data: list[bytes], names: list[str], texts: dict[str, list[str]]
) -> ScoreRequest:
    prompts = _per_file("prompt", texts["prompt"] or [""], len(data))
    specs = _per_file("spec", texts["spec"] or [""], len(data))
    scorers = [name.strip() for text in texts["scorers"] for name in text.split(",")]
    items = []
    for index, (content, name) in enumerate(zip(data, names, strict=True)):
        item = _item_with_spec(f"{index}:{name}", specs[index])
        image = Image(content, codec.sniff(content, what=f"images[{index}] ({name})"))
        items.append(Item(item.id, prompts[index], (image,), (), item.spec, item.spec_kind))
    priority = (texts["priority"] or ["TRAIN"])[0].upper()
    if priority not in Priority.__members__:
        raise InvalidArgument(f"priority {priority!r} is not one of {list(Priority.__members__)}")
    return ScoreRequest(
        request_id=uuid.uuid4().hex,
        scorers=tuple(ScorerSelector(name) for name in scorers if name),
        items=tuple(items),
        priority=Priority(priority),
        include_details=(texts["include_details"] or [""])[0].lower() in ("1", "true", "yes"),
    )


def _item_with_spec(item_id: str, spec: str) -> Item:
    decoded: object = {}
    try:
        decoded = json.loads(spec) if spec else {}
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"item {item_id!r}, spec is not JSON: {error}") from error
    if not isinstance(decoded, dict) or not set(decoded) <= {"geneval", "ocr", "metadata"}:
        raise InvalidArgument(
            f"item {item_id!r}, spec: expected an object with one key geneval, ocr or metadata"
        )
    return json_mirror.request_from_json({"items": [{"id": item_id, **decoded}]}).items[0]


def _per_file(field: str, values: list[str], n: int) -> list[str]:
    if len(values) == 1:
        return values * n
    if len(values) != n:
        raise InvalidArgument(
            f"{len(values)} values of `{field}` for {n} images: give one for all, or one each"
        )
    return values


def _too_large(limit_bytes: int) -> InvalidArgument:
    return InvalidArgument(f"the body is over the limit of {limit_bytes} bytes: split the request")
