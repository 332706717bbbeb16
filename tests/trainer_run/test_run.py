"""Whole runs on a tiny pipeline: what a run writes, and that nothing interrupts it for good."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from reward_client import Code, Item, ItemError, Unavailable
from tests.trainer_run.fake_service import ScoreFn, score_pixels, service_with
from tests.trainer_run.tiny import settings_table
from trainer.config.load import parse
from trainer.errors import CheckpointError, ConfigError, DataError, ServiceLost
from trainer.run import checkpoint
from trainer.run.inputs import load_prompts
from trainer.run.log import read
from trainer.run.open import Outcome, train_run
from trainer.run.progress import locked
from trainer.run.resume import check_same

CLOCKS = ("seconds", "train_minutes", "images_per_s")


def run(table: dict[str, Any], score: ScoreFn = score_pixels, **options: Any) -> Outcome:
    return train_run(parse(table), environment={}, open_service=service_with(score), **options)


def numbers(run_dir: Path) -> list[dict[str, Any]]:
    """The metrics without what a clock says."""
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in read(run_dir)]


def elsewhere(table: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {**table, "run": {**table["run"], "out_dir": str(folder)}}


def final_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model" / "pytorch_lora_weights.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    assert numbers(one) == numbers(other)
    first, second = final_weights(one), final_weights(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def whole(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run of four epochs."""
    folder = tmp_path_factory.mktemp("whole")
    return run(settings_table(folder, pipeline)).run_dir


def test_a_run_writes_everything_and_its_first_ratios_are_exactly_1(
    table: dict[str, Any], tmp_path: Path
) -> None:
    table["logging"]["tensorboard"] = True
    lines: list[str] = []
    outcome = run(table, say=lines.append)
    assert outcome.reason == "4 epochs"
    assert not outcome.already
    rows = read(outcome.run_dir)
    train = [row for row in rows if row["kind"] == "train"]
    assert [row["epoch"] for row in train] == [1, 2, 3, 4]
    assert [row["first_ratio_deviation"] for row in train] == [0.0] * 4
    assert [row["updates"] for row in train] == [2, 4, 6, 8]
    # The second update of an epoch is off-policy: there the ratio does move.
    assert all(row["policy"]["ratio_deviation"] > 0 for row in train)
    phases = [(row["phase"], row["epoch"]) for row in rows if row["kind"] == "eval"]
    assert phases == [("base", 0), ("curve", 2), ("final", 4)]
    assert sum(line.startswith("epoch") for line in lines) == 4
    resolved = json.loads((outcome.run_dir / "config.json").read_text(encoding="utf-8"))
    assert resolved["scorers"] == {"brightness": "fake", "contrast": "fake"}
    assert resolved["versions"]["torch"] == torch.__version__
    assert list((outcome.run_dir / "tensorboard").glob("events*"))
    assert (outcome.run_dir / "samples" / "final_000004.png").is_file()
    again = run(table)
    assert again.already
    assert numbers(outcome.run_dir) == [
        {k: v for k, v in row.items() if k not in CLOCKS} for row in rows
    ]
    table["run"]["epochs"] = 5
    longer = run(table)
    assert not longer.already
    assert read(outcome.run_dir)[-2]["epoch"] == 5


def test_a_service_that_goes_away_costs_nothing(
    table: dict[str, Any], tmp_path: Path, whole: Path
) -> None:
    table["rewards"]["patience_s"] = 0.2
    lost = elsewhere(table, tmp_path / "lost")
    calls = 0

    def dies(name: str, item: Item) -> float:
        nonlocal calls
        calls += 1
        if calls > 30:
            raise Unavailable("connection refused")
        return score_pixels(name, item)

    with pytest.raises(
        ServiceLost, match=r"has not answered.*the same command resumes it"
    ) as error:
        run(lost, dies)
    assert error.value.exit_code == 4
    assert "\n" not in str(error.value)
    assert run(lost).reason == "4 epochs"
    assert_same_run(whole, tmp_path / "lost")


def test_failed_images_are_left_out_and_counted(table: dict[str, Any]) -> None:
    def sometimes(name: str, item: Item) -> float | ItemError:
        if item.id.endswith("-0") and item.id.startswith("e"):
            return ItemError(Code.INTERNAL, "worker crashed")
        return score_pixels(name, item)

    table["rewards"]["max_failed_fraction"] = 0.6
    outcome = run(table, sometimes)
    for row in read(outcome.run_dir):
        if row["kind"] == "train":
            assert row["failed"] == 4
            assert row["errors"] == {"brightness: INTERNAL: worker crashed": 4}
    table["rewards"]["max_failed_fraction"] = 0.4
    with pytest.raises(ServiceLost, match=r"50% of the images of epoch 1 .*worker crashed"):
        run(elsewhere(table, outcome.run_dir.parent / "strict"), sometimes)


def test_what_has_no_scores_is_neither_trained_on_nor_written_down(
    table: dict[str, Any], tmp_path: Path
) -> None:
    table["run"]["epochs"] = 2
    whole = run(elsewhere(table, tmp_path / "whole"))
    missing = "e1-"

    def down(name: str, item: Item) -> float | ItemError:
        if item.id.startswith(missing):
            return ItemError(Code.INTERNAL, "worker crashed")
        return score_pixels(name, item)

    lost = elsewhere(table, tmp_path / "lost")
    with pytest.raises(
        ServiceLost, match=r"of the images of epoch 2 have no score.*is saved in"
    ) as error:
        run(lost, down)
    assert error.value.exit_code == 4
    kept = checkpoint.find(tmp_path / "lost")
    assert (kept.progress["epoch"], kept.progress["updates"]) == (1, 2)
    missing = "final-"
    with pytest.raises(ServiceLost, match=r"100% of the images of an evaluation .*is saved in"):
        run(lost, down)
    assert [row["kind"] for row in read(tmp_path / "lost")] == ["eval", "train", "train"]
    run(lost)
    assert_same_run(whole.run_dir, tmp_path / "lost")
    # Whoever allows it gets an epoch without an update, not one with made-up scores.
    missing = "e1-"
    table["rewards"]["max_failed_fraction"] = 1.0
    row = read(run(elsewhere(table, tmp_path / "lenient"), down).run_dir)[-2]
    assert (row["epoch"], row["updates"], row["failed"]) == (2, 2, 8)
    assert row["reward"] == {"brightness": None}
    assert row["policy"]["skipped_updates"] == 1


def test_constant_rewards_change_nothing(table: dict[str, Any]) -> None:
    outcome = run(table, lambda name, item: 0.5)
    for row in read(outcome.run_dir):
        if row["kind"] == "train":
            assert row["policy"]["skipped_updates"] == 1
            assert row["advantage"]["zero_std_groups"] == 1
            assert row["updates"] == 0


def test_a_damaged_checkpoint_falls_back_and_ends_the_same(
    table: dict[str, Any], tmp_path: Path, whole: Path
) -> None:
    broken = elsewhere(table, tmp_path / "broken")
    stopped = run(broken, stop=lambda: len(read(tmp_path / "broken")) >= 4)
    assert stopped.reason == ""
    newest = sorted((stopped.run_dir / "checkpoints").glob("epoch_*"))[-1] / "trained.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    lines: list[str] = []
    run(broken, say=lines.append)
    assert any("trained.safetensors is damaged" in line for line in lines)
    assert_same_run(whole, tmp_path / "broken")


def test_all_checkpoints_damaged_is_one_line(table: dict[str, Any]) -> None:
    table["run"]["epochs"] = 1
    outcome = run(table)
    for path in (outcome.run_dir / "checkpoints").glob("epoch_*/progress.json"):
        path.write_text("{", encoding="utf-8")
    table["run"]["epochs"] = 2
    with pytest.raises(CheckpointError, match=r"progress\.json is damaged"):
        run(table)


def test_a_run_is_not_continued_with_other_settings(table: dict[str, Any]) -> None:
    table["run"]["epochs"] = 1
    run(table)
    table["run"]["epochs"] = 2
    table["optim"]["lr"] = 0.5
    with pytest.raises(ConfigError, match=r"started with optim\.lr=0\.01, not 0\.5"):
        run(table)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("model", "path", "other/model"),
        ("model", "finetune", "full"),
        ("model", "lora_rank", 8),
        ("task", "name", "ocr"),
        ("run", "seed", 8),
    ],
)
def test_a_run_of_another_model_or_preset_is_named(
    table: dict[str, Any], section: str, name: str, value: Any
) -> None:
    before = parse(table).model_dump(mode="json")
    table[section][name] = value
    with pytest.raises(ConfigError, match=rf"started with {section}\.{name}=.*another folder"):
        check_same(parse(table), before, Path("runs/x"))


def test_numbers_do_not_depend_on_the_global_generators(
    table: dict[str, Any], tmp_path: Path
) -> None:
    table["run"]["epochs"] = 2
    whole = run(elsewhere(table, tmp_path / "whole"))

    def scramble() -> bool:
        torch.rand(3)
        random.random()
        np.random.random()
        return False

    scrambled = run(elsewhere(table, tmp_path / "scrambled"), stop=scramble)
    assert_same_run(whole.run_dir, scrambled.run_dir)


def test_a_finished_run_that_goes_on_is_the_longer_run(
    table: dict[str, Any], tmp_path: Path, whole: Path
) -> None:
    table["run"]["epochs"] = 2
    run(elsewhere(table, tmp_path / "parts"))
    table["run"]["epochs"] = 4
    stopped = run(elsewhere(table, tmp_path / "parts"), stop=lambda: True)
    assert (stopped.reason, stopped.epoch) == ("", 2)
    assert not (tmp_path / "parts" / "result.json").exists()
    run(elsewhere(table, tmp_path / "parts"))
    # The evaluation at epoch 2 was the final one and is now one of the curve.
    assert_same_run(whole, tmp_path / "parts")


def test_two_processes_cannot_train_in_one_folder(table: dict[str, Any]) -> None:
    folder = Path(table["run"]["out_dir"])
    with locked(folder), pytest.raises(ConfigError, match="another process is training"):
        run(table)


def test_the_time_budget_ends_a_run(table: dict[str, Any]) -> None:
    table["run"] = {**table["run"], "epochs": 10_000, "max_minutes": 0.0005}
    outcome = run(table)
    assert outcome.reason == "0.0005 minutes"
    assert read(outcome.run_dir)[-1]["phase"] == "final"
    assert run(table).already


def test_test_prompts_that_are_trained_on_are_refused(table: dict[str, Any]) -> None:
    table["task"]["test"] = table["task"]["train"]
    with pytest.raises(DataError, match="6 of 6 test prompts are also trained on"):
        run(table)
    table["task"]["overlap"] = "warn"
    lines: list[str] = []
    load_prompts(parse(table), lines.append)
    assert any(line.startswith("warning: 6 of 6") for line in lines)


def test_a_missing_model_is_one_line(table: dict[str, Any], tmp_path: Path) -> None:
    table["model"]["path"] = str(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"model\.path=.*nothing"):
        run(table)


MODES: dict[str, dict[str, dict[str, Any]]] = {
    "nft": {"loss": {"algorithm": "nft"}, "sampling": {"sde": "ode"}},
    "guard": {"loss": {"algorithm": "grpo_guard", "kl_beta": 0.0}, "ema": {"enabled": False}},
    "flow_dppo": {
        "loss": {"algorithm": "flow_dppo", "step_weights": "gradient"},
        "sampling": {"sde": "cps", "window_size": 1, "window_per": "prompt"},
    },
    "dgpo": {
        "loss": {"algorithm": "dgpo", "lowest_level": 0.5},
        "sampling": {"sde": "ode", "guidance_scale": 2.0},
    },
    "float16": {"model": {"dtype": "float16", "activation_checkpointing": True}},
    "dpo": {
        "loss": {"algorithm": "dpo", "kl_beta": 0.0},
        "sampling": {"sde": "ode"},
        "batch": {"optimizer_steps_per_epoch": 1},
        "model": {"finetune": "full"},
    },
    "regrouped": {
        "batch": {"train_batch_size": 1},
        "sampling": {"sde": "cps", "guidance_scale": 2.0},
    },
    "unguided": {
        "sampling": {"guidance_scale": 2.0},
        "loss": {"guidance_scale": 1.0, "step_weights": "noise"},
    },
    "awm": {
        "loss": {"algorithm": "awm"},
        "sampling": {"sde": "ode", "guidance_scale": 2.0},
    },
}
# `make test-all` runs these too.
RARE = ("guard", "flow_dppo", "dgpo", "dpo", "regrouped", "unguided", "awm")


@pytest.mark.parametrize(
    "mode",
    [pytest.param(name, marks=pytest.mark.exhaustive if name in RARE else ()) for name in MODES],
)
def test_other_modes_run_and_resume_to_the_bit(
    table: dict[str, Any], tmp_path: Path, mode: str
) -> None:
    for section, values in MODES[mode].items():
        table[section] = {**table.get(section, {}), **values}
    table["run"] = {**table["run"], "epochs": 2}
    whole = run(elsewhere(table, tmp_path / "whole"))
    parts = elsewhere(table, tmp_path / "parts")
    assert run(parts, stop=lambda: len(read(tmp_path / "parts")) >= 2).reason == ""
    assert run(parts).reason == "2 epochs"
    assert numbers(whole.run_dir) == numbers(tmp_path / "parts")
    train = [row for row in read(whole.run_dir) if row["kind"] == "train"]
    has_ratio = parse(table).loss.algorithm in ("grpo", "grpo_guard", "flow_dppo", "awm")
    first = 0.0 if has_ratio else None
    assert [row["first_ratio_deviation"] for row in train] == [first, first]
    assert all(row["policy"]["skipped_updates"] == 0 for row in train)
