"""The ways to get pictures scored that `benchmarks.serving` compares: their clients.

Every picture is encoded when it is sent, as a trainer does; every answer is looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import pickle
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import numpy as np
import PIL.Image
import requests

from benchmarks.wire import echo
from benchmarks.wire.servers import Server
from reward_client import AsyncRewardClient, Encoding, Image, Item, ScoreResponse, codec

PEER_QUALITY = 75
_TOLERANCE = 0.1  # JPEG moves a pixel


@dataclass
class Run:
    """What one measurement saw; `queue_ms` has an entry per request that says it."""

    images: int = 0
    wall_s: float = 0.0
    queue_ms: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Load:
    """Closed loops: so many clients send so many pictures each, again and again."""

    arrays: list[np.ndarray]
    clients: int
    seconds: float

    def check(self, scores: object) -> None:
        """Raise unless every picture has the score that the null scorer gives it."""
        expected = [a[a.shape[0] // 2, a.shape[1] // 2, 0] / 255 for a in self.arrays]
        if not np.allclose(np.asarray(scores, float), expected, atol=_TOLERANCE):
            raise SystemExit(f"wrong scores: {scores}, expected {expected}")


Measure = Callable[[dict[str, Server], Load], Run]


def peer(servers: dict[str, Server], load: Load) -> Run:
    """flow_grpo's client: a `requests.Session` per thread, pickles of JPEG files."""
    url, run, lock = f"http://127.0.0.1:{servers['peer'].ports['http']}/", Run(), threading.Lock()

    def loop() -> None:
        with requests.Session() as session:
            while time.perf_counter() < end_s:
                files = [_peer_jpeg(array) for array in load.arrays]
                answer = session.post(url, data=pickle.dumps({"images": files}), timeout=60)
                load.check(pickle.loads(answer.content)["scores"])
                with lock:
                    run.images += len(files)

    begin_s = time.perf_counter()
    end_s = begin_s + load.seconds
    threads = [threading.Thread(target=loop) for _ in range(load.clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run.wall_s = time.perf_counter() - begin_s
    return run


def floor(servers: dict[str, Server], load: Load) -> Run:
    """The same raw bytes over a bare grpc.aio channel."""

    @contextlib.asynccontextmanager
    async def opened(run: Run) -> AsyncIterator[Callable[[], Awaitable[None]]]:
        target = f"127.0.0.1:{servers['echo'].ports['grpc']}"
        async with grpc.aio.insecure_channel(target, options=echo.OPTIONS) as channel:
            take = channel.unary_unary(echo.METHOD)

            async def send() -> None:
                await take(b"".join(array.tobytes() for array in load.arrays))

            yield send

    return asyncio.run(_looped(opened, load))


def ours(server: str, api: str, encoding: Encoding | None, quality: int = 95) -> Measure:
    """The client of this project; an encoding of None is what it chooses by itself."""

    def measure(servers: dict[str, Server], load: Load) -> Run:
        url = f"{api}://127.0.0.1:{servers[server].ports[api]}"

        @contextlib.asynccontextmanager
        async def opened(run: Run) -> AsyncIterator[Callable[[], Awaitable[None]]]:
            async with AsyncRewardClient(url, **_options(encoding)) as client:
                await client.wait_ready(["null"])

                async def send() -> None:
                    response = await _score(client, load.arrays, encoding, quality)
                    load.check(response.results["null"].scores)
                    run.queue_ms.append(response.results["null"].queue_ms)

                yield send

        return asyncio.run(_looped(opened, load))

    return measure


WAYS: dict[str, tuple[Measure, tuple[str, ...]]] = {
    "peer": (peer, ("peer",)),
    "echo": (floor, ("echo",)),
    "grpc raw": (ours("ours", "grpc", Encoding.RAW_U8_RGB_HWC), ("ours",)),
    "grpc qoi": (ours("ours", "grpc", Encoding.QOI), ("ours",)),
    "grpc jpeg": (ours("ours", "grpc", Encoding.JPEG, PEER_QUALITY), ("ours",)),
    "http raw": (ours("ours", "http", Encoding.RAW_U8_RGB_HWC), ("ours",)),
    "shared memory": (ours("ours", "grpc", None), ("ours",)),
    "gateway raw": (
        ours("gateway", "grpc", Encoding.RAW_U8_RGB_HWC),
        ("gateway", "ours"),
    ),
}


async def _looped(opened: Callable[[Run], contextlib.AbstractAsyncContextManager], load: Load):
    run = Run()
    async with opened(run) as send:
        await send()
        run.queue_ms.clear()
        begin_s = time.perf_counter()
        end_s = begin_s + load.seconds

        async def loop() -> None:
            while time.perf_counter() < end_s:
                await send()
                run.images += len(load.arrays)

        await asyncio.gather(*(loop() for _ in range(load.clients)))
        run.wall_s = time.perf_counter() - begin_s
    return run


async def _score(
    client: AsyncRewardClient, arrays: list[np.ndarray], encoding: Encoding | None, quality: int
) -> ScoreResponse:
    if encoding is None:
        return await client.score(arrays, scorers=["null"])
    if encoding is Encoding.JPEG:
        images = [Image(_peer_jpeg(array, quality), encoding) for array in arrays]
    else:
        images = [codec.encode(a, encoding) for a in arrays]
    items = [Item(str(index), "", (image,)) for index, image in enumerate(images)]
    return await client.score(items, ["null"])


def _options(encoding: Encoding | None) -> dict[str, Any]:
    return {"shared_memory": encoding is None}


def _peer_jpeg(array: np.ndarray, quality: int = PEER_QUALITY) -> bytes:
    """As the peers encode: Pillow's defaults, which halve the chroma."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(array).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
