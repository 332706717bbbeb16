from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_sd3 import PROMPTS, SIDE_PX, open_pipeline
from torch import Tensor

from trainer.evaluate import sample_ode
from trainer.models import MODELS
from trainer.models.base import FlowModel, LoraSpec, ModelOptions
from trainer.noise import NoiseKey, initial_noise

KEYS = [NoiseKey(0, 0, i % 3, i) for i in range(4)]
TEXTS = [PROMPTS[key.prompt] for key in KEYS]
TOKENS = 16


def load(folder: Path, finetune: str = "lora", **changes) -> FlowModel:
    options = ModelOptions(
        finetune=finetune,  # pyright: ignore
        lora=LoraSpec(rank=4, alpha=16),
        max_sequence_length=TOKENS,
        **changes,
    )
    return MODELS["sd3"](folder, options)


@torch.no_grad()
def images(model: FlowModel, guidance: float = 1.0, steps: int = 6) -> Tensor:
    shape = model.latent_shape(SIDE_PX, SIDE_PX)
    final = sample_ode(
        model,
        model.encode_prompts(TEXTS),
        initial_noise(KEYS, shape, model.device),
        steps,
        guidance_scale=guidance,
        negative=model.encode_prompts([""]) if guidance != 1 else None,
    )
    return model.decode(final).unit


def pipeline_images(pipe, guidance: float = 1.0, steps: int = 6, kind: str = "pt"):
    return pipe(
        TEXTS,
        height=SIDE_PX,
        width=SIDE_PX,
        num_inference_steps=steps,
        guidance_scale=guidance,
        max_sequence_length=TOKENS,
        generator=[key.initial() for key in KEYS],
        output_type=kind,
    ).images


def train_a_little(model: FlowModel, steps: int = 2) -> None:
    parameters = list(model.trainable_parameters().values())
    optimiser = torch.optim.AdamW(parameters, lr=5e-2)
    cond = model.encode_prompts(TEXTS)
    x = initial_noise(KEYS, model.latent_shape(SIDE_PX, SIDE_PX), model.device)
    for _ in range(steps):
        optimiser.zero_grad()
        model.velocity(x, torch.tensor(0.7), cond).square().mean().backward()
        optimiser.step()


@pytest.mark.parametrize("with_t5", [False, True])
@pytest.mark.parametrize("guidance", [1.0, 4.5])
def test_sampling_equals_the_pipeline_s_own(
    tiny: Path, tiny_t5: Path, with_t5: bool, guidance: float
) -> None:
    folder = tiny_t5 if with_t5 else tiny
    expected = pipeline_images(open_pipeline(folder, with_t5=with_t5), guidance)
    for finetune in ("lora", "full"):
        found = images(load(folder, finetune), guidance)
        assert (found - expected).abs().max() <= 1e-4
        assert expected.std() > 0.01


@pytest.mark.parametrize("steps", [4, 10, 40])
def test_sigmas_are_the_scheduler_s(tiny: Path, steps: int) -> None:
    scheduler = open_pipeline(tiny, with_t5=False).scheduler
    scheduler.set_timesteps(steps)
    found = load(tiny).sigmas(steps)
    assert torch.equal(found, scheduler.sigmas)
    assert found[0] == 1
    assert found[-1] == 0


def test_pixels_are_the_pipeline_s_pixels(tiny: Path) -> None:
    expected = np.stack(pipeline_images(open_pipeline(tiny, with_t5=False), kind="pil"))
    model = load(tiny)
    shape = model.latent_shape(SIDE_PX, SIDE_PX)
    final = sample_ode(
        model, model.encode_prompts(TEXTS), initial_noise(KEYS, shape, model.device), 6
    )
    found = model.decode(final)
    assert found.uint8.shape == (4, SIDE_PX, SIDE_PX, 3)
    assert found.uint8.dtype == np.uint8
    # A difference of 1e-6 may fall on the other side of a rounding boundary.
    assert np.abs(found.uint8.astype(int) - expected.astype(int)).max() <= 1
    assert (found.uint8 != expected).mean() < 1e-3
    assert 0 <= found.unit.min() <= found.unit.max() <= 1


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_a_step_changes_trainable_parameters_only(tiny: Path, finetune: str) -> None:
    model = load(tiny, finetune)
    trainable = set(model.trainable_parameters())
    assert {n for n, p in model.transformer.named_parameters() if p.requires_grad} == trainable
    before = {n: p.detach().clone() for n, p in model.transformer.named_parameters()}
    base = images(model)
    train_a_little(model)
    changed = {n for n, p in model.transformer.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert changed <= trainable
    if finetune == "lora":
        # The last block has no use for its text queries, so they get no gradient.
        assert all(".1.attn.add_q_proj." in name for name in trainable - changed)
        assert all("lora_" in name for name in trainable)
    assert not torch.equal(images(model), base)
    with model.reference():
        assert torch.equal(images(model), base)
    assert {n for n, p in model.transformer.named_parameters() if p.requires_grad} == trainable
    assert not model.transformer.training


def test_saved_lora_gives_the_same_images_in_diffusers(tiny: Path, tmp_path: Path) -> None:
    model = load(tiny)
    base = images(model)
    train_a_little(model)
    model.save(tmp_path / "lora")
    pipe = open_pipeline(tiny, with_t5=False)
    pipe.load_lora_weights(str(tmp_path / "lora"))
    expected = images(model)
    assert (expected - base).abs().max() > 0.01
    assert (pipeline_images(pipe) - expected).abs().max() <= 1e-4


def test_saved_transformer_gives_the_same_images_in_diffusers(tiny: Path, tmp_path: Path) -> None:
    model = load(tiny, "full", keep_reference=False)
    train_a_little(model)
    model.save(tmp_path)
    pipe = open_pipeline(tiny, with_t5=False)
    pipe.transformer = type(pipe.transformer).from_pretrained(str(tmp_path / "transformer"))
    assert (pipeline_images(pipe) - images(model)).abs().max() <= 1e-4
    with pytest.raises(RuntimeError, match="keep_reference"), model.reference():
        pass


def test_adapters_start_alike_whatever_was_drawn_before(tiny: Path) -> None:
    first = load(tiny).trainable_parameters()
    torch.manual_seed(123)
    second = load(tiny).trainable_parameters()
    other = load(tiny, seed=1).trainable_parameters()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert all(p.dtype == torch.float32 for p in first.values())


def test_prompts_are_encoded_once_and_alike_in_any_company(tiny: Path) -> None:
    model = load(tiny)
    together = model.encode_prompts(PROMPTS)
    alone = load(tiny).encode_prompts([PROMPTS[1]])
    assert torch.equal(together["prompt_embeds"][1], alone["prompt_embeds"][0])
    assert torch.equal(together["pooled"][1], alone["pooled"][0])
    model.drop_encoders()
    again = model.encode_prompts(PROMPTS[::-1])
    assert torch.equal(again["prompt_embeds"][0], together["prompt_embeds"][2])
    with pytest.raises(RuntimeError, match="dropped"):
        model.encode_prompts(["another text"])
    with pytest.raises(ValueError, match="no prompts"):
        model.encode_prompts([])


def test_the_prompt_cache_is_bounded(tiny: Path) -> None:
    model = load(tiny, cache_size=2)
    model.encode_prompts(PROMPTS)
    model.drop_encoders()
    model.encode_prompts(PROMPTS[1:])
    with pytest.raises(RuntimeError, match="dropped"):
        model.encode_prompts(PROMPTS[:1])


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_bfloat16_computes_close_to_float32(tiny: Path, finetune: str) -> None:
    exact, rough = load(tiny, finetune), load(tiny, finetune, compute_dtype=torch.bfloat16)
    difference = (images(rough) - images(exact)).abs()
    assert 0 < difference.max() < 0.1
    assert all(p.dtype == torch.float32 for p in rough.trainable_parameters().values())
    train_a_little(rough)


def test_what_cannot_be_is_refused(tiny: Path, tmp_path: Path) -> None:
    model = load(tiny)
    with pytest.raises(ValueError, match="multiples of 8 px"):
        model.latent_shape(30, 32)
    with pytest.raises(FileNotFoundError, match="no such folder; download"):
        load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no model_index"):
        load(tmp_path)
    cond = model.encode_prompts(TEXTS)
    with pytest.raises(ValueError, match="negative"):
        model.velocity(torch.zeros(4, 4, 8, 8), torch.tensor(0.5), cond, 4.5)
    with pytest.raises(ValueError, match="lora or full"):
        load(tiny, "some")
