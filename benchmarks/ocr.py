"""OCR: what parallel sessions give over one picture at a time on one thread.

Run: OMP_NUM_THREADS=1 python -m benchmarks.ocr [--images 16] [--rounds 5]

Reads the same pictures (512x512 px, one to three lines of text each) one at a time with one
session, then as one batch with 1, 2, ... sessions up to the usable CPUs. Rounds alternate between
the settings, so that a machine that becomes slower meanwhile does so for all; printed are the
medians of wall and CPU time per picture. Readings must be the same everywhere.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from reward_server.scorers.base import UInt8Image
from reward_server.scorers.ocr.engine import Line
from reward_server.scorers.ocr.scorer import OcrScorer
from reward_server.scorers.ocr.sessions import usable_cpus

SIZE_PX = 512
PHRASES = ("Grand Opening", "STOP", "Fresh Bread", "Room 101", "Mind the Gap", "Exit", "Happy Day")


def picture(index: int) -> UInt8Image:
    """One to three phrases below each other on a gradient."""
    ramp = np.linspace(190, 250, SIZE_PX, dtype=np.uint8)
    page = np.repeat(np.broadcast_to(ramp[:, None, None], (SIZE_PX, SIZE_PX, 1)), 3, axis=2)
    canvas = Image.fromarray(np.ascontiguousarray(page))
    draw = ImageDraw.Draw(canvas)
    for line in range(1 + index % 3):
        words = PHRASES[(index + 3 * line) % len(PHRASES)]
        font = ImageFont.load_default(size=36 + 6 * (index % 4))
        draw.text((40, 70 + 130 * line), words, fill=(20, 30, 60), font=font)
    return np.asarray(canvas)


def measured(work: list[list[UInt8Image]], scorer: OcrScorer) -> tuple[float, float, list[str]]:
    """Wall and CPU seconds to read batches one after another, and everything that was read."""
    cpu, wall = time.process_time(), time.perf_counter()
    read = [lines for batch in work for lines in scorer.read(batch)]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall, cpu, [_joined(lines) for lines in read]


def _joined(lines: list[Line]) -> str:
    return "|".join(line.text for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--engine", default="rapidocr")
    parser.add_argument("--detector-dir", default="")
    parser.add_argument("--recognizer-dir", default="")
    options = parser.parse_args()
    images = [picture(index) for index in range(options.images)]
    cpus = usable_cpus()
    counts = sorted({1, *(2**k for k in range(1, 5) if 2**k <= cpus), cpus})
    scorers: dict[int, OcrScorer] = {}
    for count in counts:
        scorers[count] = OcrScorer(
            options.engine,
            sessions=count,
            detector_dir=options.detector_dir,
            recognizer_dir=options.recognizer_dir,
        )
        scorers[count].load("cpu")
    one_by_one = [[image] for image in images]
    settings = {"one at a time, 1 session": (one_by_one, scorers[1])}
    settings |= {f"one batch, {n} session{'s' * (n > 1)}": ([images], scorers[n]) for n in counts}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in settings}
    readings = set()
    for round_ in range(options.rounds + 1):
        for name, (work, scorer) in settings.items():
            wall, cpu, read = measured(work, scorer)
            readings.add(tuple(read))
            if round_:  # the first one warms up
                times[name].append((wall / len(images) * 1e3, cpu / len(images) * 1e3))
    print(f"{options.engine}, {len(images)} pictures of {SIZE_PX} px, {cpus} usable CPUs,", end=" ")
    print(f"nice {os.nice(0)}, load {os.getloadavg()[0]:.1f}, medians of {options.rounds} rounds")
    print(f"{'':28}{'wall ms/image':>14}{'CPU ms/image':>14}{'speed-up':>10}")
    base = statistics.median(wall for wall, _ in times["one at a time, 1 session"])
    for name, rows in times.items():
        wall, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{name:28}{wall:14.1f}{cpu:14.1f}{base / wall:9.2f}x")
    print(f"readings {'the same in all settings' if len(readings) == 1 else 'DIFFER'}")


if __name__ == "__main__":
    main()
