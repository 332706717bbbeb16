from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from tiny_parts import PROMPTS, SIDE_PX

from trainer.algorithm.advantages import advantages
from trainer.algorithm.ema import Ema
from trainer.algorithm.losses import LOSSES, LossContext, TrainBatch
from trainer.config.loss_settings import LOSS_SETTINGS
from trainer.evaluation.sampling import sample_and_compare
from trainer.models.base import ModelOptions
from trainer.models.model import FlowModel
from trainer.models.registry import MODELS
from trainer.rollout.config import RolloutConfig
from trainer.rollout.noise import NoiseKey, derive_seed, initial_noise
from trainer.rollout.policy import draw_window, recompute, refresh
from trainer.rollout.rollout import rollout

KEYS = [NoiseKey(0, 3, i % 3, i) for i in range(4)]


def load(
    folder: Path, finetune: Literal["lora", "full"] = "lora", dtype: torch.dtype = torch.float32
) -> FlowModel:
    options = ModelOptions(
        finetune=finetune, lora_rank=4, lora_alpha=16, max_sequence_length=0, compute_dtype=dtype
    )
    return MODELS["sd3"](folder, options)


def sampled(model: FlowModel, config: RolloutConfig, keys=KEYS, window=None):
    cond = model.encode_prompts([PROMPTS[key.prompt] for key in keys])
    negative = model.encode_prompts([""]) if config.guidance_scale != 1 else None
    record = rollout(
        model,
        cond,
        keys,
        config,
        latent_shape=model.latent_shape(SIDE_PX, SIDE_PX),
        window=draw_window(config, 0, 0) if window is None else window,
        negative=negative,
    )
    return record, cond, negative


@pytest.mark.parametrize(("finetune", "dtype"), [("lora", torch.float32), ("full", torch.bfloat16)])
@pytest.mark.parametrize(
    "config",
    [
        RolloutConfig(num_steps=5, keep_means=True),
        RolloutConfig(num_steps=5, guidance_scale=4.5),
        RolloutConfig(num_steps=6, kind="cps", noise_level=0.8, window_size=2, keep_means=True),
        RolloutConfig(num_steps=5, kind="dance", noise_level=0.3, window_range=(1, 5)),
        RolloutConfig(num_steps=5, kind="cps", log_prob_form="gaussian"),
    ],
)
def test_the_first_ratio_is_exactly_one(
    tiny: Path, finetune: Literal["lora", "full"], config, dtype
) -> None:
    model = load(tiny, finetune, dtype)
    record, cond, negative = sampled(model, config)
    assert torch.isfinite(record.log_probs).all()
    for place in range(len(record.steps)):
        step = recompute(model, record, place, cond, config, negative=negative)
        assert step.log_prob is not None
        assert step.log_prob.requires_grad
        assert torch.equal(step.log_prob, record.log_probs[:, place])
        if record.means is not None:
            assert torch.equal(step.transition.mean, record.means[:, place])


def test_regrouped_batches_have_ratio_one_after_refresh(tiny: Path) -> None:
    model, config = load(tiny), RolloutConfig(num_steps=5, keep_means=True)
    record, cond, _ = sampled(model, config)
    part, cond = record.select([2, 0, 1]), cond.index_select([2, 0, 1])
    fresh = refresh(model, part, cond, config)
    torch.testing.assert_close(fresh.log_probs, part.log_probs, rtol=1e-4, atol=1e-5)
    assert fresh.means is not None
    for place in range(len(fresh.steps)):
        step = recompute(model, fresh, place, cond, config)
        assert step.log_prob is not None
        assert torch.equal(step.log_prob, fresh.log_probs[:, place])
        assert torch.equal(step.transition.mean, fresh.means[:, place])


def test_the_record_is_the_trajectory(tiny: Path) -> None:
    model, config = load(tiny), RolloutConfig(num_steps=6, window_size=2, window_range=(1, 4))
    record, cond, _ = sampled(model, config, window=(2, 3))
    shape = model.latent_shape(SIDE_PX, SIDE_PX)
    assert record.trajectory.shape == (4, 3, *shape)
    assert record.log_probs.shape == (4, 2)
    assert record.steps == (2, 3)
    assert torch.equal(record.sigmas, model.sigmas(6))
    x = initial_noise(KEYS, shape, "cpu")
    with torch.no_grad():
        for i in (0, 1):
            v = model.velocity(x, record.sigmas[i].expand(4), cond)
            x = x + (record.sigmas[i + 1] - record.sigmas[i]) * v
        torch.testing.assert_close(record.trajectory[:, 0], x)
        x = record.trajectory[:, 2]
        for i in (4, 5):
            v = model.velocity(x, record.sigmas[i].expand(4), cond)
            x = x + (record.sigmas[i + 1] - record.sigmas[i]) * v
        torch.testing.assert_close(record.final, x)


def test_images_do_not_depend_on_their_batch(tiny: Path) -> None:
    model, config = load(tiny), RolloutConfig(num_steps=4)
    together, _, _ = sampled(model, config)
    alone, _, _ = sampled(model, config, keys=KEYS[2:3])
    torch.testing.assert_close(alone.final, together.final[2:3], rtol=1e-4, atol=1e-5)
    again, _, _ = sampled(model, config)
    assert torch.equal(again.final, together.final)
    other, _, _ = sampled(model, config, keys=[replace(key, epoch=4) for key in KEYS])
    assert not torch.allclose(other.final, together.final)


def test_without_stochastic_steps_it_is_the_evaluation_s_sampler(tiny: Path) -> None:
    model, config = load(tiny), RolloutConfig(num_steps=4, kind="ode")
    record, cond, _ = sampled(model, config)
    assert record.steps == ()
    assert record.trajectory.shape[:2] == (4, 0)
    x = initial_noise(KEYS, tuple(record.final.shape[1:]), "cpu")
    assert torch.equal(record.final, sample_and_compare(model, cond, x, 4)[0])


def test_windows_are_drawn_in_range_and_again_alike() -> None:
    config = RolloutConfig(num_steps=10, window_size=3, window_range=(1, 6))
    windows = {draw_window(config, seed, epoch) for epoch in range(20) for seed in range(4)}
    assert windows == {(1, 2, 3), (2, 3, 4), (3, 4, 5)}
    assert draw_window(config, 5, 7) == draw_window(config, 5, 7)
    assert draw_window(RolloutConfig(num_steps=10), 0, 0) == tuple(range(9))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 1}, "at least 2"),
        ({"kind": "sde"}, "flow_sde"),
        ({"noise_level": 0.0}, "positive"),
        ({"kind": "cps", "noise_level": 1.2}, "at most 1"),
        ({"window_range": (3, 11)}, "inside"),
        ({"window_size": 4, "window_range": (0, 3)}, "fit"),
        ({"kind": "cps", "window_range": (0, 10)}, "deterministic"),
    ],
)
def test_impossible_settings_are_refused(changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RolloutConfig(**changes)


def test_impossible_windows_are_refused(tiny: Path) -> None:
    model, config = load(tiny), RolloutConfig(num_steps=4)
    for window in ((), (0, 2), (3, 4)):
        with pytest.raises(ValueError, match="steps"):
            sampled(model, config, window=window)
    with pytest.raises(ValueError, match="noise keys"):
        rollout(
            model, model.encode_prompts(PROMPTS), KEYS, config,
            latent_shape=(4, 8, 8), window=(0,),
        )  # fmt: skip


def test_seeds_depend_on_every_part() -> None:
    seeds = [derive_seed(*parts) for parts in ((1, 2), (2, 1), (12,), ("1", 2), (1, 2, 0), (-1, 2))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


# Each loss is held to a reference's gradient elsewhere: `make test` trains with one of each kind.
OFTEN = ("grpo", "nft", "dpo")


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in OFTEN else pytest.mark.exhaustive) for name in LOSSES],
)
def test_every_loss_raises_the_reward(tiny: Path, name: str) -> None:
    """The reward is the mean of the first latent channel: a policy that learns must raise it."""
    model, entry = load(tiny), LOSSES[name]
    parameters = model.trainable_parameters()
    old = Ema(parameters)
    optimiser = torch.optim.AdamW(list(parameters.values()), lr=1e-2)
    needs = LOSS_SETTINGS[name]
    kind = "ode" if needs.learns_from == "images" else "flow_sde"
    config = RolloutConfig(num_steps=4, kind=kind, window_size=0, keep_means=needs.keep_means)
    own = needs.model_fields
    wide = {"clip_low": 0.2, "clip_high": 0.2, "kl_form": "velocity"}
    table = {key: value for key, value in wide.items() if key in own}
    loss = needs.model_validate({"algorithm": name, "kl_beta": 1e-3, **table})
    history = []
    for epoch in range(8):
        keys = [NoiseKey(0, epoch, 0, i) for i in range(16)]
        with old.swap() if entry.old_decay else torch.no_grad():
            record, cond, _ = sampled(model, config, keys=keys)
        reward = record.final[:, 0].mean((1, 2))
        history.append(reward.mean().item())
        valid = [i != 3 for i in range(16)]
        found = advantages(
            {"r": reward.double().numpy()}, [0] * 16, valid=valid, mode=needs.advantage_mode
        )
        batch = TrainBatch(
            record,
            cond,
            torch.as_tensor(found.values, dtype=torch.float32),
            torch.as_tensor(found.used),
            groups=torch.as_tensor(found.groups),
        )
        context = LossContext(model, config, loss, old if entry.old_decay else None)
        if entry.prepare is not None:
            (batch,) = entry.prepare(context, [batch], lambda value: [value])
        optimiser.zero_grad()
        terms = list(entry.terms(context, batch))
        assert len(terms) == (3 if needs.learns_from == "steps" else 4)
        for term in terms:
            term.loss.backward()
            assert all(torch.isfinite(value) for value in term.metrics.values())
            # The first ratio of an epoch is exactly 1, whatever the loss takes for one.
            assert term.metrics.get("ratio_deviation", 0) == 0
        optimiser.step()
        old.blend(entry.old_decay(epoch) if entry.old_decay else 0.0)
    assert history[-1] > history[0] + 0.1


def test_images_that_start_alike_are_sampled_as_if_alone_up_to_the_window(tiny: Path) -> None:
    """Whole prefix once per start: the same images, and the first ratio is still exactly 1."""
    model = load(tiny)
    keys = [
        NoiseKey(0, 3, prompt, 2 * pair + half, 2 * pair, 2 * pair if half else None)
        for prompt in range(2)
        for pair in range(2)
        for half in range(2)
    ]
    config = RolloutConfig(num_steps=5, window_size=2, window_range=(2, 4))
    record, cond, _ = sampled(model, config, keys)
    assert torch.equal(record.trajectory[0::2, 0], record.trajectory[1::2, 0])
    for row, key in enumerate(keys):
        alone, _, _ = sampled(model, config, [key])
        torch.testing.assert_close(record.final[row], alone.final[0], atol=1e-4, rtol=1e-4)
    again = recompute(model, record, 0, cond, config)
    assert again.log_prob is not None
    assert torch.equal(again.log_prob, record.log_probs[:, 0])


def test_full_fine_tuning_of_some_layers_leaves_the_others_alone(tiny: Path) -> None:
    options = ModelOptions(finetune="full", trained_layers=("norm1",), max_sequence_length=0)
    model = MODELS["sd3"](tiny, options)
    trained = dict(model.trainable_parameters())
    assert trained
    assert all("norm1" in name for name in trained)
    record, cond, _ = sampled(model, RolloutConfig(num_steps=3))
    step = recompute(model, record, 0, cond, RolloutConfig(num_steps=3))
    step.v.sum().backward()
    assert all(parameter.grad is not None for parameter in trained.values())
    wrong = options.model_copy(update={"trained_layers": ("norm1", "no_such_layer")})
    with pytest.raises(ValueError, match="no weight has 'no_such_layer'"):
        MODELS["sd3"](tiny, wrong)
