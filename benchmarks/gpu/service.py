"""The real service on the GPU: load from 8 clients, a killed worker, a batch too large."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import weights
from benchmarks.gpu.record import Part
from benchmarks.gpu.scorers import items
from reward_client import Image, Item, RewardClient
from reward_server.scorers import golden, golden_file, load_scorer_class
from reward_server.scorers.base import SelfTestError
from reward_server.scorers.torch_tools import prepare_torchvision
from reward_server.weights.store import ENV_MODELS_DIR

ROOT = Path(__file__).parents[2]
SCORERS = ("clipscore", "imagereward")
CLIENTS = 8
PER_REQUEST = 16
HUNGRY_BATCH = 32


def run(part: Part) -> None:
    prepare_torchvision()
    writer = weights.Writer(part.scratch / "models", part.device, part.tiny)
    os.environ[ENV_MODELS_DIR] = str(writer.folder)
    begin = time.monotonic()
    dtypes = {}
    for name in SCORERS:
        writer.write(name)
        dtypes[name] = bless(part, writer, name)
    part.row("weights written and blessed", seconds=time.monotonic() - begin, **dtypes)
    server = Server(part, dtypes)
    try:
        begin = time.monotonic()
        with server.client() as client:
            client.wait_ready((*SCORERS, "hungry"), part.left_s())
        part.row("ready after", seconds=time.monotonic() - begin)
        part.attempt("load", lambda: load(part, server))
        part.attempt("batch beyond the memory", lambda: too_large(server))
        part.attempt("GPU memory in the metrics", lambda: memory(part, server))
        part.attempt("worker killed under load", lambda: killed(part, server))
    finally:
        server.stop()


def bless(part: Part, writer: weights.Writer, name: str) -> str:
    """Record the scores of these weights, without which they are not served; the type that does.

    Under random weights bfloat16 may round more than the self-test allows.
    """
    for dtype in ("float32",) if part.tiny else ("bfloat16", "float32"):
        kind: Any = load_scorer_class(name)
        made = kind(dtype=dtype, **writer.options(name))
        made.load("cuda:0" if part.device == "cuda" else "cpu")
        try:
            golden_file.record(name, made.weights_digest(), golden.measure(made))
        except SelfTestError as error:
            part.row(f"{name}: {dtype} is not served", reason=str(error)[:300])
            continue
        finally:
            del made
            if part.device == "cuda":
                torch.cuda.empty_cache()
        return dtype
    raise RuntimeError(f"{name}: no type passes the self-test")


class Server:
    """`reward-server serve` in a process of its own."""

    def __init__(self, part: Part, dtypes: Mapping[str, str]) -> None:
        folder = part.scratch
        device = "cuda:0" if part.device == "cuda" else "cpu"
        tables = [
            f'[scorers.{name}]\ndevice = "{device}"\nmax_batch_items = 64\n'
            f'[scorers.{name}.options]\ndtype = "{dtype}"\n'
            for name, dtype in dtypes.items()
        ]
        config, ports, self._log = (folder / n for n in ("serve.toml", "ports.json", "serve.log"))
        config.write_text(
            '[server]\nhttp = "127.0.0.1:0"\ngrpc = "127.0.0.1:0"\nlog_format = "json"\n'
            "max_message_bytes = 134217728\n"
            + "".join(tables)
            + f'[scorers.hungry]\nscorer = "benchmarks.gpu.hungry:HungryScorer"\n'
            f'device = "{device}"\nmax_batch_items = {HUNGRY_BATCH}\nmax_wait_ms = 50\n'
            f"max_batch_pixels = {1 << 30}\n",
            encoding="utf-8",
        )
        command = [sys.executable, "-m", "reward_server", "serve", "--config", str(config)]
        with self._log.open("wb") as sink:
            self._process = subprocess.Popen(
                [*command, "--port-file", str(ports)], cwd=ROOT, stdout=sink, stderr=sink
            )
        while not ports.exists():
            if self._process.poll() is not None or part.left_s() < 0:
                raise RuntimeError(f"no server: {self._log.read_text()[-2000:]}")
            time.sleep(0.05)
        self._ports = json.loads(ports.read_text(encoding="utf-8"))

    def client(self) -> RewardClient:
        """A client of its gRPC API."""
        return RewardClient(f"grpc://127.0.0.1:{self._ports['grpc']}", timeout_s=60)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of a metric that carry the labels."""
        url = f"http://127.0.0.1:{self._ports['http']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as response:
            lines = response.read().decode().splitlines()
        total = 0.0
        for line in lines:
            match = re.fullmatch(rf"{name}(?:{{(.*)}})? (\S+)", line)
            if match and all(f'{k}="{v}"' in (match[1] or "") for k, v in labels.items()):
                total += float(match[2])
        return total

    def events(self) -> list[dict[str, Any]]:
        """Its log so far."""
        found = []
        for line in self._log.read_text(encoding="utf-8").splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
        return found

    def worker(self, scorer: str) -> int:
        """Process id of the newest worker of a scorer."""
        started = [event for event in self.events() if event.get("event") == "worker started"]
        return [event["pid"] for event in started if event.get("scorer") == scorer][-1]

    def stop(self) -> None:
        """End it in an orderly way, or else at once."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()


def pictures(count: int) -> list[Item]:
    return [
        Item(f"i{number}", item.prompt, (Image.from_array(item.images[0]),))
        for number, item in enumerate(items(count))
    ]


def under_load(server: Server, seconds: float, meanwhile: Callable[[], None]) -> dict[str, Any]:
    """8 clients, one request after the other, both scorers; what they noticed."""
    latencies: list[float] = []
    lost: list[str] = []
    end = time.monotonic() + seconds
    asked = pictures(PER_REQUEST)

    def one() -> None:
        with server.client() as client:
            while time.monotonic() < end:
                begin = time.perf_counter()
                try:
                    answer = client.score(asked, list(SCORERS))
                except Exception as error:
                    lost.extend([repr(error)] * len(asked))
                    continue
                latencies.append(time.perf_counter() - begin)
                for result in answer.results.values():
                    lost.extend(str(error) for error in result.errors.values())

    threads = [threading.Thread(target=one) for _ in range(CLIENTS)]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    meanwhile()
    for thread in threads:
        thread.join()
    spent = time.perf_counter() - begin
    return {
        "clients": CLIENTS,
        "images_per_s": len(latencies) * PER_REQUEST / spent,
        "p50_ms": float(np.percentile(latencies, 50)) * 1e3,
        "p99_ms": float(np.percentile(latencies, 99)) * 1e3,
        "lost": len(lost),
        "first_error": lost[0][:200] if lost else None,
    }


def load(part: Part, server: Server) -> dict[str, Any]:
    under_load(server, 1, lambda: None)
    found = under_load(server, 2 if part.tiny else 8, lambda: None)
    for name in SCORERS:
        batches = server.metric("reward_batch_items_count", scorer=name)
        if batches:
            mean = server.metric("reward_batch_items_sum", scorer=name) / batches
            found[f"mean_batch_{name}"] = mean
    return found


def killed(part: Part, server: Server) -> dict[str, Any]:
    """SIGKILL for a worker: the service has to start another one, and no item may be lost."""
    times: dict[str, float] = {}

    def kill() -> None:
        time.sleep(0.5)
        before = server.worker(SCORERS[0])
        os.kill(before, signal.SIGKILL)
        begin = time.monotonic()
        while server.worker(SCORERS[0]) == before and part.left_s() > 0:
            time.sleep(0.02)
        times["started_again_s"] = time.monotonic() - begin
        with server.client() as client:
            client.wait_ready(SCORERS, part.left_s())
        times["ready_again_s"] = time.monotonic() - begin

    return {**under_load(server, 3, kill), **times}


def too_large(server: Server) -> dict[str, Any]:
    """32 pictures where 8 fit: halved until it fits, and the next batch is cut at once."""

    def halved() -> int:
        return sum("halving it" in json.dumps(event) for event in server.events())

    asked = pictures(HUNGRY_BATCH)
    counts, failed = [halved()], 0
    with server.client() as client:
        for _ in range(3):
            failed += len(client.score(asked, ["hungry"]).results["hungry"].errors)
            time.sleep(0.3)
            counts.append(halved())
    return {
        "halvings_of_first_batch": counts[1] - counts[0],
        "halvings_of_the_next_two": counts[3] - counts[1],
        "failed": failed,
    }


def memory(part: Part, server: Server) -> dict[str, Any] | None:
    """What the metric says of a worker against what the driver says of its process."""
    name = "reward_worker_gpu_memory_bytes"
    told = {scorer: server.metric(name, scorer=scorer) for scorer in SCORERS}
    if part.device == "cpu":
        return {"metric_bytes_on_a_cpu": sum(told.values())}
    import pynvml  # pyright: ignore[reportMissingImports]

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    seen = {p.pid: p.usedGpuMemory for p in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)}
    for scorer, found in told.items():
        part.row(
            f"GPU memory of {scorer}",
            metric_gb=found / 1e9,
            driver_gb=(seen.get(server.worker(scorer)) or 0) / 1e9,
        )
    return {"driver_processes": len(seen)}
