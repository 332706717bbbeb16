"""What is held before it is admitted: bytes, calls, streams; and what costs much to check."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from server_process import Server, items, running

from reward_client import Encoding, Image, InvalidArgument, Item, Priority, RewardClient
from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._wire import convert
from reward_client.errors import NotFound, ResourceExhausted
from reward_client.types import ScoreRequest, ScorerSelector
from reward_server.api.grpc_intake import reads_at_once
from reward_server.config import ServerConfig

MIB = 1 << 20
BUDGET, MESSAGE, CLIENTS = 48 * MIB, 8 * MIB, 64
SIDE_PX = 1600  # 7.3 MiB of raw pixels
TOML = f"""
[server]
http = "127.0.0.1:0"
grpc = "127.0.0.1:0"
log_format = "json"
max_queue_bytes = {BUDGET}
max_message_bytes = {MESSAGE}
max_streams = 2
decode_threads = 1
[scorers.slow]
scorer = "tests.scorers_bad.bad:Mean"
options = {{ sleep_s = 0.5 }}
max_batch_items = 1
[scorers.bright]
scorer = "tests.scorers_bad.bad:Mean"
"""
# operations.md, Memory: two messages that are being read (twice), one per decode thread four
# times over while it is parsed, a batch in shared memory per worker; the rest is the allocator's.
MARGIN = (2 * 2 + 4 * 1 + 1) * MESSAGE + 32 * MIB


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("intake")
    with running(folder, TOML, wait_for=("slow", "bright")) as server:
        yield server
        assert server.stop() == 0


def status_bytes(server: Server, field: str) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return 1024 * int(status.split(f"{field}:")[1].split()[0])


def large_body() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
    image = Image(pixels.tobytes(), Encoding.RAW_U8_RGB_HWC, SIDE_PX, SIDE_PX)
    request = ScoreRequest("", (ScorerSelector("slow"),), (Item("x", "", (image,)),))
    return convert.request_to_proto(request).SerializeToString()


def pushed(server: Server, api: str, body: bytes) -> list[str]:
    """The outcome of a message from each of many clients at once, over connections of their own."""

    def over_grpc(_: int) -> str:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}", options) as channel:
            try:
                channel.unary_unary("/reward.v1.RewardService/Score")(body, timeout=60)
            except grpc.RpcError as error:
                return error.code().name  # type: ignore[attr-defined]  # a call, too
        return "OK"

    def over_http(_: int) -> str:
        kind = {"content-type": "application/x-protobuf"}
        url = server.http_url + "/v1/score"
        answer = httpx.post(url, content=body, headers=kind, timeout=60, trust_env=False)
        return {200: "OK", 429: "RESOURCE_EXHAUSTED"}.get(answer.status_code, answer.text)

    with ThreadPoolExecutor(CLIENTS) as pool:
        return list(pool.map(over_grpc if api == "grpc" else over_http, range(CLIENTS)))


@pytest.mark.parametrize("api", ["http", "grpc"])
def test_memory_stays_under_the_budget_while_64_clients_push(server: Server, api: str) -> None:
    body = large_body()
    with server.client() as client:
        client.score(items(["warm"]), ["bright"])
    before = status_bytes(server, "VmRSS")
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")  # the peak begins here
    outcomes = pushed(server, api, body)
    assert set(outcomes) == {"OK", "RESOURCE_EXHAUSTED"}
    peak = status_bytes(server, "VmHWM") - before
    assert peak < BUDGET + MARGIN, f"{peak / MIB:.0f} MiB"


def server_config(**changed: int) -> ServerConfig:
    return ServerConfig.model_validate(changed)


def test_how_many_messages_are_read_at_once() -> None:
    assert reads_at_once(server_config()) == 16
    small = server_config(max_queue_bytes=1 << 20, max_message_bytes=1 << 20)
    assert reads_at_once(small) == 2
    assert reads_at_once(server_config(max_queue_bytes=1 << 40)) == 32


def test_streams_are_bounded_and_free_again(server: Server) -> None:
    method = "/reward.v1.RewardService/ScoreStream"
    held = threading.Event()

    def requests() -> Iterator[bytes]:
        held.wait(20)
        yield from ()

    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
        call = channel.stream_stream(method)
        opened = [call(requests()) for _ in range(2)]
        time.sleep(0.5)
        with pytest.raises(grpc.RpcError) as caught:
            list(call(iter(())))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        held.set()
        assert [list(one) for one in opened] == [[], []]
        assert list(call(iter(()))) == []


def test_a_call_without_a_message_says_so(server: Server) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
        call = channel.stream_unary("/reward.v1.RewardService/Score")
        with pytest.raises(grpc.RpcError) as caught:
            call(iter(()))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert "no message" in (caught.value.details() or "")  # type: ignore[attr-defined]


def test_an_oversized_body_is_413_before_it_is_sent(server: Server) -> None:
    head = f"POST /v1/score HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {MESSAGE + 1}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.ports["http"]), 10) as sock:
        sock.sendall(head.encode() + b"{")
        response = http.client.HTTPResponse(sock)
        response.begin()
        assert response.status == 413
        error = json.loads(response.read())["error"]
    assert error["code"] == "INVALID_ARGUMENT"
    assert f"limit of {MESSAGE} bytes" in error["message"]


def selectors(names: list[str]) -> bytes:
    message = pb.ScoreRequest(scorers=[pb.ScorerSelector(name=name) for name in names])
    message.items.add(id="x")
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (selectors([f"s{i}" for i in range(60_000)]), "60000 are named, the limit is 64"),
        (selectors(["n" * 4_000_000]), "the name 'nnnnnnnnnnnnnnnnnnnn'... has 4000000"),
        (selectors(["bright", "bright"]), "named twice"),
    ],
    ids=["many", "long", "twice"],
)
def test_names_that_cost_much_to_check_hold_nobody_up(
    server: Server, body: bytes, says: str
) -> None:
    worst_s, done = [0.0], threading.Event()

    def knock() -> None:
        with httpx.Client(trust_env=False) as client:
            while not done.is_set():
                begin_s = time.monotonic()
                client.get(server.http_url + "/livez", timeout=60)
                worst_s[0] = max(worst_s[0], time.monotonic() - begin_s)

    thread = threading.Thread(target=knock)
    thread.start()
    try:
        kind = {"content-type": "application/x-protobuf"}
        url = server.http_url + "/v1/score"
        answer = httpx.post(url, content=body, headers=kind, timeout=60, trust_env=False)
    finally:
        done.set()
        thread.join()
    assert answer.status_code == 422
    assert says in answer.json()["error"]["message"]
    assert len(answer.content) < 2000
    assert worst_s[0] < 2.0


def test_unknown_names_are_quoted_in_part(server: Server) -> None:
    with RewardClient(server.grpc_url, attempts=1) as client:
        with pytest.raises(NotFound, match="did you mean 'bright'"):
            client.score(items(["a"]), ["brigth"])
        with pytest.raises(InvalidArgument, match="limit is 128"):
            client.score(items(["a"]), [ScorerSelector("bright", "v" * 129)])


def test_refusals_are_retryable_and_say_when(server: Server) -> None:
    body = large_body()
    with ThreadPoolExecutor(12) as pool, RewardClient(server.grpc_url, attempts=1) as client:
        image = Image(bytes(3 * SIDE_PX**2), Encoding.RAW_U8_RGB_HWC, SIDE_PX, SIDE_PX)
        futures = [
            pool.submit(client.score, [Item("x", "", (image,))], ["slow"], priority=Priority.BULK)
            for _ in range(12)
        ]
        errors = [future.exception() for future in futures]
    refused = [error for error in errors if error is not None]
    assert refused
    assert all(isinstance(error, ResourceExhausted) and error.retry_after_s for error in refused)
    assert len(body) < MESSAGE
