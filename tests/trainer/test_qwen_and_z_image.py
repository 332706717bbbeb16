"""What only Qwen-Image and Z-Image have: prompts of their own length, guidance of their own."""

from typing import Any

import pytest
import tiny_qwen_image
import tiny_z_image
import torch
from tiny_parts import PROMPTS

from trainer.models.base import ModelOptions
from trainer.models.model import FlowModel
from trainer.models.registry import MODELS

BUILDERS: dict[str, Any] = {"qwen_image": tiny_qwen_image.build, "z_image": tiny_z_image.build}
SIGMA = torch.tensor(0.7)


@pytest.fixture(scope="module", params=BUILDERS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def model(family: str, tmp_path_factory: pytest.TempPathFactory) -> FlowModel:
    folder = BUILDERS[family](tmp_path_factory.mktemp("tiny") / family)
    return MODELS[family](folder, ModelOptions(lora_rank=4, lora_alpha=8, max_sequence_length=64))


def noise(model: FlowModel, rows: int) -> torch.Tensor:
    source = torch.Generator().manual_seed(1)
    return torch.randn(rows, *model.latent_shape(32, 48), generator=source)


@torch.no_grad()
def test_padding_changes_nothing(model: FlowModel) -> None:
    cond = model.encode_prompts(PROMPTS)
    lengths = cond["mask"].sum(1).tolist()
    assert len(set(lengths)) == len(PROMPTS)
    assert cond["embeds"].shape[1] == max(lengths)
    x = noise(model, len(PROMPTS))
    together = model.velocity(x, SIGMA, cond)
    longer = model.velocity(x, SIGMA, cond.pad(max(lengths) + 7))
    torch.testing.assert_close(longer, together, rtol=1e-4, atol=1e-5)
    for row, prompt in enumerate(PROMPTS):
        alone = model.velocity(x[row : row + 1], SIGMA, model.encode_prompts([prompt]))
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-5)
    # It would, were it not masked.
    everything = dict(cond.tensors) | {"mask": torch.ones_like(cond["mask"])}
    unmasked = model.velocity(x, SIGMA, type(cond)(everything))
    assert (unmasked - together).abs().max() > 1e-3


@torch.no_grad()
def test_a_negative_prompt_may_be_longer_than_the_prompts(family: str, model: FlowModel) -> None:
    cond = model.encode_prompts(PROMPTS[:2])
    negative = model.encode_prompts(["blurred, and much longer than any of them"])
    x = noise(model, 2)
    with pytest.raises(ValueError, match="negative prompt"):
        model.velocity(x, SIGMA, cond, 4.0)
    v, without = model.velocity(x, SIGMA, cond), model.velocity(x, SIGMA, negative.expand(2))
    guided = model.velocity(x, SIGMA, cond, 4.0, negative)
    combined = without + 4.0 * (v - without)
    if family == "qwen_image":
        # Each 2x2 patch keeps the norm that it has without guidance.
        patches, expected = (torch.pixel_unshuffle(t, 2).norm(dim=1) for t in (guided, v))
        torch.testing.assert_close(patches, expected, rtol=1e-4, atol=1e-5)
        assert (torch.pixel_unshuffle(combined, 2).norm(dim=1) - expected).abs().max() > 1e-2
        combined = rescaled(combined, v)
    torch.testing.assert_close(guided, combined, rtol=1e-3, atol=1e-4)


def rescaled(combined: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    patches, kept = (torch.pixel_unshuffle(t, 2) for t in (combined, v))
    scaled = patches / patches.norm(dim=1, keepdim=True) * kept.norm(dim=1, keepdim=True)
    return torch.pixel_shuffle(scaled, 2)


def test_adapters_sit_where_the_official_ones_do(family: str, model: FlowModel) -> None:
    names = {name.split(".lora_")[0] for name in model.trainable_parameters()}
    if family == "qwen_image":
        blocks = [n.removeprefix("transformer_blocks.1.") for n in names if ".1." in n]
        assert {n for n in blocks if n.startswith(("img_mlp", "txt_mlp"))} == {
            "img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2",
        }  # fmt: skip
        assert sum(n.startswith("attn.") for n in blocks) == 8
    else:
        assert {n.split(".")[0] for n in names} == {"layers", "noise_refiner", "context_refiner"}
        assert all(".attention." in n for n in names)
