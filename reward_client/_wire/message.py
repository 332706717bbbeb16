"""A request in pieces: pixels are copied once, when it is sent, into the message or beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from reward_client.images import Encoding, Image

# The numbers of the fields that hold pixels, in reward.proto.
ITEMS, IMAGES, REFERENCES, DATA, SHM = 3, 3, 4, 1, 2

# Puts raw pixels where the server finds them; the serialised `SharedMemoryRef`, None for no room.
Place: TypeAlias = Callable[["bytes | memoryview"], "bytes | None"]


@dataclass(frozen=True, slots=True)
class MediaPieces:
    """An image: the number of its field in `Item`, `Media` without its source, and the image."""

    number: int
    about: bytes
    image: Image

    def chunks(self, place: Place | None) -> list[bytes | memoryview]:
        """The field of the item, serialised; the image data are not copied, or placed."""
        data, ref = self.image.data, None
        if place is not None and self.image.encoding is Encoding.RAW_U8_RGB_HWC:
            ref = place(data)
        kind, value = (DATA, data) if ref is None else (SHM, ref)
        source = prefix(kind, len(value))
        length = len(self.about) + len(source) + len(value)
        return [prefix(self.number, length) + self.about + source, value]


@dataclass(frozen=True, slots=True)
class ItemPieces:
    """An item: the serialised message without its images, and these."""

    rest: bytes
    media: tuple[MediaPieces, ...]

    def chunks(self, place: Place | None = None) -> list[bytes | memoryview]:
        """The field `items` of a request, serialised."""
        chunks: list[bytes | memoryview] = [self.rest]
        for media in self.media:
            chunks += media.chunks(place)
        return [prefix(ITEMS, sum(map(len, chunks))), *chunks]


@dataclass(frozen=True, slots=True)
class Message:
    """A `reward.v1.ScoreRequest` and its id.

    Attributes:
        request_id: as in `header`.
        header: the serialised request, or what of it comes before `items`.
        items: the rest of it.
    """

    request_id: str
    header: bytes
    items: Sequence[ItemPieces] = ()

    @property
    def body(self) -> bytes:
        return b"".join(self._chunks(None))

    @property
    def has_raw(self) -> bool:
        """Whether there are raw pixels, which can be shared instead of sent."""
        found = (m.image.encoding for item in self.items for m in item.media)
        return Encoding.RAW_U8_RGB_HWC in found

    def placed(self, place: Place) -> bytes:
        """The request, serialised; raw pixels are left to `place` as far as there is room."""
        return b"".join(self._chunks(place))

    def _chunks(self, place: Place | None) -> Iterator[bytes | memoryview]:
        yield self.header
        for item in self.items:
            yield from item.chunks(place)


def prefix(number: int, length: int) -> bytes:
    """Tag and length of a field of the wire type LEN (protobuf's encoding)."""
    found = bytearray([number << 3 | 2])
    while length > 0x7F:
        found.append(length & 0x7F | 0x80)
        length >>= 7
    found.append(length)
    return bytes(found)
