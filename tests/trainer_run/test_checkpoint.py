from pathlib import Path

import pytest
import torch

from trainer import checkpoint
from trainer.checkpoint import Checkpoint
from trainer.errors import CheckpointError


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


def test_with_nothing_whole_left_the_error_says_what_to_do(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, make(1), keep=2)
    (path / "trained.safetensors").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match=r"trained\.safetensors is damaged.*run\.out_dir="):
        checkpoint.load_latest(tmp_path)
    assert path.is_dir()


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(CheckpointError, match="another model"):
        checkpoint.restore_parameters({"a": torch.zeros(1)}, {"b": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="shape"):
        checkpoint.restore_parameters({"a": torch.zeros(1)}, {"a": torch.zeros(2)})


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
    tensors = {
        k: v.clone() for k, v in checkpoint.optimizer_tensors(optimizer, {"w": weight}).items()
    }
    kept = weight.detach().clone()
    step(weight, optimizer)
    other, second = problem()
    checkpoint.restore_parameters({"w": other}, {"w": kept})
    checkpoint.restore_optimizer(second, {"w": other}, tensors)
    step(other, second)
    assert torch.equal(other, weight)
