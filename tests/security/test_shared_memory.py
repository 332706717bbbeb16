"""Memory shared by clients of this host: the default, and refused where it cannot be trusted."""

from __future__ import annotations

import array
import asyncio
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from server_process import running

from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._shared_memory import FreeList, SharedMemory
from reward_client.errors import InvalidArgument
from reward_server.api import shared_memory
from reward_server.api.shared_memory import SharedMemoryHost

grpc = pytest.importorskip("grpc")
PIXELS = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)


class Host:
    """A SharedMemoryHost in an event loop of its own."""

    def __init__(self, folder: Path | None = None) -> None:
        self.host = SharedMemoryHost(folder)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.call(self.host.start)

    def call(self, function):
        async def run():
            return function()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def close(self) -> None:
        self.call(self.host.stop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    one = Host(tmp_path)
    yield one
    one.close()


def share(address: str, fd: int) -> str:
    """Speak the protocol by hand; returns the server's line. The link is left open."""
    link = socket.socket(socket.AF_UNIX)
    link.settimeout(5)
    link.connect("\0" + address[1:] if address.startswith("@") else address)
    socket.send_fds(link, [b"\0"], [fd])
    answer = link.recv(500).decode().strip()
    LINKS.append(link)
    return answer


LINKS: list[socket.socket] = []


@pytest.fixture(autouse=True)
def _links_closed() -> Iterator[None]:
    yield
    while LINKS:
        LINKS.pop().close()


def memory(size: int) -> int:
    fd = os.memfd_create("test")
    os.ftruncate(fd, size)
    return fd


def test_pixels_arrive_over_both_sockets_and_ranges_are_used_again(host: Host) -> None:
    assert len(host.host.sockets) == 2
    for address in host.host.sockets:
        shared = SharedMemory.attach([address])
        assert shared is not None
        for _ in range(2):
            with shared.borrowed() as place:
                refs = [pb.SharedMemoryRef.FromString(place(PIXELS.tobytes()) or b"") for _ in "ab"]
                assert [host.host.read(ref, 72) for ref in refs] == [PIXELS.tobytes()] * 2
                assert [ref.offset_bytes for ref in refs] == [0, 4096]
        shared.close()


def test_nothing_is_left_behind_and_a_stale_socket_is_taken_over(tmp_path: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "reward-server.sock"))
    stale.close()  # a server that was killed
    one = Host(tmp_path)
    with pytest.raises(OSError, match="another server"):
        one.call(SharedMemoryHost(tmp_path).start)
    one.close()
    assert list(tmp_path.iterdir()) == []


def test_the_server_forgets_memory_with_its_client(host: Host) -> None:
    shared = SharedMemory.attach(host.host.sockets)
    assert shared is not None
    with shared.borrowed() as place:
        ref = pb.SharedMemoryRef.FromString(place(b"abc") or b"")
    assert shared.is_open
    shared.close()
    host.call(lambda: None)
    host.call(lambda: None)
    with pytest.raises(InvalidArgument, match="does not know"):
        host.host.read(ref, 3)


@pytest.mark.parametrize(
    ("offset", "length", "expected", "says"),
    [
        (4096, 1, 1, "outside"),
        (4090, 10, 10, "outside"),
        (2**63, 10, 10, "outside"),
        (0, 10, 12, "width x height x 3 is 12"),
    ],
)
def test_a_reference_outside_of_its_memory_is_refused(
    host: Host, offset: int, length: int, expected: int, says: str
) -> None:
    fd = memory(4096)
    name = share(host.host.sockets[0], fd).removeprefix("ok ")
    ref = pb.SharedMemoryRef(name=name, offset_bytes=offset, length_bytes=length)
    with pytest.raises(InvalidArgument, match=says):
        host.host.read(ref, expected)
    os.close(fd)


def test_memory_that_shrinks_is_refused_and_kills_nobody(host: Host, monkeypatch) -> None:
    fd = memory(1 << 20)
    name = share(host.host.sockets[0], fd).removeprefix("ok ")
    ref = pb.SharedMemoryRef(name=name, offset_bytes=0, length_bytes=1 << 20)
    fstat = os.fstat

    def shrinks_now(of: int) -> os.stat_result:
        found = fstat(of)
        os.ftruncate(fd, 4096)
        return found

    monkeypatch.setattr(shared_memory.os, "fstat", shrinks_now)
    with pytest.raises(InvalidArgument, match="became smaller"):
        host.host.read(ref, 1 << 20)
    monkeypatch.undo()
    with pytest.raises(InvalidArgument, match="outside"):
        host.host.read(ref, 1 << 20)
    os.close(fd)


def test_other_descriptors_and_other_users_are_refused(host: Host, tmp_path, monkeypatch) -> None:
    with (tmp_path / "file").open("wb") as file:
        assert share(host.host.sockets[0], file.fileno()).startswith("no the descriptor is not")
    fd = memory(4096)
    monkeypatch.setattr(shared_memory, "peer_uid", lambda _: os.geteuid() + 1)
    link = socket.socket(socket.AF_UNIX)
    link.connect("\0" + host.host.sockets[0][1:])
    assert link.recv(500) == b"no it belongs to another user than the server\n"
    link.close()
    assert SharedMemory.attach(host.host.sockets) is None
    os.close(fd)


def test_free_ranges_are_joined_again() -> None:
    free = FreeList(100)
    starts = [free.take(size) for size in (10, 20, 30, 40)]
    assert starts == [0, 10, 30, 60]
    assert free.take(1) is None
    for start, size in ((10, 20), (60, 40), (0, 10), (30, 30)):
        free.give(start, size)
    assert free.take(100) == 0


CONFIG = """
[scorers.bright]
scorer = "examples.brightness_scorer:BrightnessScorer"
"""


def test_a_client_on_the_same_host_uses_it_by_itself(tmp_path: Path, monkeypatch) -> None:
    placed = array.array("q")
    borrowed = SharedMemory.borrowed

    def counting(self):
        placed.append(1)
        return borrowed(self)

    monkeypatch.setattr(SharedMemory, "borrowed", counting)
    with running(tmp_path, CONFIG) as server, server.client() as client:
        client.wait_ready(["bright"])
        shared = client.score([PIXELS, PIXELS[::-1]], scorers=["bright"])
        assert len(placed) == 1
        with server.client(shared_memory=False) as plain:
            sent = plain.score([PIXELS, PIXELS[::-1]], scorers=["bright"])
        assert len(placed) == 1
        assert shared["bright"].scores == sent["bright"].scores

        request = pb.ScoreRequest(request_id="r", scorers=[pb.ScorerSelector(name="bright")])
        media = request.items.add(id="it").images.add(encoding="RAW_U8_RGB_HWC", width=4, height=6)
        media.shm.CopyFrom(pb.SharedMemoryRef(name="/dev/shm/guessed", length_bytes=72))
        with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
            call = channel.unary_unary("/reward.v1.RewardService/Score")
            with pytest.raises(grpc.RpcError, match=r"item 'it', images\[0\]: shared memory that"):
                call(request.SerializeToString(), timeout=10)
