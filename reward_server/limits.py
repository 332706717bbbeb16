"""What a request may hold, checked before anything is built from its bytes.

A message of some megabytes can stand for gigabytes of objects: sixteen million empty items, arrays
nested in arrays. So the bytes are looked over first, in their own format and with a budget.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from pydantic import BaseModel, ConfigDict, Field

from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client.errors import InvalidArgument
from reward_client.types import Item

# Around a spec there are the request, its items, and the spec's own levels of messages.
_DEPTH_AROUND_SPEC = 8
_MAX_MESSAGE_DEPTH = 100  # protobuf's own
LENGTH_DELIMITED = 2
_FIXED_BYTES = {1: 8, 5: 4}


class RequestLimits(BaseModel):
    """The keys of `[server]` that bound one request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_message_bytes: int = Field(
        32 << 20, ge=1 << 16, description="bytes per request as it arrives (base64 is a third more)"
    )
    max_items: int = Field(512, ge=1, description="items per request")
    max_frames: int = Field(512, ge=1, description="images of one item, and its references")
    max_prompt_chars: int = Field(1 << 16, ge=1, description="characters of one prompt")
    max_id_chars: int = Field(1024, ge=64, description="characters of the id of an item or request")
    max_spec_depth: int = Field(
        32, ge=1, le=64, description="levels of lists and objects in one item's spec"
    )
    max_spec_chars: int = Field(
        1 << 18, ge=1, description="one item's spec: text, keys, and one for every other value"
    )
    max_values: int = Field(400_000, ge=1000, description="fields or JSON values of one request")


def load_json(body: bytes, limits: RequestLimits) -> Any:
    """Read JSON that is neither too deep nor made of too many values; raises InvalidArgument."""
    # Inside of strings these count too; base64 has none of them, prompts have few.
    values = body.count(b",") + body.count(b"[") + body.count(b"{")
    if values > limits.max_values:
        raise InvalidArgument(
            f"the body has about {values} JSON values, the limit is {limits.max_values}: split it"
        )
    try:
        decoded = json.loads(body, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise _too_deep("the body", limits) from error
    except ValueError as error:
        raise InvalidArgument(f"the body is not JSON: {error}") from error
    if depth_of(decoded, limits.max_spec_depth + _DEPTH_AROUND_SPEC) is None:
        raise _too_deep("the body", limits)
    if b"\\u" in body and not _is_unicode(decoded):
        raise InvalidArgument("the body has half a surrogate pair in a string: send valid Unicode")
    return decoded


def check_json_items(decoded: object, limits: RequestLimits) -> None:
    """Raise InvalidArgument if a JSON request has too many items; before messages are built."""
    found = decoded.get("items") if isinstance(decoded, Mapping) else None
    if isinstance(found, list):
        _check_items(len(found), limits)


def check_message(
    body: bytes, limits: RequestLimits, kind: Any = pb.ScoreRequest.DESCRIPTOR
) -> None:
    """Look a serialised message over (by default a `reward.v1.ScoreRequest`), without parsing it.

    What is malformed passes: the parser says so better. Raises InvalidArgument.
    """
    if len(body) <= 2 * min(
        limits.max_values, limits.max_items
    ):  # a field takes two bytes at least
        return
    with contextlib.suppress(Malformed):
        FieldWalk(limits, kind).message(memoryview(body), kind, 0)


def item_limit_problem(item: Item, limits: RequestLimits) -> str | None:
    """Which limit an item exceeds, in one line that names item and field, or None."""
    if len(item.id) > limits.max_id_chars:
        start, limit = item.id[:40], limits.max_id_chars
        return f"item {start!r}...: id has {len(item.id)} characters, the limit is {limit}"
    where = f"item {item.id!r}"
    if len(item.prompt) > limits.max_prompt_chars:
        limit = limits.max_prompt_chars
        return f"{where}: prompt has {len(item.prompt)} characters, the limit is {limit}"
    for field, images in (("images", item.images), ("references", item.references)):
        if len(images) > limits.max_frames:
            return (
                f"{where}: {field} has {len(images)} pictures, the limit is {limits.max_frames}:"
                " send fewer frames"
            )
    return _spec_problem(item, limits) if item.spec is not None else None


def _spec_problem(item: Item, limits: RequestLimits) -> str | None:
    where = f"item {item.id!r}"
    chars = depth_of(dict(item.spec or {}), limits.max_spec_depth)
    if chars is None:
        return f"{where}: spec is nested deeper than {limits.max_spec_depth}"
    if chars > limits.max_spec_chars:
        return f"{where}: spec has {chars} characters, the limit is {limits.max_spec_chars}"
    return None


def depth_of(value: object, max_depth: int) -> int | None:
    """The size in characters of a JSON-like value; None if it is nested deeper than `max_depth`."""
    todo: list[tuple[object, int]] = [(value, 1)]
    chars = 0
    while todo:
        entry, depth = todo.pop()
        if isinstance(entry, str):
            chars += len(entry)
        elif isinstance(entry, Mapping | list | tuple):
            if depth > max_depth:
                return None
            if isinstance(entry, Mapping):
                chars += sum(len(str(key)) for key in entry)
                todo += [(child, depth + 1) for child in entry.values()]
            else:
                todo += [(child, depth + 1) for child in entry]
        chars += 1
    return chars


class Malformed(ValueError):
    """The bytes are no message of protobuf's."""


class TooManyFields(Exception):
    """A message has more fields than are walked in the event loop."""


class FieldWalk:
    """Counts the fields of a message as it lies on the wire, and stops at the limit."""

    def __init__(self, limits: RequestLimits, kind: Any, most_fields: int | None = None) -> None:
        self._limits = limits
        self._has_items = kind is pb.ScoreRequest.DESCRIPTOR
        self._most = min(limits.max_values, most_fields or limits.max_values)
        self._values = 0
        self._items = 0

    def fields(self, data: memoryview, depth: int) -> Iterator[tuple[int, memoryview, memoryview]]:
        """The fields of one message: tag, the value of a length-delimited one, and the whole."""
        if depth > _MAX_MESSAGE_DEPTH:
            raise InvalidArgument(f"the message is nested deeper than {_MAX_MESSAGE_DEPTH}")
        at, size = 0, len(data)
        while at < size:
            begin = at
            tag, at = _varint(data, at)
            self._count(depth, tag >> 3)
            wire_type, value = tag & 7, at
            if wire_type == LENGTH_DELIMITED:
                length, value = _varint(data, at)
                at = value + length
            elif wire_type == 0:
                _, at = _varint(data, at)
            else:
                at += _FIXED_BYTES.get(wire_type, size)
            if at > size:
                raise Malformed
            yield tag, data[value:at], data[begin:at]

    def message(self, data: memoryview, kind: Any, depth: int) -> None:
        for tag, value, _ in self.fields(data, depth):
            self.inside(kind, tag, value, depth)

    def inside(self, kind: Any, tag: int, value: memoryview, depth: int) -> None:
        """Walk what is inside of a field of a message of that kind."""
        field = kind.fields_by_number.get(tag >> 3)
        if field is None or tag & 7 != LENGTH_DELIMITED:
            return
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            self.message(value, field.message_type, depth + 1)

    def _count(self, depth: int, number: int) -> None:
        self._values += 1
        if self._values > self._most:
            if self._values <= self._limits.max_values:
                raise TooManyFields
            raise InvalidArgument(
                f"the message has more than {self._limits.max_values} fields: split it"
            )
        if self._has_items and depth == 0 and number == pb.ScoreRequest.ITEMS_FIELD_NUMBER:
            self._items += 1
            _check_items(self._items, self._limits)


def _check_items(n: int, limits: RequestLimits) -> None:
    if n > limits.max_items:
        raise InvalidArgument(
            f"the request has more items than the limit of {limits.max_items}: split it"
        )


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def _too_deep(what: str, limits: RequestLimits) -> InvalidArgument:
    depth = limits.max_spec_depth + _DEPTH_AROUND_SPEC
    return InvalidArgument(f"{what} is JSON nested deeper than {depth}")


def _is_unicode(decoded: object) -> bool:
    """Whether all strings can be written as UTF-8, which protobuf takes for granted."""
    try:
        json.dumps(decoded, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """(value, position behind it)."""
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
        shift += 7
    raise Malformed
