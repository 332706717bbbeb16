"""How much of a slow reward service's time is hidden behind sampling and updating.

The miniature with an adapter and a service that takes a fixed time per image, one image after the
other. Seconds per epoch: first with each batch awaited before the next is sampled, then with
requests overlapping with sampling.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np

from reward_client import Item, Priority
from reward_client._client import RewardClient
from reward_client._transports.fake import FakeTransport
from trainer.config.load import parse
from trainer.config.settings import RewardSettings, RewardTerm
from trainer.models.base import Decoded
from trainer.rewards import RewardService, Scores
from trainer.run.log import read
from trainer.run.open import train_run
from trainer.types import Prompt

SECONDS_PER_IMAGE = 0.1
EPOCHS = 3


class Awaiting(RewardService):
    """A connection that does nothing else while it waits."""

    def submit(
        self,
        decoded: Decoded,
        prompts: Sequence[Prompt],
        terms: Sequence[RewardTerm],
        *,
        tag: str,
        priority: Priority = Priority.TRAIN,
    ) -> Future[Scores]:
        """Ask for scores and wait for them."""
        future = super().submit(decoded, prompts, terms, tag=tag, priority=priority)
        future.result()
        return future


def slow_service(kind: type[RewardService]) -> Callable[[RewardSettings], RewardService]:
    """What `train_run` takes as `open_service`: one worker, a fixed time per training image."""
    worker = threading.Lock()

    def score(_: str, item: Item) -> float:
        if item.id.startswith("e"):
            with worker:
                time.sleep(SECONDS_PER_IMAGE)
        return hash(item.id) % 101 / 100

    def open_service(settings: RewardSettings) -> RewardService:
        transport = FakeTransport(score, ("slow",))
        return kind(RewardClient(settings.url, attempts=1, transport=transport), settings)

    return open_service


def settings_table(folder: Path) -> dict[str, Any]:
    """A few epochs of four updates of the miniature."""
    return {
        "run": {"out_dir": str(folder), "epochs": EPOCHS, "save_every_epochs": EPOCHS},
        "model": {"max_sequence_length": 0, "lora_rank": 8},
        "sampling": {"num_steps": 6, "eval_num_steps": 2},
        "batch": {
            "prompts_per_epoch": 4,
            "images_per_prompt": 8,
            "rollout_batch_size": 8,
            "optimizer_steps_per_epoch": 4,
        },
        "rewards": {"url": "fake://slow", "train": [{"scorer": "slow"}], "requests_in_flight": 1},
        "eval": {"every_epochs": 0, "num_prompts": 2, "images_per_prompt": 1, "samples_shown": 0},
        "logging": {"tensorboard": False},
    }


def seconds(folder: Path, kind: type[RewardService]) -> dict[str, float]:
    """Median over the epochs after the first."""
    settings = parse(settings_table(folder))
    train_run(settings, environment={}, open_service=slow_service(kind), say=lambda text: None)
    rows = [row["seconds"] for row in read(folder) if row["kind"] == "train"][1:]
    return {name: float(np.median([row[name] for row in rows])) for name in rows[0]}


def main() -> None:
    """Print seconds per epoch."""
    print(f"service: {SECONDS_PER_IMAGE * 32:.1f} s per epoch of 32 images")
    print(f"{'':18}{'total':>8}{'rollout':>9}{'wait':>7}{'train':>7}")
    with tempfile.TemporaryDirectory() as folder:
        for number, (label, kind) in enumerate(
            (("nothing overlaps", Awaiting), ("with sampling", RewardService))
        ):
            found = seconds(Path(folder) / str(number), kind)
            print(
                f"{label:18}{found['total']:8.2f}{found['rollout']:9.2f}"
                f"{found['score_wait']:7.2f}{found['train']:7.2f}"
            )


if __name__ == "__main__":
    main()
