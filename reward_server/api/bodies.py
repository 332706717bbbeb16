"""Reads the three kinds of body `POST /v1/score` accepts, never more than the limit."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from reward_client.errors import InvalidArgument, ResourceExhausted
from reward_client.images import Image, sniff
from reward_client.types import Item, Priority, ScoreRequest, ScorerSelector
from reward_server.api import json_mirror
from reward_server.api.errors import BodyTooLarge
from reward_server.api.messages import parse_request
from reward_server.limits import RequestLimits, check_json_items, load_json
from reward_server.scheduling.arrival import Arrival

_MAX_UTF8_BYTES = 4
_FORM_FIELDS = frozenset({"images", "prompt", "scorers", "spec", "priority", "include_details"})


async def read_body(request: Request, limit_bytes: int, arrival: Arrival) -> bytes:
    """The whole body, admitted before it is read.

    Raises:
        BodyTooLarge: over the limit, by its content-length or as soon as so much has come.
        ResourceExhausted: the server is full.
    """
    parts = [part async for part in _admitted_parts(request, limit_bytes, arrival)]
    return b"".join(parts)


async def _admitted_parts(
    request: Request, limit_bytes: int, arrival: Arrival
) -> AsyncGenerator[bytes, None]:
    length = request.headers.get("content-length", "0")
    declared_bytes = int(length) if length.isdecimal() else 0
    if declared_bytes > limit_bytes:
        raise BodyTooLarge(limit_bytes)
    try:
        arrival.hold(declared_bytes)
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > limit_bytes:
                raise BodyTooLarge(limit_bytes)
            arrival.hold(size)
            yield part
    except ResourceExhausted:
        # Who still sends does not read: take the rest off the wire, or the answer is lost.
        async for _ in request.stream():
            pass
        raise


def parse_protobuf(body: bytes, limits: RequestLimits) -> ScoreRequest:
    return parse_request(body, limits).request(None)


def parse_json(body: bytes, limits: RequestLimits) -> ScoreRequest:
    decoded = load_json(body, limits)
    check_json_items(decoded, limits)
    return json_mirror.request_from_json(decoded)


async def parse_form(request: Request, limits: RequestLimits, arrival: Arrival) -> ScoreRequest:
    """Read a form for people with curl: files `images`, texts `prompt`, `scorers`, `spec`.

    One file is one item. `prompt` and `spec` are given once for all files, or once per file.
    `spec` is the JSON of an item's spec: `{"geneval": {...}}` or `{"ocr": {...}}`.
    Raises InvalidArgument.
    """
    parser = _FormInMemory(
        request.headers,
        _admitted_parts(request, limits.max_message_bytes, arrival),
        max_files=limits.max_items,
        max_fields=2 * limits.max_items + len(_FORM_FIELDS),
        max_part_size=max(limits.max_spec_chars, limits.max_prompt_chars) * _MAX_UTF8_BYTES,
    )
    try:
        form = await parser.parse()
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
    return _request_from_form(data, names, texts, limits)


class _FormInMemory(MultiPartParser):
    """Starlette's parser; the size is bounded, so nothing need go to disk."""

    spool_max_size = 1 << 62


def _request_from_form(
    data: list[bytes],
    names: list[str],
    texts: dict[str, list[str]],
    limits: RequestLimits,
) -> ScoreRequest:
    prompts = _per_file("prompt", texts["prompt"] or [""], len(data))
    specs = _per_file("spec", texts["spec"] or [""], len(data))
    scorers = [name.strip() for text in texts["scorers"] for name in text.split(",")]
    items = []
    for index, (content, name) in enumerate(zip(data, names, strict=True)):
        item = _item_with_spec(f"{index}:{name}", specs[index], limits)
        image = Image(content, sniff(content, what=f"images[{index}] ({name})"))
        items.append(Item(item.id, prompts[index], (image,), (), item.spec, item.spec_kind))
    priority = (texts["priority"] or ["EVAL"])[0].upper()
    if priority not in Priority.__members__:
        raise InvalidArgument(f"priority {priority!r} is not one of {list(Priority.__members__)}")
    return ScoreRequest(
        request_id=uuid.uuid4().hex,
        scorers=tuple(ScorerSelector(name) for name in scorers if name),
        items=tuple(items),
        priority=Priority(priority),
        include_details=(texts["include_details"] or [""])[0].lower() in ("1", "true", "yes"),
    )


def _item_with_spec(item_id: str, spec: str, limits: RequestLimits) -> Item:
    try:
        decoded = load_json(spec.encode("utf-8", "replace"), limits) if spec else {}
    except InvalidArgument as error:
        message = error.message.removeprefix("the body")
        raise InvalidArgument(f"item {item_id!r}, spec{message}") from error
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
