"""One process and two: the same numbers, whatever is trained and however it is shared out.

Also where a loss compares images across processes, and where there is nothing to learn.
"""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_sd3 import SD3Transformer2DModel
from safetensors.torch import load_file

from tests.trainer_run.fake_service import rounded, service_with
from tests.trainer_run.nursery import Nursery
from tests.trainer_run.tiny import settings_table
from trainer.config.load import parse
from trainer.run import shards
from trainer.run.log import read
from trainer.run.open import train_run

Changes = Mapping[str, Mapping[str, Any]]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ODE = {"sde": "ode", "window_size": 0}
# Two epochs of two updates each.
CASES: dict[str, Changes] = {
    "grpo": {
        "loss": {"clip_low": 0.1, "clip_high": 0.1},
        "record": {"images": "lossless", "min_free_bytes": 0},
    },
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
    "constant": {"rewards": {"train": [{"scorer": "brightness", "weight": 0.0}]}},
}
CONSTANT = "constant"
# Of these, `make test` runs the first, one whose loss compares images, and one that is sharded.
OFTEN = ("grpo", "dpo", "full")
RARE = tuple(name for name in CASES if name not in (*OFTEN, CONSTANT))


def changed(table: Mapping[str, Any], changes: Changes, out_dir: Path) -> dict[str, Any]:
    out = deepcopy(dict(table))
    for section, values in changes.items():
        out[section] = {**out.get(section, {}), **values}
    out["run"]["out_dir"] = str(out_dir)
    return out


@dataclass(frozen=True)
class Runs:
    """Runs of `CASES` that are made when first asked for."""

    folder: Path
    table: dict[str, Any]
    nursery: Nursery

    def alone(self, name: str) -> Path:
        """The folder of the run of this process."""
        run_dir = self.folder / f"{name}-1"
        if not (run_dir / "result.json").exists():
            settings = parse(changed(self.table, CASES[name], run_dir))
            train_run(
                settings, environment={}, open_service=service_with(rounded), say=lambda _: None
            )
        return run_dir

    def together(self, name: str) -> Path:
        """The folder of the run of two processes."""
        run_dir = self.folder / f"{name}-2"
        if not (run_dir / "result.json").exists():
            self.nursery.train_in_two(changed(self.table, CASES[name], run_dir), "rounded")
        return run_dir


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, pipeline: Path, nursery: Nursery) -> Runs:
    folder = tmp_path_factory.mktemp("processes")
    table = settings_table(folder, pipeline)
    table["run"].update(epochs=2, save_every_epochs=2)
    table["optim"]["lr"] = 1e-3
    return Runs(folder, table, nursery)


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    """What is trained and every average of it."""
    newest = max((run_dir / "checkpoints").glob("epoch_*"))
    files = [file for file in newest.glob("*.safetensors") if file.stem != "rng"]
    return {f"{file.stem}|{name}": t for file in files for name, t in load_file(file).items()}


@pytest.mark.parametrize(
    "name", [*OFTEN, *(pytest.param(name, marks=pytest.mark.exhaustive) for name in RARE)]
)
def test_two_processes_do_what_one_does(runs: Runs, name: str) -> None:
    alone, together = read(runs.alone(name)), read(runs.together(name))
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
    first, second = weights(runs.alone(name)), weights(runs.together(name))
    assert first.keys() == second.keys()
    for key in first:
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=1e-5, msg=key)
    moved = max((first[k] - first[k.replace("trained|", "ema|")]).abs().max().item()
                for k in first if k.startswith("trained|"))  # fmt: skip
    assert moved > 1e-4
    if name == "grpo":
        places = runs.alone(name), runs.together(name)
        one, other = (shards.read_tables(place).to_pylist() for place in places)
        assert [row["key"] for row in one] == [row["key"] for row in other]
        assert [row for row in one if row["epoch"] == 1] == [r for r in other if r["epoch"] == 1]
        keys = [shards.stored(place) for place in places]
        assert keys[0] == keys[1] == {row["key"] for row in one}
        assert {file.rank for file in shards.files(places[1], "tar")} == {0, 1}
    if name == "dpo":
        # At the start policy and reference agree on every pair: log 2.
        assert alone[1]["policy"]["policy_loss"] == pytest.approx(0.693, abs=0.05)


def test_constant_rewards_change_nothing_on_any_process(runs: Runs) -> None:
    for row in read(runs.together(CONSTANT)):
        if row["kind"] == "train":
            assert row["policy"]["skipped_updates"] == 1
            assert row["advantage"]["zero_std_groups"] == 1
            assert row["updates"] == 0


def test_a_sharded_run_resumes_to_the_bit_and_saves_a_plain_model(runs: Runs) -> None:
    run_dir = runs.folder / "full-resumed"
    for epochs in (1, 2):
        table = changed(runs.table, CASES["full"], run_dir)
        table["run"]["epochs"] = epochs
        runs.nursery.train_in_two(table, "rounded")
    straight, resumed = weights(runs.together("full")), weights(run_dir)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)
    saved = SD3Transformer2DModel.from_pretrained(str(runs.together("full") / "model/transformer"))
    state = saved.state_dict()
    averages = {key.removeprefix("ema|"): value for key, value in straight.items()
                if key.startswith("ema|")}  # fmt: skip
    assert averages.keys() <= state.keys()
    assert all(torch.equal(state[key], averages[key]) for key in averages)
