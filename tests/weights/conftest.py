from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import FileServer, serving


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as server:
        yield server


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The models directory of this test."""
    folder = tmp_path / "models"
    monkeypatch.setenv("REWARD_MODELS_DIR", str(folder))
    for name in ("HF_TOKEN", "REWARD_MODELS_MIRROR", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to reach or look up a host fails the test, even if its error is swallowed."""

    def refuse(*args: object, **kwargs: object) -> None:
        pytest.fail(f"the network was touched: {args[1:]}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
