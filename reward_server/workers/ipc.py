"""How the server and a worker talk: small messages over a Unix socket, pixels in shared memory.

Messages are msgspec structs in MessagePack, each behind its length (4 bytes, big endian). Nothing
is ever unpickled. Pixels travel in an *arena*: one anonymous, growing piece of memory per worker
process, handed over as an inherited file descriptor. Having no name it cannot leak: the kernel
frees it when the last of the two processes is gone, however it died.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
import struct
import tempfile
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

_LENGTH = struct.Struct(">I")
MAX_MESSAGE_BYTES = 256 << 20  # results with many details; anything larger is a broken peer
_ALIGNMENT_BYTES = 64


class ImageRef(msgspec.Struct, frozen=True, array_like=True):
    """Where an (height, width, 3) uint8 image lies in the arena."""

    offset_bytes: int
    height: int
    width: int


class ItemMessage(msgspec.Struct, frozen=True, array_like=True):
    """One item of a batch; `transform` is a key of the scorer's transforms."""

    prompt: str
    images: list[ImageRef]
    references: list[ImageRef]
    spec: dict[str, Any] | None
    transform: str


class Start(msgspec.Struct, frozen=True, tag="start"):
    """Server to worker: load a scorer, which is `name` from now on; again where that failed."""

    name: str
    scorer: str
    options: dict[str, Any]
    device: str
    threads: int


class Batch(msgspec.Struct, frozen=True):
    """Items of one scorer; `details` asks for explanations."""

    name: str
    items: list[ItemMessage]
    details: bool


class Run(msgspec.Struct, frozen=True, tag="run"):
    """Server to worker: score these batches one after the other, one answer for each.

    Their pixels are in the arena until the last answer; a picture of several items is there once.
    """

    number: int
    batches: list[Batch]


class SelfTest(msgspec.Struct, frozen=True, tag="self_test"):
    """Server to worker: test a scorer again; it may not be what it was."""

    name: str


class SelfTestDone(msgspec.Struct, frozen=True, tag="self_test_done"):
    """Worker to server: what is wrong, in one line; empty if nothing is."""

    problem: str


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """Worker to server, before loading: the static description of a scorer."""

    version: str
    inputs: tuple[str, ...]
    transforms: tuple[str, ...]
    default_transform: str
    output_range: tuple[float, float]


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Worker to server: loaded, warm, self-test passed."""

    fingerprint: str
    device_memory_bytes: int | None = None
    self_test_s: float = 0.0


class StartFailed(msgspec.Struct, frozen=True, tag="failed"):
    """Worker to server: it goes on without that scorer; `permanent` if a retry cannot help."""

    reason: str
    permanent: bool


class Score(msgspec.Struct, frozen=True, tag="score"):
    """A finite score of one item."""

    score: float
    raw: float
    components: dict[str, float]
    details: dict[str, Any] | None = None


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """Why one item has no score; `code` is a `reward_client.Code` value."""

    code: str
    message: str
    retryable: bool = False


class BatchDone(msgspec.Struct, frozen=True, tag="done"):
    """Worker to server: one outcome per item of a batch, in order.

    `number` is the run's. `begin_s` is on the monotonic clock, which the processes of a host share.
    `max_pixels` is the largest batch that device memory has been found to hold, 0 if unlimited.
    `device_memory_bytes` is what the process holds, None where that is not known. `embedded`
    pictures went through a shared network for this batch, `reused` ones had done so before in the
    run.
    """

    number: int
    outcomes: list[Score | Failure]
    begin_s: float
    compute_s: float
    max_pixels: int = 0
    device_memory_bytes: int | None = None
    embedded: int = 0
    reused: int = 0


ToWorker = Start | Run | SelfTest
FromWorker = Hello | Ready | StartFailed | BatchDone | SelfTestDone

_encoder = msgspec.msgpack.Encoder()
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_from_worker = msgspec.msgpack.Decoder(FromWorker)


class Disconnected(ConnectionError):
    """The peer closed the socket, or sent something that is not a message."""


def frame(message: ToWorker | FromWorker) -> bytes:
    """A message behind its length."""
    body = _encoder.encode(message)
    if len(body) > MAX_MESSAGE_BYTES:
        raise ValueError(f"message of {len(body)} bytes is over the limit of {MAX_MESSAGE_BYTES}")
    return _LENGTH.pack(len(body)) + body


def receive_in_worker(sock: socket.socket) -> ToWorker:
    """Block until the server's next message; raises Disconnected when the server is gone."""
    length = _checked_length(_receive_exactly(sock, _LENGTH.size))
    return _decode(_to_worker, _receive_exactly(sock, length))


async def receive_in_server(reader: asyncio.StreamReader) -> FromWorker:
    """Wait for the worker's next message; raises Disconnected when the worker is gone."""
    try:
        length = _checked_length(await reader.readexactly(_LENGTH.size))
        return _decode(_from_worker, await reader.readexactly(length))
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise Disconnected("the worker closed its connection") from error


def _checked_length(header: bytes) -> int:
    (length,) = _LENGTH.unpack(header)
    if length > MAX_MESSAGE_BYTES:
        raise Disconnected(f"a message claims {length} bytes, the limit is {MAX_MESSAGE_BYTES}")
    return length


def _receive_exactly(sock: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        part = sock.recv(min(length - len(data), 1 << 20))
        if not part:
            raise Disconnected("the server closed its connection")
        data += part
    return bytes(data)


def _decode(decoder: msgspec.msgpack.Decoder[Any], body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise Disconnected(f"unreadable message: {error}") from error


class ArenaWriter:
    """The server's side of an arena; reused batch after batch, grown when one needs more."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self.fd = os.memfd_create("reward-arena")
        else:  # not Linux: an unlinked file is as anonymous
            with tempfile.TemporaryFile() as file:
                self.fd = os.dup(file.fileno())
        self._size = 0
        self._map: mmap.mmap | None = None

    def write(self, images: Sequence[NDArray[np.uint8]]) -> list[ImageRef]:
        """Copy images (H, W, 3) into the arena, over whatever was there, and say where.

        The same array is written once, however often it is named.
        """
        refs: dict[int, ImageRef] = {}
        end = 0
        for image in images:
            if id(image) not in refs:
                refs[id(image)] = ImageRef(end, image.shape[0], image.shape[1])
                end += -(-image.nbytes // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self._reserve(end)
        for key, image in {id(image): image for image in images}.items():
            target = np.frombuffer(self._map or b"", np.uint8, image.nbytes, refs[key].offset_bytes)
            target.reshape(image.shape)[...] = image
        return [refs[id(image)] for image in images]

    def close(self) -> None:
        self._map = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _reserve(self, size_bytes: int) -> None:
        if size_bytes > self._size:
            grown = max(size_bytes, 2 * self._size, mmap.PAGESIZE)
            os.ftruncate(self.fd, grown)
            self._map = mmap.mmap(self.fd, grown)
            self._size = grown


class ArenaReader:
    """The worker's side of an arena: read-only views, valid until the batch is answered."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._map: mmap.mmap | None = None

    def view(self, ref: ImageRef) -> NDArray[np.uint8]:
        """The image (H, W, 3), not writable, without a copy; raises ValueError."""
        length = ref.height * ref.width * 3
        if self._map is None or ref.offset_bytes + length > len(self._map):
            size = os.fstat(self._fd).st_size
            if ref.offset_bytes + length > size or length == 0:
                raise ValueError(f"{ref} lies outside the arena of {size} bytes")
            self._map = mmap.mmap(self._fd, size, access=mmap.ACCESS_READ)
        flat = np.frombuffer(self._map, np.uint8, length, ref.offset_bytes)
        return flat.reshape(ref.height, ref.width, 3)
