"""Raw pixels in memory that a server of this host shares, instead of in messages.

The client makes one piece of anonymous memory (a memfd) and passes its descriptor over a Unix
socket of the server, which answers with the name that `SharedMemoryRef` then carries. Who can
connect to the socket is on the same host; the memory has no name in any file system, and goes with
the last of the two processes, however they end.
"""

from __future__ import annotations

import bisect
import mmap
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._wire.message import Place

# Address space; only what is in flight at once is ever touched, and so held.
SIZE_BYTES = 512 << 20
_ALIGNMENT_BYTES = 4096
_ATTACH_TIMEOUT_S = 1.0
_MAX_LINE_BYTES = 512
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred of Linux
IS_SUPPORTED = hasattr(os, "memfd_create") and hasattr(socket, "SO_PEERCRED")


class SharedMemory:
    """Memory that one server shares; it belongs to one event loop."""

    def __init__(self, link: socket.socket, fd: int, name: str) -> None:
        self._link = link
        self._name = name
        self._map = mmap.mmap(fd, SIZE_BYTES)
        self._free = FreeList(SIZE_BYTES)

    @classmethod
    def attach(cls, sockets: Sequence[str]) -> SharedMemory | None:
        """Share memory with a server, over the first of its sockets that is on this host.

        Returns None where there is none, or the server refuses.
        """
        if not IS_SUPPORTED:
            return None
        for address in sockets:
            with suppress(OSError, ValueError):
                return cls._attach(address)
        return None

    @classmethod
    def _attach(cls, address: str) -> SharedMemory:
        with ExitStack() as on_failure:
            link = on_failure.enter_context(socket.socket(socket.AF_UNIX))
            link.settimeout(_ATTACH_TIMEOUT_S)
            link.connect(socket_address(address))
            if peer_uid(link) not in (os.geteuid(), 0):
                raise PermissionError(f"{address} belongs to another user")
            fd = os.memfd_create("reward-pixels", os.MFD_CLOEXEC)
            try:
                os.ftruncate(fd, SIZE_BYTES)
                socket.send_fds(link, [b"\0"], [fd])
                verdict, _, rest = _line(link).partition(" ")
                if verdict != "ok":
                    raise PermissionError(rest)
                link.setblocking(False)
                memory = cls(link, fd, rest)
            finally:
                os.close(fd)
            on_failure.pop_all()
            return memory

    @property
    def is_open(self) -> bool:
        """Whether the server still has it."""
        try:
            return bool(self._link.recv(1, socket.MSG_DONTWAIT | socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    @contextmanager
    def borrowed(self) -> Iterator[Place]:
        """What puts pixels into the memory; they stay until the end of the block."""
        taken: list[tuple[int, int]] = []

        def place(data: bytes | memoryview) -> bytes | None:
            size = -(-len(data) // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
            at = self._free.take(size)
            if at is None:
                return None
            taken.append((at, size))
            self._map[at : at + len(data)] = data
            ref = pb.SharedMemoryRef(name=self._name, offset_bytes=at, length_bytes=len(data))
            return ref.SerializeToString()

        try:
            yield place
        finally:
            for at, size in taken:
                self._free.give(at, size)

    def close(self) -> None:
        self._link.close()
        with suppress(BufferError):
            self._map.close()


class FreeList:
    """The free ranges of a piece of memory; the lowest one that fits is taken first."""

    def __init__(self, size: int) -> None:
        self._ranges = [(0, size)]  # (start, length), in order, never adjacent

    def take(self, size: int) -> int | None:
        """Take a range; returns its start, None if none is large enough."""
        for index, (start, length) in enumerate(self._ranges):
            if length >= size:
                left = [(start + size, length - size)] if length > size else []
                self._ranges[index : index + 1] = left
                return start
        return None

    def give(self, start: int, size: int) -> None:
        index = bisect.bisect(self._ranges, (start, size))
        after = self._ranges[index : index + 1]
        before = self._ranges[max(0, index - 1) : index]
        if after and start + size == after[0][0]:
            size += after[0][1]
            del self._ranges[index]
        if before and sum(before[0]) == start:
            start, size = before[0][0], before[0][1] + size
            del self._ranges[index - 1]
            index -= 1
        self._ranges.insert(index, (start, size))


def socket_address(text: str) -> str:
    """The address of a Unix socket as the operating system takes it; "@" stands for abstract."""
    return "\0" + text[1:] if text.startswith("@") else text


def peer_uid(link: socket.socket) -> int:
    """The user whose process is at the other end, as the kernel says."""
    found = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(found)[1]


def _line(link: socket.socket) -> str:
    found = b""
    while not found.endswith(b"\n"):
        part = link.recv(_MAX_LINE_BYTES)
        if not part or len(found) > _MAX_LINE_BYTES:
            raise ConnectionError("the server did not answer")
        found += part
    return found[:-1].decode("ascii", "replace")
