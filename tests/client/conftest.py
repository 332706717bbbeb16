"""Fixtures: the scripted servers, running."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import ThreadingHTTPServer

import grpc
import pytest
from client_servers import Handler, Script, Servicer

from reward_client._pb.reward.v1 import reward_pb2_grpc


@pytest.fixture
def grpc_script() -> Iterator[Script]:
    script = Script()
    options = [("grpc.max_receive_message_length", 16 << 20)]
    server = grpc.server(ThreadPoolExecutor(8), options=options)
    reward_pb2_grpc.add_RewardServiceServicer_to_server(Servicer(script), server)
    script.url = f"grpc://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield script
    server.stop(None).wait()


@pytest.fixture
def http_script() -> Iterator[Script]:
    script = Script()
    handler = type("BoundHandler", (Handler,), {"script": script})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = False
    script.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield script
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(params=["grpc", "http"])
def script(request: pytest.FixtureRequest) -> Script:
    return request.getfixturevalue(f"{request.param}_script")
