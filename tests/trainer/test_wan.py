"""What only Wan has: two experts, the schedule of its scheduler, and a first frame."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_wan
import torch
from diffusers.schedulers.scheduling_flow_match_euler_discrete import (
    FlowMatchEulerDiscreteScheduler,
)
from tiny_parts import PROMPTS, save_references

from trainer.evaluation.sampling import sample_and_compare
from trainer.models.base import Conditioning, ModelOptions
from trainer.models.model import FlowModel
from trainer.models.registry import MODELS
from trainer.rollout.noise import NoiseKey, initial_noise
from trainer.types import Reference, Request

KEYS = [NoiseKey(0, 0, i, i) for i in range(2)]
TEXTS = list(PROMPTS[:2])
SIZE = (16, 16, 5)
# The boundary of the tiny pipeline is 0.875.
HIGH, LOW = torch.tensor(0.9), torch.tensor(0.5)


def load(folder: Path, family: str = "wan", **changes: Any) -> FlowModel:
    options = {"lora_rank": 4, "lora_alpha": 8, "max_sequence_length": 32, **changes}
    return MODELS[family](folder, ModelOptions(**options))


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wan.build(tmp_path_factory.mktemp("wan") / "experts", "wan2.2")


def noise(model: FlowModel) -> torch.Tensor:
    return initial_noise(KEYS, model.latent_shape(*SIZE), model.device)


def velocities(model: FlowModel) -> tuple[torch.Tensor, torch.Tensor]:
    cond = model.encode_prompts(TEXTS)
    with torch.no_grad():
        high, low = (model.velocity(noise(model), sigma, cond) for sigma in (HIGH, LOW))
    return high, low


def test_a_batch_over_the_boundary_is_shared_out(experts: Path) -> None:
    model = load(experts)
    cond, negative = model.encode_prompts(TEXTS), model.encode_prompts([""])
    x, sigma = noise(model), torch.stack([LOW, HIGH])
    together = model.velocity(x, sigma, cond, 3.0, negative)
    for row in range(2):
        alone = model.velocity(
            x[row : row + 1], sigma[row], cond.index_select([row]), 3.0, negative
        )
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-5)
    # Exactly at the boundary it is still the expert for high noise, as in the pipeline.
    calls: list[str] = []
    for name in ("transformer", "transformer_2"):
        model.transformer.get_submodule(name).register_forward_hook(
            lambda *_, name=name: calls.append(name)
        )
    model.velocity(x, torch.tensor(tiny_wan.BOUNDARY), cond)
    model.velocity(x, torch.tensor(tiny_wan.BOUNDARY - 1e-3), cond)
    assert calls == ["transformer", "transformer_2"]
    # Both learn from a batch that reaches over it.
    together.square().mean().backward()
    graded = {n for n, p in model.trainable_parameters().items() if p.grad is not None}
    assert graded == set(model.trainable_parameters())


@pytest.mark.parametrize("finetune", ["lora", "full"])
@pytest.mark.parametrize(
    ("chosen", "folder"), [("high_noise", "transformer"), ("low_noise", "transformer_2")]
)
def test_one_expert_is_trained_and_the_other_stays(
    experts: Path, tmp_path: Path, finetune: str, chosen: str, folder: str
) -> None:
    model = load(experts, experts=chosen, finetune=finetune)
    base = velocities(model)
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.add_(0.05)
    trained = velocities(model)
    moves = [not torch.equal(new, old) for new, old in zip(trained, base, strict=True)]
    assert moves == [chosen == "high_noise", chosen == "low_noise"]
    with model.reference():
        assert all(map(torch.equal, velocities(model), base))

    model.save(tmp_path, model.trainable_parameters())
    pipe = tiny_wan.open_pipeline(experts)
    if finetune == "full":
        assert [part.name for part in tmp_path.iterdir()] == [folder]
        setattr(pipe, folder, type(pipe.transformer).from_pretrained(str(tmp_path / folder)))
    elif chosen == "high_noise":
        pipe.load_lora_weights(str(tmp_path))
    else:
        assert [part.name for part in tmp_path.iterdir()] == ["transformer_2"]
        pipe.load_lora_weights(str(tmp_path / folder), load_into_transformer_2=True)
    with torch.no_grad():
        for network, sigma, expected in (
            (pipe.transformer, HIGH, trained[0]),
            (pipe.transformer_2, LOW, trained[1]),
        ):
            found = network(
                noise(model),
                timestep=(sigma * 1000).expand(2),
                encoder_hidden_states=model.encode_prompts(TEXTS)["embeds"],
            ).sample
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_experts_need_two(tmp_path: Path) -> None:
    folder = tiny_wan.build(tmp_path / "one", "wan2.1")
    with pytest.raises(ValueError, match=r"model\.experts=low_noise needs two experts"):
        load(folder, experts="low_noise")
    model = load(folder)
    x, cond = noise(model), model.encode_prompts(TEXTS)
    with pytest.raises(ValueError, match="guidance needs the encoded negative prompt"):
        model.velocity(x, HIGH, cond, 2.0)


def test_the_schedule_is_that_of_the_published_scheduler(tmp_path: Path) -> None:
    """UniPC's levels, which the Euler scheduler of the same shift does not have by itself."""
    folder = tiny_wan.build(tmp_path / "unipc", unipc=True)
    pipe, model = tiny_wan.open_pipeline(folder), load(folder)
    for steps in (4, 20, 50):
        pipe.scheduler.set_timesteps(steps)
        found = model.sigmas(steps)
        assert (found - pipe.scheduler.sigmas).abs().max() < 2e-6
        assert (found[0], found[-1]) == (1, 0)

    class Euler(FlowMatchEulerDiscreteScheduler):
        """Euler steps on these levels, which is how the trainer samples."""

        def set_timesteps(  # pyright: ignore
            self, num_inference_steps: Any = None, **options: Any
        ) -> None:
            levels = np.linspace(1.0, 1 / 1000, num_inference_steps + 1)[:-1].tolist()
            super().set_timesteps(sigmas=levels, **options)

    pipe.scheduler = Euler(shift=tiny_wan.FLOW_SHIFT)
    expected = pipe(
        TEXTS,
        height=SIZE[0],
        width=SIZE[1],
        num_frames=SIZE[2],
        num_inference_steps=4,
        guidance_scale=1.0,
        max_sequence_length=32,
        generator=[key.initial() for key in KEYS],
        output_type="pt",
    ).frames
    final, _ = sample_and_compare(model, model.encode_prompts(TEXTS), noise(model), 4)
    assert (model.decode(final).unit - expected).abs().max() <= 1e-4


def about(folder: Path, model: FlowModel, first: int = 0) -> Conditioning:
    """The texts, each about one of the pictures from the ``first`` on."""
    files = save_references(folder)
    pictures = [Reference(path.name, path, (SIZE[1], SIZE[0])) for path in files]
    asked = [Request(text, (pictures[first + place],)) for place, text in enumerate(TEXTS)]
    return model.encode_prompts(asked)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_given_first_frame_stays_and_is_heard(tmp_path: Path, scale: float) -> None:
    folder = tiny_wan.build(tmp_path / "5b", "wan2.2-5b")
    model = load(folder, family="wan_i2v", reference_size=(SIZE[1], SIZE[0]), num_frames=SIZE[2])
    x, negative = noise(model), model.encode_prompts([""])
    cond, others = (about(tmp_path / "pictures", model, first) for first in (0, 1))
    (given,) = cond.references
    final, _ = sample_and_compare(model, cond, x, 4, guidance_scale=scale, negative=negative)
    assert (final[:, :, :1] - given).abs().max() < 1e-5
    other, _ = sample_and_compare(model, others, x, 4, guidance_scale=scale, negative=negative)
    assert (other - final)[:, :, 1:].abs().max() > 0.01, "the other frames ignore it"
    # Whatever the weights are, it has nothing to learn: noise - data at every level.
    for sigma in (torch.tensor(1.0), torch.tensor(0.3)):
        mixed = (1 - sigma) * final + sigma * x
        v = model.velocity(mixed, sigma, cond, scale, negative)
        assert (v - (x - final))[:, :, :1].abs().max() < 1e-4
        graded = torch.autograd.grad(
            v[:, :, :1].square().sum() + 0 * v.sum(), list(model.trainable_parameters().values())
        )
        assert not any(gradient.any() for gradient in graded)


def test_what_cannot_begin_with_a_picture_is_named(tmp_path: Path) -> None:
    folder = tiny_wan.build(tmp_path / "text", "wan2.1")
    with pytest.raises(ValueError, match=r"from text alone: set model\.family=wan, or take"):
        load(folder, family="wan_i2v")
    model = load(tiny_wan.build(tmp_path / "5b", "wan2.2-5b"), family="wan_i2v")
    with pytest.raises(ValueError, match="num_frames must be at least 5: the first frame is given"):
        model.latent_shape(16, 16, 1)
