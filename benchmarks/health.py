"""How fast health answers while the server is full of large messages.

    .venv/bin/python benchmarks/health.py [--seconds 20] [--clients 4]

Clients send messages of 12 MB without a pause: raw pixels over gRPC, protobuf over HTTP, and base64
in JSON, the slowest to parse. Meanwhile `grpc.health.v1` and `/livez` are asked fifty times a
second, each from a process of its own, so that the load's own Python does not slow the asking.
"""

from __future__ import annotations

import argparse
import base64
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
from grpc_health.v1 import health_pb2, health_pb2_grpc

from reward_client import Image, Item, RewardClient

SIDE_PX = 512
ITEMS = 16  # 12.6 MB of pixels
INTERVAL_S = 0.02


def load(kind: str, urls: dict[str, str], stop: Event) -> None:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8) for _ in range(ITEMS)]
    if kind == "json":
        media = {"encoding": "RAW_U8_RGB_HWC", "width": SIDE_PX, "height": SIDE_PX}
        entries = [
            {"id": f"{i}", "images": [media | {"data": base64.b64encode(p.tobytes()).decode()}]}
            for i, p in enumerate(pixels)
        ]
        body = json.dumps({"scorers": [{"name": "jpeg"}], "items": entries}).encode()
        headers = {"content-type": "application/json"}
        with httpx.Client(base_url=urls["http"], trust_env=False, timeout=60) as client:
            while not stop.is_set():
                client.post("/v1/score", content=body, headers=headers)
        return
    items = [Item(f"{i}", "", (Image.from_array(p),)) for i, p in enumerate(pixels)]
    with RewardClient(urls[kind], timeout_s=60) as client:
        while not stop.is_set():
            client.score(items, ["jpeg"])


def ask(kind: str, urls: dict[str, str], seconds: float, found: Any) -> None:
    with (
        grpc.insecure_channel(urls["grpc"].removeprefix("grpc://")) as channel,
        httpx.Client(base_url=urls["http"], trust_env=False, timeout=30) as client,
    ):
        stub: Any = health_pb2_grpc.HealthStub(channel)
        waits_ms = []
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            begin_s = time.perf_counter()
            if kind == "health":
                stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
            else:
                client.get("/livez").raise_for_status()
            waits_ms.append(1e3 * (time.perf_counter() - begin_s))
            time.sleep(INTERVAL_S)
        found.put((kind, waits_ms))


def start(folder: Path) -> tuple[subprocess.Popen[bytes], dict[str, str]]:
    config, ports = folder / "config.toml", folder / "ports.json"
    config.write_text(
        '[server]\nhttp = "127.0.0.1:0"\ngrpc = "127.0.0.1:0"\n[scorers.jpeg]\nreplicas = 2\n'
    )
    command = [sys.executable, "-m", "reward_server", "serve", "--config", str(config)]
    process = subprocess.Popen([*command, "--port-file", str(ports)], stderr=subprocess.DEVNULL)
    while not ports.exists():
        time.sleep(0.05)
    found = json.loads(ports.read_text())
    urls = {
        "grpc": f"grpc://127.0.0.1:{found['grpc']}",
        "http": f"http://127.0.0.1:{found['http']}",
    }
    with RewardClient(urls["grpc"]) as client:
        client.wait_ready(["jpeg"])
    return process, urls


def measure(urls: dict[str, str], seconds: float, kinds: list[str]) -> dict[str, list[float]]:
    context = multiprocessing.get_context("spawn")
    stop, found = context.Event(), context.Queue()
    loads = [context.Process(target=load, args=(kind, urls, stop)) for kind in kinds]
    askers = [
        context.Process(target=ask, args=(kind, urls, seconds, found))
        for kind in ("health", "livez")
    ]
    for process in (*loads, *askers):
        process.start()
    results = dict(found.get() for _ in askers)
    stop.set()
    for process in (*loads, *askers):
        process.join(60)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--clients", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        process, urls = start(Path(folder))
        try:
            print(f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f} before the run")
            print(f"{'load':28} {'asked':8} {'n':>5} {'p50 ms':>8} {'p99 ms':>8} {'max ms':>8}")
            for kinds in ([], *([kind] * arguments.clients for kind in ("grpc", "http", "json"))):
                name = f"{len(kinds)} x {kinds[0]}, 12 MB each" if kinds else "none"
                for asked, waits in measure(urls, arguments.seconds, kinds).items():
                    cuts = statistics.quantiles(waits, n=100)
                    row = f"{cuts[49]:8.1f} {cuts[98]:8.1f} {max(waits):8.1f}"
                    print(f"{name:28} {asked:8} {len(waits):5} {row}", flush=True)
        finally:
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    main()
