"""Clients that dawdle, break off, or send too much: bounded, and nobody else notices."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import psutil
import pytest
from grpc_services import service_stub
from server_process import BAD, HEADER, Server, eventually, items, running
from unharmed import open_files, rss_bytes, unharmed, within

from reward_client import Image, Item, RewardClient
from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._wire import convert
from reward_client.types import ScoreRequest, ScorerSelector

SERVICE = pb.DESCRIPTOR.services_by_name["RewardService"]
PATIENCE_S = 2.0
TOML = f"""client_timeout_s = {PATIENCE_S}
max_connections = 40
max_message_bytes = 4194304
[scorers.mean]
scorer = "{BAD}:Mean"
"""
POST = b"POST /v1/score HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/x-protobuf\r\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("slow")
    with running(folder, HEADER + TOML, wait_for=("mean",)) as server:
        yield server
        assert server.stop() == 0
        assert not [event for event in server.log() if event["event"] == "bug"]


def connect(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.ports["http"]), timeout=30)


def is_closed(sock: socket.socket) -> bool:
    """Whether the server has closed it; what it still sends is read and thrown away."""
    sock.settimeout(30)
    try:
        while sock.recv(1 << 16):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


def others_are_served(server: Server) -> None:
    for url in (server.grpc_url, server.http_url):
        with RewardClient(url, attempts=1) as client:
            sent = items(["ok"] * 4)
            assert client.score(sent, ["mean"]).results["mean"].errors == {}


def holds_connection(server: Server, port: int) -> bool:
    """Whether the server process still has a connection to this port of a client."""
    held = psutil.Process(server.process.pid).net_connections("tcp")
    return any(connection.raddr and connection.raddr.port == port for connection in held)


@pytest.mark.parametrize(
    "begun",
    [b"", b"POST /v1/sc", POST, POST + b"content-length: 1000\r\n\r\nabc"],
    ids=["nothing", "half a line", "half a head", "half a body"],
)
def test_an_upload_that_never_ends_is_ended(server: Server, begun: bytes) -> None:
    with unharmed(server), within(PATIENCE_S + 20):
        socks = [connect(server) for _ in range(20)]
        for sock in socks:
            sock.sendall(begun)
        others_are_served(server)
        assert all(is_closed(sock) for sock in socks)
        for sock in socks:
            sock.close()


def test_dripping_bytes_buys_no_time(server: Server) -> None:
    with unharmed(server), connect(server) as sock:
        sock.sendall(POST + b"content-length: 1000\r\n\r\n")
        begin_s = time.monotonic()
        try:
            while time.monotonic() - begin_s < PATIENCE_S + 20:
                sock.sendall(b"x")
                time.sleep(0.1)
        except (BrokenPipeError, ConnectionResetError):
            pass
        assert time.monotonic() - begin_s < PATIENCE_S + 15


def test_connections_are_bounded(server: Server) -> None:
    with unharmed(server):
        before = open_files(server)
        socks = [connect(server) for _ in range(120)]
        time.sleep(0.5)
        assert open_files(server) - before <= 42
        for sock in socks:
            sock.close()


def test_an_answer_nobody_reads_is_given_up(server: Server) -> None:
    """A megabyte of answers, written into a socket whose reader sleeps."""
    with unharmed(server):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", server.ports["http"]))
        sent = [Item(f"i{i}", "x" * 20000, items(["a"])[0].images) for i in range(128)]
        request = ScoreRequest("", (ScorerSelector("mean"),), tuple(sent), include_details=True)
        body = convert.request_to_proto(request).SerializeToString()
        sock.sendall(POST + b"content-length: %d\r\n\r\n" % len(body) + body)
        port = sock.getsockname()[1]
        eventually(lambda: holds_connection(server, port), 10)
        others_are_served(server)
        with within(PATIENCE_S + 20):
            eventually(lambda: not holds_connection(server, port), PATIENCE_S + 15)
        sock.close()


def test_a_stream_whose_reader_sleeps_does_not_pile_up_answers(server: Server) -> None:
    image = Image.from_array(np.full((64, 64, 3), 7, np.uint8))
    sent: list[int] = []

    def requests() -> Iterator[pb.ScoreRequest]:
        for number in range(3000):
            item = Item("a", "x" * 20000, (image,))
            request = ScoreRequest(
                f"{number}", (ScorerSelector("mean"),), (item,), include_details=True
            )
            sent.append(number)
            yield convert.request_to_proto(request)

    with unharmed(server):
        memory = rss_bytes(server)
        done = server.metric("reward_requests_total", api="grpc")
        with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
            call: Any = service_stub(channel, SERVICE).ScoreStream(requests())
            next(call)
            time.sleep(2.0)
            first = server.metric("reward_requests_total", api="grpc")
            time.sleep(1.0)
            # The window is full: nothing is computed that nobody fetches.
            assert server.metric("reward_requests_total", api="grpc") - first <= 8
            assert first - done < 1000
            assert rss_bytes(server) - memory < 60 << 20
            others_are_served(server)
            call.cancel()


def test_truncated_and_oversized_messages(server: Server) -> None:
    request = ScoreRequest("", (ScorerSelector("mean"),), tuple(items(["ok"] * 4)))
    body = convert.request_to_proto(request).SerializeToString()
    oversized = b"\0" * (5 << 20)
    with unharmed(server), within(30):
        with httpx.Client(base_url=server.http_url, trust_env=False, timeout=30) as http_client:
            for content in (body[: len(body) // 2], body[:-1], oversized, b"\xff" * 100):
                answer = http_client.post(
                    "/v1/score",
                    content=content,
                    headers={"content-type": "application/x-protobuf"},
                )
                assert answer.status_code == (413 if content is oversized else 422), answer.text
                assert answer.json()["error"]["code"] == "INVALID_ARGUMENT"
        with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
            score = channel.unary_unary("/reward.v1.RewardService/Score")
            for content, code in (
                (body[: len(body) // 2], grpc.StatusCode.INVALID_ARGUMENT),
                (b"\xff" * 100, grpc.StatusCode.INVALID_ARGUMENT),
                (oversized, grpc.StatusCode.RESOURCE_EXHAUSTED),
            ):
                with pytest.raises(grpc.RpcError) as refused:
                    score(content, timeout=30)
                assert refused.value.code() is code  # type: ignore[attr-defined]
        with connect(server) as sock:  # broken off in the middle of its body
            sock.sendall(POST + b"content-length: 100000\r\n\r\n" + body)
        others_are_served(server)
