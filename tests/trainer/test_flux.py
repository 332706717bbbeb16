import math
from pathlib import Path

import pytest
import tiny_flux
import torch

from trainer.models.base import ModelOptions
from trainer.models.model import FlowModel
from trainer.models.registry import MODELS


def load(folder: Path, *, guidance_embeds: bool, true_cfg_scale: float = 1.0) -> FlowModel:
    tiny_flux.build(folder, guidance_embeds=guidance_embeds)
    return MODELS["flux"](
        folder, ModelOptions(max_sequence_length=16, true_cfg_scale=true_cfg_scale)
    )


def test_the_schedule_of_dev_is_shifted_by_resolution(tmp_path: Path) -> None:
    model = load(tmp_path, guidance_embeds=True)
    # 1024 tokens, as 512 px of the released model have; its shift goes from 0.5 at 256 to 1.15.
    mu = 0.5 + (1.15 - 0.5) * (1024 - 256) / (4096 - 256)
    levels = torch.linspace(1, 1 / 6, 6, dtype=torch.float64)
    shifted = math.exp(mu) / (math.exp(mu) + 1 / levels - 1)
    found = model.sigmas(6, (4, 64, 64))
    assert torch.allclose(found[:-1].double(), shifted, atol=1e-6)
    assert found[0] == 1
    assert found[-1] == 0
    with pytest.raises(ValueError, match="latent shape is needed"):
        model.sigmas(6)


def test_the_embedded_guidance_needs_no_second_pass(tmp_path: Path) -> None:
    model = load(tmp_path, guidance_embeds=True)
    rows: list[int] = []
    model.transformer.register_forward_hook(lambda module, args, out: rows.append(len(out[0])))
    x, cond = torch.randn(2, 4, 8, 8), model.encode_prompts(["a star", "a heart"])
    weak, strong = (model.velocity(x, torch.tensor(0.5), cond, scale) for scale in (1.0, 3.5))
    assert rows == [2, 2]
    assert not torch.allclose(weak, strong)


def test_without_a_guidance_embedding_guidance_is_classifier_free(tmp_path: Path) -> None:
    model = load(tmp_path / "one", guidance_embeds=False)
    x, cond = torch.randn(2, 4, 8, 8), model.encode_prompts(["a star", "a heart"])
    with pytest.raises(ValueError, match="negative prompt"):
        model.velocity(x, torch.tensor(0.5), cond, 3.5)
    negative = model.encode_prompts([""])
    with torch.no_grad():
        v, v_without = (model.velocity(x, torch.tensor(0.5), c) for c in (cond, negative.expand(2)))
        guided = model.velocity(x, torch.tensor(0.5), cond, 3.5, negative)
    assert torch.allclose(guided, v_without + 3.5 * (v - v_without), atol=1e-5)
    with pytest.raises(ValueError, match="no guidance embedding: leave"):
        load(tmp_path / "two", guidance_embeds=False, true_cfg_scale=2.0)
