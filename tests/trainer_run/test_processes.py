"""One process and two: the same numbers, whatever is trained and however it is shared out.

Also where a loss compares images across processes, and where there is nothing to learn.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from safetensors.torch import load_file

from tests.trainer_run.fake_service import service_with
from tests.trainer_run.ranks import rounded
from tests.trainer_run.tiny import settings_table
from trainer.config.load import parse
from trainer.run.log import read
from trainer.run.open import train_run

REPOSITORY = Path(__file__).parents[2]
Changes = Mapping[str, Mapping[str, Any]]
ODE = {"sde": "ode", "window_size": 0}
# Two epochs of two updates each.
CASES: dict[str, Changes] = {
    "grpo": {"loss": {"clip_low": 0.1, "clip_high": 0.1}},
    "nft": {"loss": {"algorithm": "nft"}, "sampling": ODE},
    # Groups of four, batches of two: the images of a pair are often on different processes.
    "dpo": {"loss": {"algorithm": "dpo", "kl_beta": 0.0}, "sampling": ODE},
    "dgpo": {"loss": {"algorithm": "dgpo"}, "sampling": ODE},
    "flow_dppo": {"loss": {"algorithm": "flow_dppo"}, "sampling": {"sde": "cps"}},
    # Two groups of two batches each, every group with a window of its own.
    "flash": {
        "loss": {"clip_low": 0.1, "clip_high": 0.1, "step_weights": "gradient"},
        "sampling": {"window_size": 1, "window_per": "prompt"},
    },
    "awm": {"loss": {"algorithm": "awm", "clip_low": 0.1, "clip_high": 0.1}, "sampling": ODE},
    # Sharded where there are two processes: every weight, and a frozen base under adapters.
    "full": {
        "run": {"parallel": "fsdp"},
        "model": {"finetune": "full"},
        "loss": {"clip_low": 0.1, "clip_high": 0.1},
    },
    "lora_fsdp": {"run": {"parallel": "fsdp"}},
}
CONSTANT: Changes = {"rewards": {"train": [{"scorer": "brightness", "weight": 0.0}]}}
# A sharded run that ends after one epoch and is continued.
RESUMED = "full-resumed"


def changed(table: Mapping[str, Any], changes: Changes, out_dir: Path) -> dict[str, Any]:
    out = deepcopy(dict(table))
    for section, values in changes.items():
        out[section] = {**out.get(section, {}), **values}
    out["run"]["out_dir"] = str(out_dir)
    return out


def launch(files: list[Path], processes: int = 2) -> None:
    command = [sys.executable, "-m", "tests.trainer_run.ranks", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [*command, *map(str, files)], cwd=REPOSITORY, env=environment, check=True, timeout=1700
    )


def run_alone(table: Mapping[str, Any], cases: Mapping[str, Changes], folder: Path) -> list[Path]:
    """Run every case in this process (`NAME-1`); files for `launch` to run it in two (`NAME-2`)."""
    files = []
    for name, changes in cases.items():
        file = folder / f"{name}.json"
        file.write_text(json.dumps(changed(table, changes, folder / f"{name}-2")), encoding="utf-8")
        files.append(file)
        alone = parse(changed(table, changes, folder / f"{name}-1"))
        train_run(alone, environment={}, open_service=service_with(rounded), say=lambda text: None)
    return files


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, pipeline: Path) -> Path:
    """Every case with two processes (`NAME-2`, one launch) and with one (`NAME-1`)."""
    folder = tmp_path_factory.mktemp("processes")
    table = settings_table(folder, pipeline)
    table["run"].update(epochs=2, save_every_epochs=2)
    table["optim"]["lr"] = 1e-3
    files = run_alone(table, {**CASES, "constant": CONSTANT}, folder)
    for epochs in (1, 2):
        file = folder / f"{RESUMED}-{epochs}.json"
        parts = changed(table, CASES["full"], folder / RESUMED)
        parts["run"]["epochs"] = epochs
        file.write_text(json.dumps(parts), encoding="utf-8")
        files.append(file)
    launch(files)
    return folder


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """What is trained and every average of it."""
    newest = max((run_dir / "checkpoints").glob("epoch_*"))
    files = [file for file in newest.glob("*.safetensors") if file.stem != "rng"]
    return {f"{file.stem}|{name}": t for file in files for name, t in load_file(file).items()}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", CASES)
def test_two_processes_do_what_one_does(folder: Path, name: str) -> None:
    alone, together = read(folder / f"{name}-1"), read(folder / f"{name}-2")
    assert [row["kind"] for row in alone] == [row["kind"] for row in together]
    for row, other in zip(alone, together, strict=True):
        if row["kind"] == "eval":
            expected = row["metrics"]["brightness"]["mean"]
            assert other["metrics"]["brightness"]["mean"] == pytest.approx(expected, abs=1e-5)
            continue
        assert row["updates"] == other["updates"] == 2 * row["epoch"]
        assert other["first_ratio_deviation"] == row["first_ratio_deviation"]
        assert row["first_ratio_deviation"] in (0, None)
        for part in ("reward", "categories", "policy"):
            assert other[part] == pytest.approx(row[part], abs=1e-5), part
    # Before the first update both sample the very same images.
    assert alone[1]["reward"] == together[1]["reward"]
    first, second = weights(folder / f"{name}-1"), weights(folder / f"{name}-2")
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=1e-5, msg=key)
    moved = max((first[k] - first[k.replace("trained|", "ema|")]).abs().max().item()
                for k in first if k.startswith("trained|"))  # fmt: skip
    assert moved > 1e-4
    if name == "dpo":
        # At the start policy and reference agree on every pair: log 2.
        assert alone[1]["policy"]["policy_loss"] == pytest.approx(0.693, abs=0.05)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("processes", [1, 2])
def test_constant_rewards_change_nothing_on_any_process(folder: Path, processes: int) -> None:
    rows = read(folder / f"constant-{processes}")
    for row in (row for row in rows if row["kind"] == "train"):
        assert row["policy"]["skipped_updates"] == 1
        assert row["advantage"]["zero_std_groups"] == 1
        assert row["updates"] == 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sharded_run_resumes_to_the_bit_and_saves_a_plain_model(folder: Path) -> None:
    straight, resumed = weights(folder / "full-2"), weights(folder / RESUMED)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)
    saved = SD3Transformer2DModel.from_pretrained(str(folder / "full-2/model/transformer"))
    state = saved.state_dict()
    averages = {key.removeprefix("ema|"): value for key, value in straight.items()
                if key.startswith("ema|")}  # fmt: skip
    assert averages.keys() <= state.keys()
    assert all(torch.equal(state[key], averages[key]) for key in averages)
