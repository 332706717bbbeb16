from pathlib import Path

import pytest
import torch
from tiny_parts import PROMPTS
from tiny_sd3 import open_pipeline

from trainer.models.base import ModelOptions
from trainer.models.model import FlowModel
from trainer.models.registry import MODELS
from trainer.rollout.noise import NoiseKey
from trainer.types import Prompt

KEYS = [NoiseKey(0, 0, i % 3, i) for i in range(4)]
TEXTS = [PROMPTS[key.prompt] for key in KEYS]
TOKENS = 16


def load(folder: Path, finetune: str = "lora", **changes) -> FlowModel:
    options = ModelOptions(
        finetune=finetune,  # pyright: ignore
        lora_rank=4,
        lora_alpha=16,
        max_sequence_length=TOKENS,
        **changes,
    )
    return MODELS["sd3"](folder, options)


@pytest.mark.parametrize("steps", [4, 10, 40])
def test_sigmas_are_the_scheduler_s(tiny: Path, steps: int) -> None:
    scheduler = open_pipeline(tiny, with_t5=False).scheduler
    scheduler.set_timesteps(steps)
    found = load(tiny).sigmas(steps)
    assert torch.equal(found, scheduler.sigmas)
    assert found[0] == 1
    assert found[-1] == 0


def test_the_prompt_cache_is_bounded(tiny: Path) -> None:
    one = load(tiny).encode_prompts(PROMPTS[:1]).num_bytes
    model = load(tiny, prompt_cache_gb=2 * one / 1e9)
    prompts = [Prompt(text) for text in PROMPTS]
    assert model.fill_cache(prompts[:2])
    assert not model.fill_cache(prompts)
    assert not model.fill_cache(prompts[:2], negative="")
    model.encode_prompts(PROMPTS)
    model.drop_encoders()
    model.encode_prompts(PROMPTS[1:])
    with pytest.raises(RuntimeError, match="dropped"):
        model.encode_prompts(PROMPTS[:1])


def test_what_cannot_be_is_refused(tiny: Path) -> None:
    model = load(tiny)
    cond = model.encode_prompts(TEXTS)
    with pytest.raises(ValueError, match="negative"):
        model.velocity(torch.zeros(4, 4, 8, 8), torch.tensor(0.5), cond, 4.5)
    with pytest.raises(ValueError, match="'lora' or 'full'"):
        load(tiny, "some")
    with pytest.raises(ValueError, match="float32, bfloat16, float16, not"):
        load(tiny, compute_dtype=torch.float64)
