import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer_run.test_run import run
from trainer.errors import CheckpointError
from trainer.run import checkpoint
from trainer.run.checkpoint import Checkpoint
from trainer.run.log import read
from trainer.run.tensors import optimizer_tensors, restore_optimizer, restore_parameters


def make(epoch: int) -> Checkpoint:
    return Checkpoint(
        {"epoch": epoch, "note": "x"},
        {"trained": {"a.b": torch.full((3,), float(epoch))}, "rng": {"cpu": torch.arange(4)}},
    )


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, make(3), keep=2)
    found, warnings = checkpoint.load_latest(tmp_path)
    assert not warnings
    assert found is not None
    assert found.progress["epoch"] == 3
    assert torch.equal(found.tensors["trained"]["a.b"], torch.full((3,), 3.0))


def test_only_the_newest_are_kept_and_left_overs_are_removed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / ".writing-epoch_000001").mkdir(parents=True)
    for epoch in range(1, 5):
        checkpoint.save(tmp_path, make(epoch), keep=2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["epoch_000003", "epoch_000004"]


def test_a_new_run_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path) == (None, [])


@pytest.mark.parametrize(
    "name", ["trained.safetensors", "progress.json", "manifest.json", "rng.safetensors"]
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "remove"])
def test_damage_is_found_and_the_one_before_is_used(tmp_path: Path, name: str, damage: str) -> None:
    checkpoint.save(tmp_path, make(1), keep=2)
    path = checkpoint.save(tmp_path, make(2), keep=2) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes({"flip": data, "truncate": data[:-9], "empty": b""}[damage])
    found, warnings = checkpoint.load_latest(tmp_path)
    assert found is not None
    assert found.progress["epoch"] == 1
    (warning,) = warnings
    assert "epoch_000002" in warning
    assert "\n" not in warning
    assert (tmp_path / "checkpoints" / "damaged" / "epoch_000002").is_dir()


def test_the_best_is_never_removed(tmp_path: Path) -> None:
    for epoch in range(6):
        checkpoint.save(tmp_path, make(epoch), keep=2, best_epoch=min(epoch, 2))
    names = [path.name for path in checkpoint.present(tmp_path)]
    assert names == ["epoch_000005", "epoch_000004", "epoch_000002"]
    assert checkpoint.find(tmp_path, "best").progress["epoch"] == 2
    assert checkpoint.find(tmp_path).progress["epoch"] == 5
    assert checkpoint.find(tmp_path, "epoch_000004").progress["epoch"] == 4
    checkpoint.save(tmp_path, make(6), keep=2, best_epoch=6)
    assert [path.name for path in checkpoint.present(tmp_path)] == ["epoch_000006", "epoch_000005"]


def test_a_checkpoint_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        checkpoint.find(tmp_path, "best")
    checkpoint.save(tmp_path, make(1), keep=2)
    for name in ("best", "epoch_000009", "../checkpoints", "damaged"):
        with pytest.raises(CheckpointError, match=r"no checkpoint '.*'; it has latest, epoch_"):
            checkpoint.find(tmp_path, name)


def test_the_newest_that_is_whole_is_found_without_moving_anything(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, make(1), keep=2)
    path = checkpoint.save(tmp_path, make(2), keep=2)
    (path / "rng.safetensors").unlink()
    assert checkpoint.find(tmp_path).progress["epoch"] == 1
    assert path.is_dir()
    with pytest.raises(CheckpointError, match=r"rng\.safetensors is missing"):
        checkpoint.find(tmp_path, path.name)


def test_another_version_s_checkpoint_is_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, make(1), keep=2)
    monkeypatch.setattr(checkpoint, "FORMAT", checkpoint.FORMAT + 1)
    path = checkpoint.save(tmp_path, make(2), keep=2)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format 2, this version reads 1"):
        checkpoint.load_latest(tmp_path)
    assert path.is_dir()


def test_with_nothing_whole_left_the_error_says_what_to_do(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, make(1), keep=2)
    (path / "trained.safetensors").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match=r"trained\.safetensors is damaged.*run\.out_dir="):
        checkpoint.load_latest(tmp_path)
    assert path.is_dir()


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(CheckpointError, match="another model"):
        restore_parameters({"a": torch.zeros(1)}, {"b": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="shape"):
        restore_parameters({"a": torch.zeros(1)}, {"a": torch.zeros(2)})


def test_the_optimiser_goes_on_to_the_bit() -> None:
    def problem() -> tuple[torch.nn.Parameter, torch.optim.AdamW]:
        weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        return weight, torch.optim.AdamW([weight], lr=0.1)

    def step(weight: torch.nn.Parameter, optimizer: torch.optim.AdamW) -> None:
        optimizer.zero_grad()
        (weight**3).sum().backward()
        optimizer.step()

    weight, optimizer = problem()
    step(weight, optimizer)
    tensors = {k: v.clone() for k, v in optimizer_tensors(optimizer, {"w": weight}).items()}
    kept = weight.detach().clone()
    step(weight, optimizer)
    other, second = problem()
    restore_parameters({"w": other}, {"w": kept})
    restore_optimizer(second, {"w": other}, tensors)
    step(other, second)
    assert torch.equal(other, weight)


@pytest.mark.parametrize("weight", [1.0, -1.0])
def test_the_best_evaluation_is_the_lowest_where_the_weight_is_negative(
    table: dict[str, Any], weight: float
) -> None:
    table["rewards"]["train"][0]["weight"] = weight
    table["eval"]["every_epochs"] = 1
    run_dir = run(table).run_dir
    found = [row["metrics"]["brightness"]["mean"] for row in read(run_dir) if row["kind"] == "eval"]
    best = json.loads((run_dir / "result.json").read_text(encoding="utf-8"))["best"]
    assert len(set(found)) > 1
    assert best == (max(found) if weight > 0 else min(found))
