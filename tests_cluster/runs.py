"""A run of seconds: the miniature, against a scorer that takes as long as the test says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EPOCHS = 6
FAST, SLOW = "0.1", "2.5"
SETTINGS = f"""
extends = "mini_jpeg"

[run]
epochs = {EPOCHS}
save_every_epochs = 1
max_minutes = 0.0

[sampling]
num_steps = 4
eval_num_steps = 4
window_size = 1
window_end = 3

[batch]
prompts_per_epoch = 2
images_per_prompt = 4
rollout_batch_size = 4
optimizer_steps_per_epoch = 1

[eval]
every_epochs = 0
every_minutes = 0.0
num_prompts = 4
images_per_prompt = 2
batch_size = 4
samples_shown = 2
metrics = []

[rewards]
train = [{{ scorer = "paced" }}]
watch = []

[logging]
tensorboard = false
"""


def scorer(pace: Path) -> str:
    """A server's configuration; the file holds how many seconds a batch takes."""
    return (
        f'[scorers.paced]\nscorer = "tests_cluster.paced:Paced"\noptions = {{ file = "{pace}" }}\n'
    )


def rows(run: Path) -> list[dict[str, Any]]:
    """The record of a run without its clocks."""
    clocks = {"seconds", "train_minutes", "images_per_s"}
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [{k: v for k, v in json.loads(line).items() if k not in clocks} for line in lines]


def epochs(run: Path) -> list[int]:
    return [row["epoch"] for row in rows(run) if row["kind"] == "train"]


def weights(run: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(run)): p.read_bytes() for p in run.glob("model/**/*.safetensors")}
    assert found
    return found


def assert_equal(run: Path, undisturbed: Path) -> None:
    """Both runs have the same numbers, to the bit, and no item without a score."""
    assert rows(run) == rows(undisturbed)
    assert weights(run) == weights(undisturbed)
    assert epochs(run) == list(range(1, EPOCHS + 1))
    assert all(row["failed"] == 0 for row in rows(run))
