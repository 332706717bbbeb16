"""Two processes and one: losses that compare images across them, and nothing to learn."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer_run.test_processes import Changes, launch, run_alone, weights
from tests.trainer_run.tiny import settings_table
from trainer.run.log import read

ODE = {"sde": "ode", "window_size": 0}
CASES: dict[str, Changes] = {
    # Groups of four, batches of two: the images of a pair are often on different processes.
    "dpo": {"loss": {"algorithm": "dpo", "kl_beta": 0.0}, "sampling": ODE},
    "awm": {
        "loss": {"algorithm": "awm", "clip_low": 0.1, "clip_high": 0.1},
        "sampling": ODE,
    },
    "constant": {"rewards": {"train": [{"scorer": "brightness", "weight": 0.0}]}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pipeline: Path) -> Path:
    """Every case with two processes (`NAME-2`, one launch) and with one (`NAME-1`)."""
    folder = tmp_path_factory.mktemp("losses")
    table = settings_table(folder, pipeline)
    table["run"].update(epochs=3, save_every_epochs=3)
    table["optim"]["lr"] = 1e-3
    table["eval"]["every_epochs"] = 0
    launch(run_alone(table, CASES, folder))
    return folder


def epochs(run_dir: Path) -> list[dict[str, Any]]:
    return [row for row in read(run_dir) if row["kind"] == "train"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["dpo", "awm"])
def test_two_processes_learn_what_one_does(folder: Path, name: str) -> None:
    alone, together = epochs(folder / f"{name}-1"), epochs(folder / f"{name}-2")
    assert len(alone) == len(together) == 3
    for row, other in zip(alone, together, strict=True):
        assert row["updates"] == other["updates"] == 2 * row["epoch"]
        for part in ("reward", "categories", "policy"):
            assert other[part] == pytest.approx(row[part], abs=1e-5), part
    first, second = weights(folder / f"{name}-1"), weights(folder / f"{name}-2")
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=1e-5, msg=key)
    if name == "dpo":
        # At the start policy and reference agree on every pair: log 2.
        assert alone[0]["policy"]["policy_loss"] == pytest.approx(0.693, abs=0.05)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("processes", [1, 2])
def test_constant_rewards_change_nothing_on_any_process(folder: Path, processes: int) -> None:
    for row in epochs(folder / f"constant-{processes}"):
        assert row["policy"]["skipped_updates"] == 1
        assert row["advantage"]["zero_std_groups"] == 1
        assert row["updates"] == 0
