"""A server that is stopped in the middle, as by SIGSTOP or a lost node: the other one answers."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from client_servers import grey_items
from server_process import HEADER, Server, running

from reward_client import AsyncRewardClient, Priority, RewardClient, ScoreResponse, ServerLimits

TOML = HEADER + "max_message_bytes = 1_000_000\nmax_items = 7\n[scorers.jpeg]\n"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    with ExitStack() as stack:
        first, second = (
            stack.enter_context(running(tmp_path_factory.mktemp("s"), TOML, wait_for=("jpeg",)))
            for _ in range(2)
        )
        yield first, second


def url(server: Server, scheme: str) -> str:
    return f"{scheme}://127.0.0.1:{server.ports[scheme]}"


def blocking(urls: list[str], stop: Any) -> tuple[ScoreResponse, float]:
    with RewardClient(urls, prefer="first") as client:
        client.score(grey_items(1), ["jpeg"])
        stop()
        started = time.monotonic()
        return client.score(grey_items(3), ["jpeg"], deadline_s=16), time.monotonic() - started


def awaiting(urls: list[str], stop: Any) -> tuple[ScoreResponse, float]:
    async def run() -> tuple[ScoreResponse, float]:
        async with AsyncRewardClient(urls, prefer="first") as client:
            await client.score(grey_items(1), ["jpeg"])
            stop()
            started = time.monotonic()
            found = await client.score(grey_items(3), ["jpeg"], deadline_s=16)
            return found, time.monotonic() - started

    return asyncio.run(run())


def test_calls_succeed_on_the_other_server(servers: tuple[Server, Server]) -> None:
    hung, well = servers
    calls = [(call, scheme) for call in (blocking, awaiting) for scheme in ("grpc", "http")]
    connected, stopped = threading.Barrier(len(calls) + 1), threading.Event()

    def stop() -> None:
        connected.wait(60)
        assert stopped.wait(60)

    with ThreadPoolExecutor(len(calls)) as pool:
        asked = [
            pool.submit(call, [url(hung, scheme), url(well, scheme)], stop)
            for call, scheme in calls
        ]
        connected.wait(60)
        os.kill(hung.process.pid, signal.SIGSTOP)
        stopped.set()
        try:
            answers = [future.result() for future in asked]
        finally:
            os.kill(hung.process.pid, signal.SIGCONT)
    for found, took_s in answers:
        found.raise_for_items()
        assert took_s < 13


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_client_cuts_by_what_the_server_says_it_accepts(
    servers: tuple[Server, Server], scheme: str
) -> None:
    seen: list[int] = []
    with RewardClient(url(servers[0], scheme)) as client:
        assert client.limits() == ServerLimits(
            max_message_bytes=1_000_000,
            max_items=7,
            max_pixels=4096 * 4096,
            max_side_px=16384,
            max_frames=512,
        )
        client.score(grey_items(20), ["jpeg"], progress=lambda done, _: seen.append(done))
        assert (len(seen), seen[-1]) == (3, 20)
        large = client.score(grey_items(4, 512), ["jpeg"])  # 3 MiB in all
        large.raise_for_items()


def test_the_address_file_of_a_server_that_moved(
    servers: tuple[Server, Server], tmp_path: Path
) -> None:
    here = tmp_path / "rewards.url"
    here.write_text("grpc://127.0.0.1:1\n")  # its node is gone
    with RewardClient.from_env({"REWARD_URL": f"file:{here}"}) as client:
        here.write_text(url(servers[1], "grpc") + "\n")
        client.score(grey_items(1), ["jpeg"], priority=Priority.TRAIN).raise_for_items()
        assert [state.url for state in client.endpoints()] == [url(servers[1], "grpc")]


@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_one_asynchronous_client_in_a_new_event_loop_per_batch(
    servers: tuple[Server, Server], scheme: str
) -> None:
    client = AsyncRewardClient(url(servers[1], scheme))
    scores = [asyncio.run(client.score(grey_items(2), ["jpeg"]))["jpeg"].scores for _ in range(3)]
    assert scores[0] == scores[1] == scores[2]
    assert len(client._cores) == 1
