"""Tiny runs with a flight recorder."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from tests.trainer_run.fake_service import service_with
from trainer.config.load import parse
from trainer.run.open import Outcome, train_run

EPOCHS, GROUPS, SIZE = 3, 2, 4


def recorded(table: dict[str, Any], run_dir: Path, **record: Any) -> dict[str, Any]:
    """Settings of a short run with the fewest evaluations, which is recorded."""
    out = deepcopy(table)
    out["run"] |= {"out_dir": str(run_dir), "epochs": EPOCHS}
    out["eval"] |= {"every_epochs": 0, "images_per_prompt": 1, "kl_steps": 0}
    out["logging"]["groups_every_epochs"] = 0
    out["record"] = {"images": "lossless", "min_free_bytes": 0, **record}
    return out


def train(
    table: dict[str, Any],
    say: Callable[[str], None] = lambda _: None,
    stop: Callable[[], object] = lambda: False,
) -> Outcome:
    connect = service_with()
    return train_run(parse(table), environment={}, open_service=connect, say=say, stop=stop)
