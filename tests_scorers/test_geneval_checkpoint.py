"""mmdet's checkpoint files: read without executing them, every tensor used, nothing missing."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from geneval_tiny import CHECKPOINT, confident_checkpoint
from torch import Tensor

from reward_server.scorers.geneval import mask2former, mmdet_checkpoint, mmdet_keys
from reward_server.scorers.geneval.mmdet_checkpoint import CheckpointError
from reward_server.scorers.geneval.mmdet_keys import UnknownLayout


@pytest.fixture(scope="module")
def table() -> dict[str, Tensor]:
    return mmdet_checkpoint.read_state_dict(CHECKPOINT)


def test_golden_file_holds_foreign_objects_that_torch_alone_refuses() -> None:
    with pytest.raises(pickle.UnpicklingError):
        torch.load(CHECKPOINT, weights_only=True)
    read = mmdet_checkpoint.read_state_dict(CHECKPOINT)
    assert all(value.dtype == torch.float32 for value in read.values() if value.is_floating_point())


def test_plain_file_of_tensors_is_read_the_same(table: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save({"meta": {"epoch": 1}, "state_dict": table}, tmp_path / "plain.pth")
    torch.save(table, tmp_path / "bare.pth")
    for name in ("plain.pth", "bare.pth"):
        again = mmdet_checkpoint.read_state_dict(tmp_path / name)
        assert again.keys() == table.keys()
        assert all(torch.equal(again[key], table[key]) for key in table)


class Hostile:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_nothing_in_a_pickle_is_executed(table: dict[str, Tensor], tmp_path: Path) -> None:
    hostile = {"meta": Hostile(tmp_path / "made"), "state_dict": table}
    torch.save(hostile, tmp_path / "hostile.pth")
    assert mmdet_checkpoint.read_state_dict(tmp_path / "hostile.pth").keys() == table.keys()
    assert not (tmp_path / "made").exists()
    torch.load(tmp_path / "hostile.pth", weights_only=False)  # what careless loaders do
    assert (tmp_path / "made").exists()


def test_hostile_tensor_table_is_an_error(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": Hostile(tmp_path / "made")}}, tmp_path / "hostile.pth")
    with pytest.raises(CheckpointError, match="not a tensor"):
        mmdet_checkpoint.read_state_dict(tmp_path / "hostile.pth")
    assert not (tmp_path / "made").exists()


def test_damage_is_named(tmp_path: Path) -> None:
    damaged = Path(shutil.copy(CHECKPOINT, tmp_path / CHECKPOINT.name))
    with damaged.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(CheckpointError, match=r"sha256 starts with .* its name says"):
        mmdet_checkpoint.read_state_dict(damaged)
    with pytest.raises(CheckpointError, match="not a complete torch file"):
        mmdet_checkpoint.read_state_dict(damaged.rename(tmp_path / "x.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="no table"):
        mmdet_checkpoint.read_state_dict(tmp_path / "list.pth")


def test_every_tensor_is_used_and_none_is_missing(table: dict[str, Tensor]) -> None:
    converted = mmdet_keys.convert(table)
    network = mask2former.build(table)
    own = {key for key, _ in network.named_parameters()} - mask2former._UNUSED
    assert set(converted) == own
    numbers = sum(v.numel() for k, v in table.items() if not k.endswith("relative_position_index"))
    assert numbers == sum(v.numel() for v in converted.values())


def test_names_of_mmdet_2_and_3_give_the_same_network(
    table: dict[str, Tensor], tmp_path: Path
) -> None:
    assert any("attentions.1" in key for key in table)
    newer = mmdet_checkpoint.read_state_dict(confident_checkpoint(tmp_path))
    assert any("self_attn" in key for key in newer)
    assert not any("attentions" in key for key in newer)
    old, new = mmdet_keys.convert(table), mmdet_keys.convert(newer)
    different = {key for key in old if not torch.equal(old[key], new[key])}
    assert different == {"class_predictor.weight"}  # changed on purpose


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("panoptic_head.cls_embed.bias"), "missing tensors"),
        (lambda t: t.pop("panoptic_head.query_feat.weight"), "no tensor"),
        (lambda t: t.update(stranger=torch.ones(1)), "'stranger' has no counterpart"),
        (
            lambda t: t.update({"panoptic_head.cls_embed.bias": torch.ones(5)}),
            "another shape",
        ),
        (
            lambda t: t.update({"panoptic_head.cls_embed.weight": torch.ones(134, 32)}),
            "133 classes",
        ),
    ],
)
def test_other_networks_are_refused(table: dict[str, Tensor], change: Any, message: str) -> None:
    changed = dict(table)
    change(changed)
    with pytest.raises(UnknownLayout, match=message):
        mask2former.build(changed)


def test_sizes_of_the_official_network_come_from_its_shapes(table: dict[str, Tensor]) -> None:
    sizes = mmdet_keys.architecture(mmdet_keys.modern(table))
    assert (sizes.embed_dim, sizes.depths, sizes.heads) == (16, (2, 2, 2, 2), (1, 2, 4, 8))
    assert (sizes.window, sizes.mlp_ratio, sizes.hidden, sizes.queries) == (7, 4.0, 32, 10)
    assert (sizes.encoder_layers, sizes.encoder_ffn) == (2, 48)
    assert (sizes.decoder_layers, sizes.decoder_ffn, sizes.classes) == (2, 64, 80)
