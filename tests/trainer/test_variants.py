"""Pipeline folders whose weights are stored as a variant, sharded, or not at all."""

from pathlib import Path
from typing import Any

import pytest
import tiny_sd3
import torch
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)

from trainer.models.base import ModelOptions
from trainer.models.loading import network_parameters, weight_files
from trainer.models.registry import MODELS


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd3.build(tmp_path_factory.mktemp("plain"), with_t5=False)


def stored(plain: Path, folder: Path, **how: Any) -> Path:
    """The pipeline saved in another way."""
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    pipe = StableDiffusion3Pipeline.from_pretrained(str(plain), **absent)
    pipe.save_pretrained(folder, **how)
    return folder


@pytest.mark.parametrize(
    ("how", "variant"),
    [
        ({"variant": "fp16"}, "fp16"),
        ({"variant": "fp16", "max_shard_size": "20KB"}, "fp16"),
        ({"max_shard_size": "20KB"}, None),
        ({"safe_serialization": False}, None),
    ],
)
def test_every_way_to_store_weights_loads(
    plain: Path, tmp_path: Path, how: dict[str, Any], variant: str | None
) -> None:
    folder = stored(plain, tmp_path / "stored", **how)
    assert weight_files(folder / "transformer")[0] == variant
    options = ModelOptions(max_sequence_length=16, finetune="full", keep_reference=False)
    expected = MODELS["sd3"](plain, options).trainable_parameters()
    found = MODELS["sd3"](folder, options).trainable_parameters()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    # Headers count buffers as well.
    assert network_parameters(folder) == network_parameters(plain)
    assert network_parameters(folder) >= sum(value.numel() for value in expected.values())


def test_plain_weights_come_before_a_variant_and_are_counted_once(
    plain: Path, tmp_path: Path
) -> None:
    folder = stored(plain, tmp_path / "both", variant="fp16")
    stored(plain, folder)
    assert weight_files(folder / "vae")[0] is None
    assert network_parameters(folder) == network_parameters(plain)


def test_a_component_without_weights_is_named(plain: Path, tmp_path: Path) -> None:
    folder = stored(plain, tmp_path / "bare")
    (folder / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"text_encoder holds no weights"):
        network_parameters(folder)
    with pytest.raises(ValueError, match=r"text_encoder holds no weights.*hf download"):
        MODELS["sd3"](folder, ModelOptions(max_sequence_length=16))
