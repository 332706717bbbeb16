"""Images per second through the client and a real server, by encoding, API and threads.

Run: OMP_NUM_THREADS=1 python -m benchmarks.client [--seconds 3] [--side 512]

The scorer is examples/brightness_scorer.py, which costs next to nothing: what is measured is
encoding, transport, decoding and everything around them. Requests carry 8 pictures, each encoded
when it is sent, as a trainer does. Client and server share the machine's cores. CPU time, of
client, server and worker together, is disturbed less by other processes than wall time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil

from reward_client import Encoding, Item, RewardClient, codec

BATCH = 8
ENCODINGS = (
    Encoding.RAW_U8_RGB_HWC,
    Encoding.RAW_U8_RGB_HWC_ZSTD,
    Encoding.QOI,
    Encoding.JPEG,
    Encoding.PNG,
)
CONFIG = """
[server]
http = "127.0.0.1:0"
grpc = "127.0.0.1:0"
[scorers.brightness]
scorer = "examples.brightness_scorer:BrightnessScorer"
"""


@contextmanager
def serving() -> Iterator[tuple[psutil.Process, dict[str, str]]]:
    """A server in a process of its own, and the urls of its two APIs."""
    with tempfile.TemporaryDirectory() as folder:
        config, ports = Path(folder) / "config.toml", Path(folder) / "ports.json"
        config.write_text(CONFIG)
        command = [sys.executable, "-m", "reward_server", "serve", "--config", str(config)]
        server = subprocess.Popen([*command, "--port-file", str(ports)], stderr=subprocess.DEVNULL)
        try:
            while not ports.exists():
                if server.poll() is not None:
                    raise SystemExit("the server ended at start")
                time.sleep(0.05)
            found = json.loads(ports.read_text())
            urls = {"gRPC": f"grpc://127.0.0.1:{found['grpc']}"}
            urls["HTTP"] = f"http://127.0.0.1:{found['http']}"
            yield psutil.Process(server.pid), urls
        finally:
            server.terminate()
            server.wait()


def pictures(side_px: int) -> list[np.ndarray]:
    """Smooth pictures with a little noise, which compress about as photographs do."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[:side_px, :side_px] / side_px
    found = []
    for phase in random.uniform(0, 6, BATCH):
        waves = [np.sin(6 * x + phase), np.cos(9 * y - phase), np.sin(5 * (x + y) + phase)]
        smooth = 128 + 80 * np.stack(waves, -1)
        noisy = smooth + random.normal(0, 3, (side_px, side_px, 3))
        found.append(noisy.clip(0, 255).astype(np.uint8))
    return found


def cpu_s(server: psutil.Process) -> float:
    """CPU seconds used so far by this process, the server and its workers."""
    times = [p.cpu_times() for p in (server, *server.children(recursive=True))]
    return time.process_time() + sum(t.user + t.system for t in times)


def measure(
    url: str, arrays: list[np.ndarray], encoding: Encoding, threads: int, seconds: float
) -> tuple[int, float]:
    """Number of scored pictures and seconds of wall time, encoding included."""
    done = [0] * threads
    with RewardClient(url) as client:
        client.wait_ready(["brightness"])
        start_s = time.perf_counter()

        def work(thread: int) -> None:
            while time.perf_counter() - start_s < seconds:
                images = [codec.encode(array, encoding) for array in arrays]
                items = [Item(str(i), "", (image,)) for i, image in enumerate(images)]
                client.score(items, ["brightness"]).raise_for_items()
                done[thread] += len(items)

        workers = [threading.Thread(target=work, args=(n,)) for n in range(threads)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return sum(done), time.perf_counter() - start_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="per measurement")
    parser.add_argument("--side", type=int, default=512, help="of the pictures, in px")
    args = parser.parse_args()
    arrays = pictures(args.side)
    cases = [(api, threads) for api in ("gRPC", "HTTP") for threads in (1, 8)]
    heads = "".join(f"{f'{api} x{threads}':>15}" for api, threads in cases)
    print(f"{'encoding':20}{'KiB':>5}{'encode ms':>11}{heads}   images/s (CPU ms/image)")
    with serving() as (server, urls):
        for encoding in ENCODINGS:
            start_s = time.process_time()
            size = sum(len(codec.encode(array, encoding).data) for array in arrays)
            encode_ms = 1e3 * (time.process_time() - start_s) / len(arrays)
            print(f"{encoding.value:20}{size / BATCH / 1024:5.0f}{encode_ms:11.2f}", end="")
            for api, threads in cases:
                before_s = cpu_s(server)
                count, wall_s = measure(urls[api], arrays, encoding, threads, args.seconds)
                cpu_ms = 1e3 * (cpu_s(server) - before_s) / count
                print(f"{f'{count / wall_s:.0f} ({cpu_ms:.1f})':>15}", end="", flush=True)
            print()


if __name__ == "__main__":
    main()
