"""Images per second of the scorers that need no GPU, on one core, without the service around them.

Run: OMP_NUM_THREADS=1 python -m benchmarks.scorers

Prints CPU time, which other processes on the machine disturb less than wall time, and both as the
best of several rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from reward_server.scorers import load_scorer_class
from reward_server.scorers.base import ScoreInput
from reward_server.scorers.geneval import palette, shapes
from reward_server.scorers.ocr.scorer import drawing

ROUNDS = 5
BATCHES = {"jpeg": (1, 64), "geneval": (1, 16, 64), "shapes_quality": (1, 64), "ocr": (1, 8)}


def shape_items(count: int) -> list[ScoreInput]:
    """Pictures of two shapes each, with a row that asks for them."""
    names, colors = shapes.ShapesDetector.classes, tuple(palette.COLORS)
    items = []
    for k in range(count):
        first, second = names[k % 6], names[(k + 1 + k // 6 % 5) % 6]
        image = shapes.drawing(first, colors[k % 6], 18, 20 + k % 7, 8)
        right = shapes.drawing(second, colors[(k + 2) % 6], 46, 40, 8)
        image = np.concatenate([image[:, :32], right[:, 32:]], axis=1)
        include = [{"class": c, "count": 1} for c in (first, second)]
        items.append(ScoreInput("", (image,), spec={"tag": "two_object", "include": include}))
    return items


def word_items(count: int) -> list[ScoreInput]:
    """Pictures of one word each."""
    words = ("STOP", "HELLO", "OPEN", "EXIT")
    return [ScoreInput(f'"{words[k % 4]}"', (drawing(words[k % 4], 64),)) for k in range(count)]


def best_seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Smallest CPU and wall seconds of several rounds, after one to warm up."""
    work()
    cpu, wall = [], []
    for _ in range(ROUNDS):
        cpu_start, wall_start = time.process_time(), time.perf_counter()
        work()
        cpu.append(time.process_time() - cpu_start)
        wall.append(time.perf_counter() - wall_start)
    return min(cpu), min(wall)


def main() -> None:
    print(f"{'scorer':16}{'batch':>6}{'CPU ms/image':>14}{'wall ms/image':>15}{'images/CPU s':>14}")
    for name, batches in BATCHES.items():
        options = {"sessions": 1} if name == "ocr" else {}
        scorer = load_scorer_class(name)(**options)
        scorer.load("cpu")
        for batch in batches:
            items = word_items(batch) if name == "ocr" else shape_items(batch)
            calls = 1 if name == "ocr" else max(1, 64 // batch)

            def work(items: list[ScoreInput] = items, calls: int = calls) -> None:
                for _ in range(calls):
                    scorer.score(items, details=False)  # noqa: B023 (called in this round only)

            cpu, wall = (1000 * s / (calls * batch) for s in best_seconds(work))
            print(f"{name:16}{batch:6}{cpu:14.2f}{wall:15.2f}{1000 / cpu:14.0f}")


if __name__ == "__main__":
    main()
