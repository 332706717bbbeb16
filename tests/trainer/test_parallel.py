"""How the networks run must not change what they compute."""

import shutil
from pathlib import Path
from typing import Literal

import pytest
import torch
from tiny_parts import PROMPTS, SIDE_PX

from trainer.config.load import parse
from trainer.config.settings import Settings
from trainer.errors import ConfigError
from trainer.models.base import ModelOptions
from trainer.models.model import FlowModel
from trainer.models.precision import DTYPES
from trainer.models.registry import MODELS
from trainer.parallel.sharding import parallel, prepare_networks
from trainer.parallel.world import World
from trainer.rollout.config import RolloutConfig
from trainer.rollout.noise import NoiseKey, initial_noise
from trainer.rollout.policy import recompute
from trainer.rollout.rollout import rollout

REWARDS = {"train": [{"scorer": "brightness"}]}


def prepared(
    folder: Path, finetune: Literal["lora", "full"] = "lora", **model: object
) -> FlowModel:
    settings = Settings.model_validate({"model": {"finetune": finetune, **model}})
    dtype = DTYPES[settings.model.dtype]
    options = ModelOptions(
        finetune=finetune,
        lora_rank=4,
        lora_alpha=16,
        max_sequence_length=0,
        compute_dtype=dtype,
        compile=settings.model.compile,
    )
    network = MODELS["sd3"](folder, options)
    prepare_networks(network, settings, World(), dtype)
    return network


def gradients(model: FlowModel) -> dict[str, torch.Tensor]:
    cond = model.encode_prompts(PROMPTS[:2])
    shape = model.latent_shape(SIDE_PX, SIDE_PX)
    x = initial_noise([NoiseKey(0, 0, 0, i) for i in range(2)], shape, "cpu")
    (model.velocity(x, torch.tensor([0.3, 0.8]), cond) ** 2).mean().backward()
    found = {n: p.grad for n, p in model.trainable_parameters().items() if p.grad is not None}
    assert any(gradient.abs().max() > 0 for gradient in found.values())
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_recomputed_activations_give_the_same_gradients(
    tiny: Path, finetune: Literal["lora", "full"], dtype: str
) -> None:
    kept = gradients(prepared(tiny, finetune, dtype=dtype))
    again = gradients(prepared(tiny, finetune, dtype=dtype, activation_checkpointing=True))
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[name], again[name]) for name in kept)


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own look at activations
# The compiler itself looks at the gradient of a tensor that is no leaf, after some other tests.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler")
def test_the_first_ratio_of_a_compiled_model_is_exactly_one(tiny: Path) -> None:
    model, config = prepared(tiny, compile=True), RolloutConfig(num_steps=3, window_size=1)
    cond = model.encode_prompts(PROMPTS[:2])
    keys = [NoiseKey(0, 0, i, 0) for i in range(2)]
    shape = model.latent_shape(SIDE_PX, SIDE_PX)
    record = rollout(model, cond, keys, config, latent_shape=shape, window=(1,))
    step = recompute(model, record, 0, cond, config)
    assert step.log_prob is not None
    assert step.log_prob.requires_grad
    assert torch.equal(step.log_prob.detach(), record.log_probs[:, 0])
    plain = rollout(prepared(tiny), cond, keys, config, latent_shape=shape, window=(1,))
    torch.testing.assert_close(record.final, plain.final, rtol=1e-4, atol=1e-4)


def test_shards_are_for_full_fine_tuning_unless_said_otherwise() -> None:
    def chosen(run: str, world: int, device: str = "cuda", **model: str) -> str:
        table = {"run": {"parallel": run}, "model": model, "rewards": REWARDS}
        return parallel(parse(table), world, torch.device(device))

    assert chosen("auto", 2, finetune="lora") == "replicated"
    assert chosen("auto", 2, finetune="full") == "fsdp"
    assert chosen("auto", 2, "cpu", finetune="full") == "replicated"
    assert chosen("fsdp", 2, "cpu", finetune="full") == "fsdp"
    assert chosen("fsdp", 2, finetune="lora") == "fsdp"
    assert chosen("fsdp", 1, finetune="full") == "replicated"
    with pytest.raises(ConfigError, match="use bfloat16"):
        chosen("fsdp", 2, dtype="float16")
