"""Memory that clients of this host share with the server; see reward_client/_shared_memory.py.

Pixels are read with `pread`, once and into memory of the server's own: a client can neither change
them afterwards nor, by taking the memory away, kill the server, as it could with a mapping.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path

from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._shared_memory import IS_SUPPORTED, peer_uid, socket_address
from reward_client.errors import InvalidArgument

_MAX_CLIENTS = 256
_ATTACH_TIMEOUT_S = 5.0
_FILE_NAME = "reward-server.sock"


@dataclass(slots=True)
class _Segment:
    """What one client shares; the lock keeps its descriptor open while it is read."""

    fd: int
    lock: threading.Lock = field(default_factory=threading.Lock)

    def close(self) -> None:
        with self.lock:
            os.close(self.fd)
            self.fd = -1


class SharedMemoryHost:
    """Takes descriptors from processes of the same user, and reads what they refer to.

    Attributes:
        sockets: where clients find it; empty where the operating system offers no such thing.
    """

    def __init__(self, folder: Path | None) -> None:
        """Prepare.

        Args:
            folder: for a socket that other containers can reach through a volume; None for an
                abstract one alone, which processes in the same network namespace can reach.
        """
        self._folder = folder
        self._listening: list[socket.socket] = []
        self._links: dict[socket.socket, str] = {}
        self._segments: dict[str, _Segment] = {}
        self.sockets: list[str] = []

    def start(self) -> None:
        """Listen, in the running event loop.

        Raises:
            OSError: the folder's socket cannot be made, or another server uses it.
        """
        if not IS_SUPPORTED:
            return
        self._listen(f"@reward-{secrets.token_hex(16)}")
        if self._folder is not None:
            path = self._folder / _FILE_NAME
            _remove_stale(path)
            self._listen(str(path))
            path.chmod(0o600)

    def stop(self) -> None:
        loop = asyncio.get_running_loop()
        for listening in self._listening:
            loop.remove_reader(listening)
            listening.close()
        if self._listening and self._folder is not None:
            (self._folder / _FILE_NAME).unlink(missing_ok=True)
        for link in list(self._links):
            self._drop(link)
        self._listening.clear()
        self.sockets.clear()

    def read(self, ref: pb.SharedMemoryRef, expected_bytes: int) -> bytes:
        """The bytes that a reference names; may be called from any thread.

        Raises:
            InvalidArgument: there is no such memory, the reference lies outside of it, or it does
                not have `expected_bytes`. Nothing has been read then.
        """
        segment = self._segments.get(ref.name)
        if segment is None:
            raise InvalidArgument(
                "shared memory that this server does not know: only a process on the same host can"
                " share some, and has to do so before; send the bytes in `data`"
            )
        if ref.length_bytes != expected_bytes:
            raise InvalidArgument(
                f"a reference to {ref.length_bytes} bytes of shared memory, width x height x 3 is"
                f" {expected_bytes}"
            )
        with segment.lock:
            size = os.fstat(segment.fd).st_size if segment.fd >= 0 else 0
            if ref.offset_bytes + ref.length_bytes > size:
                raise InvalidArgument(
                    f"bytes {ref.offset_bytes} to {ref.offset_bytes + ref.length_bytes} lie outside"
                    f" of the shared memory, which has {size}"
                )
            data = os.pread(segment.fd, ref.length_bytes, ref.offset_bytes)
        if len(data) != ref.length_bytes:
            raise InvalidArgument("the shared memory became smaller while it was read")
        return data

    def _listen(self, address: str) -> None:
        listening = socket.socket(socket.AF_UNIX)
        listening.setblocking(False)
        try:
            listening.bind(socket_address(address))
            listening.listen()
        except OSError:
            listening.close()
            raise
        self._listening.append(listening)
        self.sockets.append(address)
        asyncio.get_running_loop().add_reader(listening, self._accept, listening)

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            link, _ = listening.accept()
            link.setblocking(False)
            if peer_uid(link) != os.geteuid():
                _refuse(link, "it belongs to another user than the server")
            elif len(self._links) >= _MAX_CLIENTS:
                _refuse(link, f"{_MAX_CLIENTS} clients share memory already")
            else:
                self._links[link] = ""
                loop = asyncio.get_running_loop()
                loop.add_reader(link, self._heard, link)
                loop.call_later(_ATTACH_TIMEOUT_S, self._drop_silent, link)

    def _heard(self, link: socket.socket) -> None:
        fds: list[int] = []
        try:
            data, fds, _, _ = socket.recv_fds(link, 1, 1)
            if self._links[link] or not data:  # the end, or more than was agreed
                self._drop(link)
                return
            if problem := _problem(fds):
                link.send(f"no {problem}\n".encode())
                self._drop(link)
                return
            name = secrets.token_hex(16)
            self._links[link] = name
            self._segments[name] = _Segment(fds.pop())
            link.send(f"ok {name}\n".encode())
        except BlockingIOError:
            return
        except OSError:
            self._drop(link)
        finally:
            for fd in fds:
                os.close(fd)

    def _drop_silent(self, link: socket.socket) -> None:
        if self._links.get(link) == "":
            self._drop(link)

    def _drop(self, link: socket.socket) -> None:
        name = self._links.pop(link)
        if name:
            self._segments.pop(name).close()
        asyncio.get_running_loop().remove_reader(link)
        link.close()


def _problem(fds: list[int]) -> str:
    if len(fds) != 1:
        return "a byte must come with one descriptor"
    try:
        # Other files know no seals, and reading them could take for ever.
        fcntl.fcntl(fds[0], fcntl.F_GET_SEALS)
    except OSError:
        return "the descriptor is not that of a memfd"
    if os.fstat(fds[0]).st_uid != os.geteuid():
        return "the memory belongs to another user than the server"
    return ""


def _refuse(link: socket.socket, reason: str) -> None:
    with link:
        link.send(f"no {reason}\n".encode())


def _remove_stale(path: Path) -> None:
    """Remove the socket of a server that is gone; raises OSError if one is there."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except FileNotFoundError:
            return
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise OSError(f"another server listens at {path}")
