"""Fixtures: the scripted servers, running."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from client_servers import Script, serving_grpc, serving_http

SERVING = {"grpc": serving_grpc, "http": serving_http}


@pytest.fixture
def grpc_script() -> Iterator[Script]:
    with serving_grpc() as script:
        yield script


@pytest.fixture
def http_script() -> Iterator[Script]:
    with serving_http() as script:
        yield script


@pytest.fixture(params=["grpc", "http"])
def script(request: pytest.FixtureRequest) -> Script:
    return request.getfixturevalue(f"{request.param}_script")


@pytest.fixture(params=["grpc", "http"])
def scripts(request: pytest.FixtureRequest) -> Iterator[Callable[[int], list[Script]]]:
    """Makes any number of servers that speak the same protocol."""
    with ExitStack() as stack:
        serving = SERVING[request.param]
        yield lambda count: [stack.enter_context(serving()) for _ in range(count)]
