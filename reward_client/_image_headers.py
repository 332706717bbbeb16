"""Sizes of encoded images by their headers, before a decoder sees them; nothing is allocated.

A file is walked from its signature to its end, in the structure of its format. What is refused here
never reaches a decoder: what is truncated, what has several pictures, and what goes on after the
end of the picture, which is how a file is two files at once (a PNG and a ZIP, say).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from types import MappingProxyType

from reward_client.errors import InvalidArgument
from reward_client.images import Encoding

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
QOI_HEADER = struct.Struct(">4sIIBB")  # magic, width, height, channels, colour space
QOI_END = b"\0" * 7 + b"\1"
# A run of QOI is at most 62 pixels per byte.
_QOI_PIXELS_PER_BYTE = 62
_MAX_CHUNKS = 1 << 16
# An ordinary progressive JPEG has about ten scans. Thousands, each almost empty, cost the decoder
# minutes: every scan goes over all coefficients.
_MAX_SCANS = 64
_JPEG_SIZES = frozenset(
    {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
)
_JPEG_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_JPEG_END, _JPEG_SCAN = 0xD9, 0xDA
# In coded data a marker is an FF that no 00 (an escaped FF) and no restart marker follows.
_JPEG_MARKER = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")


def size_of(data: bytes, encoding: Encoding) -> tuple[int, int]:
    """(width, height) in pixels that the header of an image states; raises InvalidArgument."""
    try:
        width, height, end = _WALKS[encoding](data)
    except (struct.error, IndexError) as error:
        raise InvalidArgument(f"truncated {encoding.value} data") from error
    if end > len(data):
        raise InvalidArgument(f"truncated {encoding.value} data")
    if end < len(data):
        raise InvalidArgument(
            f"{len(data) - end} bytes follow the end of the {encoding.value} image (a second"
            " picture, or another file): save it again as one plain image"
        )
    if not (width and height):
        raise InvalidArgument(f"the {encoding.value} data announce a size of {width}x{height} px")
    return width, height


def _png(data: bytes) -> tuple[int, int, int]:
    if data[:8] != _PNG_SIGNATURE or data[12:16] != b"IHDR":
        raise _unreadable(Encoding.PNG)
    width, height = struct.unpack_from(">II", data, 16)
    at = len(_PNG_SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        length, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + length
        if kind == b"acTL":
            raise _animated(Encoding.PNG)
        if kind == b"IEND":
            return width, height, at
    raise InvalidArgument(f"the PNG data have more than {_MAX_CHUNKS} chunks")


def _jpeg(data: bytes) -> tuple[int, int, int]:
    if data[:2] != b"\xff\xd8":
        raise _unreadable(Encoding.JPEG)
    size: tuple[int, int] | None = None
    at, scans = 2, 0
    for _ in range(_MAX_CHUNKS):
        if data[at] != 0xFF:
            raise InvalidArgument("corrupt JPEG data: a marker is missing")
        while data[at] == 0xFF:
            at += 1
        marker = data[at]
        at += 1
        if marker == _JPEG_END:
            if size is None or not scans:
                raise InvalidArgument("the JPEG data hold no picture")
            return *size, at
        if marker in _JPEG_ALONE:
            continue
        (length,) = struct.unpack_from(">H", data, at)
        if marker in _JPEG_SIZES:
            if size is not None:
                raise InvalidArgument("corrupt JPEG data: two frame headers")
            height, width = struct.unpack_from(">HH", data, at + 3)
            size = width, height
        at += length
        if marker == _JPEG_SCAN:
            scans += 1
            if scans > _MAX_SCANS:
                raise InvalidArgument(f"the JPEG data have more than {_MAX_SCANS} scans")
            found = _JPEG_MARKER.search(data, at)
            if found is None:
                raise InvalidArgument("truncated JPEG data: the end marker is missing")
            at = found.start()
    raise InvalidArgument(f"the JPEG data have more than {_MAX_CHUNKS} segments")


def _webp(data: bytes) -> tuple[int, int, int]:
    # https://developers.google.com/speed/webp/docs/riff_container
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        raise _unreadable(Encoding.WEBP)
    (riff_bytes,) = struct.unpack_from("<I", data, 4)
    end = 8 + riff_bytes + (riff_bytes & 1)
    kind, header = data[12:16], data[20:30]
    if kind == b"VP8X":
        if header[0] & 2:
            raise _animated(Encoding.WEBP)
        width = int.from_bytes(header[4:7], "little") + 1
        height = int.from_bytes(header[7:10], "little") + 1
    elif kind == b"VP8L":
        bits = int.from_bytes(header[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", header, 6))
    else:
        raise _unreadable(Encoding.WEBP)
    return width, height, end


def _qoi(data: bytes) -> tuple[int, int, int]:
    if len(data) < QOI_HEADER.size + len(QOI_END):
        raise InvalidArgument(f"QOI data of {len(data)} bytes are too short to be an image")
    magic, width, height, channels, _ = QOI_HEADER.unpack_from(data)
    if magic != b"qoif" or channels not in (3, 4):
        raise InvalidArgument("the data have no valid QOI header")
    if not data.endswith(QOI_END):
        raise InvalidArgument("truncated QOI data: the end marker is missing")
    coded_bytes = len(data) - QOI_HEADER.size - len(QOI_END)
    if width * height > _QOI_PIXELS_PER_BYTE * coded_bytes:
        raise InvalidArgument(
            f"the image is {width}x{height} px, more than {coded_bytes} bytes of QOI data can hold"
            f" (the limit is {_QOI_PIXELS_PER_BYTE} pixels per byte)"
        )
    return width, height, len(data)


def _unreadable(encoding: Encoding) -> InvalidArgument:
    return InvalidArgument(f"the data are not a readable {encoding.value} image")


def _animated(encoding: Encoding) -> InvalidArgument:
    return InvalidArgument(
        f"animated {encoding.value} is not accepted: send the frames as separate images"
    )


_WALKS: Mapping[Encoding, Callable[[bytes], tuple[int, int, int]]] = MappingProxyType(
    {Encoding.PNG: _png, Encoding.JPEG: _jpeg, Encoding.WEBP: _webp, Encoding.QOI: _qoi}
)
