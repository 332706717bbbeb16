"""The flow_grpo dialect: images per second through a real server, as that project's trainer asks.

Eight threads send pickles of 9 JPEG files of 512 x 512 px each (flow_grpo's official batch), to the
`geneval` scorer with the `shapes` detector and to `jpeg`; beside it the same images over gRPC, raw.
What is measured is the dialect and the server: the detector with weights is another matter.

    python benchmarks/legacy.py [--requests 48]
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from miniature import prompts, render, scenes
from reward_client import Image, Item, RewardClient

THREADS, BATCH, SIDE_PX = 8, 9, 512
CONFIG = """[server]
http = "127.0.0.1:0"
grpc = "127.0.0.1:0"
legacy = true
legacy_ports = { geneval = "127.0.0.1:0", jpeg = "127.0.0.1:0" }
[scorers.geneval]
options = { detector = "shapes" }
[scorers.jpeg]
"""


def main() -> None:
    """Start a server, measure, print a table."""
    parser = argparse.ArgumentParser(description="images per second of the flow_grpo dialect")
    parser.add_argument("--requests", type=int, default=48)
    count: int = parser.parse_args().requests
    pictures, rows = batch()
    files = [jpeg(picture) for picture in pictures]
    body = pickle.dumps({"images": files, "meta_datas": rows, "only_strict": True})
    items = [
        Item(str(i), "", (Image.from_array(picture),), spec=row, spec_kind="geneval")
        for i, (picture, row) in enumerate(zip(pictures, rows, strict=True))
    ]
    print(f"{count} requests of {BATCH} images of {SIDE_PX}x{SIDE_PX} px, {THREADS} threads")
    with tempfile.TemporaryDirectory() as folder:
        process, ports = start(Path(folder))
        try:
            with RewardClient(f"grpc://127.0.0.1:{ports['grpc']}") as client:
                client.wait_ready(["geneval", "jpeg"], 120)
                for scorer in ("geneval", "jpeg"):
                    port = ports[f"legacy_{scorer}"]
                    report(
                        f"{scorer}, pickles of JPEG", measure(lambda p=port: post(p, body), count)
                    )
                    report(
                        f"{scorer}, gRPC, raw pixels",
                        measure(lambda s=scorer: client.score(items, [s]), count),
                    )
        finally:
            process.terminate()
            process.wait(60)


def batch() -> tuple[list[np.ndarray[Any, Any]], list[dict[str, Any]]]:
    """Nine scenes and their GenEval rows."""
    rng = np.random.default_rng(0)
    rows = [dict(next(iter(prompts.all_rows(prompts.TAGS[i % 6])))) for i in range(BATCH)]
    small = [render.render(scenes.scene_for(row, rng)) for row in rows]
    side = (SIDE_PX, SIDE_PX)
    return [np.asarray(PIL.Image.fromarray(image).resize(side)) for image in small], rows


def jpeg(picture: np.ndarray[Any, Any]) -> bytes:
    """As flow_grpo encodes: Pillow's defaults."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(picture).save(buffer, "JPEG")
    return buffer.getvalue()


def start(folder: Path) -> tuple[subprocess.Popen[bytes], dict[str, int]]:
    """A server on free ports."""
    config, port_file = folder / "config.toml", folder / "ports.json"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "reward_server", "serve", "--config", str(config)]
    process = subprocess.Popen(
        [*command, "--port-file", str(port_file)], stderr=subprocess.DEVNULL, env=dict(os.environ)
    )
    while not port_file.exists():
        if process.poll() is not None:
            raise SystemExit("the server did not start")
        time.sleep(0.1)
    return process, json.loads(port_file.read_text())


def post(port: int, body: bytes) -> None:
    """One request of the dialect."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    connection.request("POST", "/", body)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    if response.status != 200:
        raise SystemExit(f"{response.status}: {content[:200]!r}")


def measure(ask: Callable[[], object], count: int) -> tuple[float, list[float]]:
    """Seconds in all and per request, after a warm-up."""
    ask()

    def timed(_: int) -> float:
        begin_s = time.perf_counter()
        ask()
        return time.perf_counter() - begin_s

    begin_s = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as threads:
        taken_s = sorted(threads.map(timed, range(count)))
    return time.perf_counter() - begin_s, taken_s


def report(name: str, measured: tuple[float, list[float]]) -> None:
    """One line."""
    total_s, taken_s = measured
    images_per_s = len(taken_s) * BATCH / total_s
    median_ms = 1e3 * taken_s[len(taken_s) // 2]
    print(f"  {name:<28} {images_per_s:7.0f} images/s   median of a request {median_ms:6.0f} ms")


if __name__ == "__main__":
    main()
