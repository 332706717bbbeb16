"""Images per second of the preference scorers at full size, random weights, on one CPU core.

Run: OMP_NUM_THREADS=1 python -m benchmarks.preference [SCORER ...]

`clipscore+aesthetic` measures both as they run in one worker: one network, one look at a picture.
Writes checkpoints of the full-size architectures in the official formats into a temporary folder
(up to 4 GB at a time), loads them through the scorers themselves and scores 512x512 px pictures
with a prompt each. Prints CPU time, which other processes on the machine disturb less than wall
time. A scorer that does not fit into the free memory is skipped, and the reason printed.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from reward_server.scorers import load_scorer_class
from reward_server.scorers.backbones import Backbones, UsesBackbones
from reward_server.scorers.base import ItemScore, ScoreInput
from reward_server.scorers.torch_tools import prepare_torchvision
from reward_server.weights.store import ENV_MODELS_DIR

BATCHES = (1, 4)
SIDE_PX = 512
# Parameters in millions; fp32 takes 4 bytes each, and the checkpoint a second time while loading.
MILLIONS = {
    "clipscore": 428,
    "aesthetic": 428,
    "imagereward": 446,
    "pickscore": 986,
    "hpsv2.1": 986,
    "clipscore+aesthetic": 428,
}


def free_gb() -> float:
    """Memory that can be had without swapping."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) / 1e6


def items(count: int) -> list[ScoreInput]:
    """Noise pictures with a prompt each."""
    draw = np.random.default_rng(0)
    shape = (SIDE_PX, SIDE_PX, 3)
    prompt = "a photo of {} red cars and a green bench in front of a house by the sea"
    return [
        ScoreInput(prompt.format(k), (draw.integers(0, 256, shape, dtype=np.uint8),))
        for k in range(count)
    ]


def measure(name: str, folder: Path) -> None:
    from benchmarks.gpu.weights import Writer

    os.environ[ENV_MODELS_DIR] = str(folder)
    writer = Writer(folder, "cpu", tiny=False)
    for part in name.split("+"):
        writer.write(part)
    gc.collect()
    backbones, scorers = Backbones(), list[Any]()
    start = time.process_time()
    for part in name.split("+"):
        scorer_class: Any = load_scorer_class(part)
        scorer: Any = scorer_class(dtype="float32")
        scorers.append(scorer)
        if isinstance(scorer, UsesBackbones):
            scorer.use_backbones(backbones)
        scorers[-1].load("cpu")
    loaded_s = time.process_time() - start
    for batch in BATCHES:
        inputs = items(batch)
        cpu, wall = time.process_time(), time.perf_counter()
        with backbones.run():
            outcomes = [o for s in scorers for o in s.score(inputs, details=False)]
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        assert all(isinstance(outcome, ItemScore) for outcome in outcomes)
        each, speed = cpu / batch, batch / cpu
        rss_gb = psutil.Process().memory_info().rss / 1e9  # weights are mapped when they are used
        line = f"{name:20}{MILLIONS[name]:7}{loaded_s:11.1f}{rss_gb:8.1f}{batch:6}{each:13.2f}"
        print(f"{line}{wall / batch:14.2f}{speed:14.2f}", flush=True)


def main(names: list[str]) -> None:
    if importlib.util.find_spec("open_clip") is None:
        print("skipped: needs the scorers' environment (`make scorers`)")
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    prepare_torchvision()
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(
        f"{'scorer':20}{'M par.':>7}{'load CPU s':>11}{'RSS GB':>8}{'batch':>6}{'CPU s/image':>13}"
        f"{'wall s/image':>14}{'images/CPU s':>14}"
    )
    for name in names or MILLIONS:
        needed_gb = 2.2 * 4 * MILLIONS[name] / 1e3
        if free_gb() < needed_gb:
            print(f"{name:20}skipped: needs {needed_gb:.1f} GB of memory, {free_gb():.1f} GB free")
            continue
        with tempfile.TemporaryDirectory() as folder:
            measure(name, Path(folder))
        gc.collect()


if __name__ == "__main__":
    main(sys.argv[1:])
