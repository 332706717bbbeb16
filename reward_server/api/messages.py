"""Reads a serialised `reward.v1.ScoreRequest` in one pass; its pixels are not copied.

protobuf copies every picture twice, into its own memory and out again. Here the fields are walked
once, which also checks the limits before anything is built; pixels become views of the message, and
protobuf parses what is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from google.protobuf.message import DecodeError

from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._wire import convert
from reward_client._wire.message import DATA, IMAGES, ITEMS, REFERENCES, SHM
from reward_client.errors import InvalidArgument
from reward_client.images import Image
from reward_client.types import Item, ScoreRequest
from reward_server.limits import LENGTH_DELIMITED, FieldWalk, Malformed, RequestLimits

# Reads shared memory: a reference and how many bytes there must be -> the bytes.
ReadShared: TypeAlias = Callable[[pb.SharedMemoryRef, int], bytes]

# Tags of the fields that hold pixels, or what does.
_ITEM, _DATA, _SHM = (number << 3 | LENGTH_DELIMITED for number in (ITEMS, DATA, SHM))
_PICTURES = {
    IMAGES << 3 | LENGTH_DELIMITED: "images",
    REFERENCES << 3 | LENGTH_DELIMITED: "references",
}


@dataclass(slots=True)
class _Media:
    field: str
    about: pb.Media
    data: memoryview | None


@dataclass(slots=True)
class _Item:
    rest: pb.Item
    media: list[_Media]


@dataclass(slots=True)
class Parsed:
    """A request whose images are still where they arrived."""

    header: pb.ScoreRequest
    items: list[_Item] = field(default_factory=list)

    @property
    def request_id(self) -> str:
        return self.header.request_id

    @property
    def shared_bytes(self) -> int:
        """Bytes of shared memory that it refers to."""
        return sum(m.about.shm.length_bytes for i in self.items for m in i.media if m.data is None)

    def request(self, read_shared: ReadShared | None) -> ScoreRequest:
        """Turn it into dataclasses; raises InvalidArgument.

        Args:
            read_shared: None where no memory is shared; a reference is refused then.
        """
        return convert.request_from_proto(
            self.header, tuple(_item(item, read_shared) for item in self.items)
        )


def parse_request(body: bytes, limits: RequestLimits, most_fields: int | None = None) -> Parsed:
    """Split a serialised request; raises InvalidArgument.

    Args:
        body: the message.
        limits: what it may hold.
        most_fields: stop and raise `TooManyFields` beyond, for callers that need the header only.
    """
    walk, kind = FieldWalk(limits, pb.ScoreRequest.DESCRIPTOR, most_fields), pb.ScoreRequest
    header, items = bytearray(), []
    try:
        for tag, value, whole in walk.fields(memoryview(body), 0):
            if tag == _ITEM:
                items.append(_split_item(walk, value))
            else:
                walk.inside(kind.DESCRIPTOR, tag, value, 0)
                header += whole
        return Parsed(kind.FromString(bytes(header)), items)
    except (DecodeError, Malformed) as error:
        raise InvalidArgument("the message is not a reward.v1.ScoreRequest") from error


def _split_item(walk: FieldWalk, data: memoryview) -> _Item:
    rest, media = bytearray(), []
    for tag, value, whole in walk.fields(data, 1):
        if tag in _PICTURES:
            media.append(_split_media(walk, _PICTURES[tag], value))
        else:
            walk.inside(pb.Item.DESCRIPTOR, tag, value, 1)
            rest += whole
    return _Item(pb.Item.FromString(bytes(rest)), media)


def _split_media(walk: FieldWalk, field: str, data: memoryview) -> _Media:
    about, pixels = bytearray(), None
    for tag, value, whole in walk.fields(data, 2):
        if tag == _DATA:
            pixels = value
            continue
        if tag == _SHM:
            pixels = None  # of a oneof the last one counts
        walk.inside(pb.Media.DESCRIPTOR, tag, value, 2)
        about += whole
    return _Media(field, pb.Media.FromString(bytes(about)), pixels)


def _item(item: _Item, read_shared: ReadShared | None) -> Item:
    found: dict[str, list[Image]] = {"images": [], "references": []}
    for media in item.media:
        images = found[media.field]
        where = f"item {item.rest.id!r}, {media.field}[{len(images)}]"
        data: bytes | memoryview = media.data or b""
        if not data and read_shared and media.about.HasField("shm"):
            data = _shared(media.about, where, read_shared)
        images.append(convert.image_from_proto(media.about, data, where))
    return convert.item_from_proto(item.rest, tuple(found["images"]), tuple(found["references"]))


def _shared(about: pb.Media, where: str, read_shared: ReadShared) -> bytes:
    if about.encoding != pb.Media.RAW_U8_RGB_HWC:
        raise InvalidArgument(f"{where}: only RAW_U8_RGB_HWC may be in shared memory")
    try:
        return read_shared(about.shm, about.width * about.height * 3)
    except InvalidArgument as error:
        raise InvalidArgument(f"{where}: {error.message}") from error
