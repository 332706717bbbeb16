"""Every loss against a plain reference, in both directions, and blind to what failed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tiny_parts import PROMPTS, SIDE_PX
from torch import Tensor

from trainer.algorithm.ema import Ema
from trainer.algorithm.losses import LOSSES, LossContext, TrainBatch
from trainer.algorithm.losses.images import Point, group_sources, own_sources, points
from trainer.config.loss_settings import LOSS_SETTINGS
from trainer.models.base import ModelOptions
from trainer.models.model import FlowModel
from trainer.models.registry import MODELS
from trainer.rollout.config import RolloutConfig
from trainer.rollout.noise import NoiseKey
from trainer.rollout.policy import draw_window
from trainer.rollout.rollout import rollout
from trainer.run.tensors import restore_parameters

Gradients = dict[str, Tensor]
ON_IMAGES = [name for name, loss in LOSS_SETTINGS.items() if loss.learns_from == "images"]


@pytest.fixture(scope="module")
def model(tiny: Path) -> FlowModel:
    return MODELS["sd3"](tiny, ModelOptions(lora_rank=4, lora_alpha=16, max_sequence_length=0))


def sampled(
    model: FlowModel, advantage: list[float], valid: list[bool] | None = None, kind: str = "ode"
) -> TrainBatch:
    """Images in groups of four, each with its advantage."""
    count = len(advantage)
    config = RolloutConfig(num_steps=5, kind=kind, keep_means=kind != "ode")
    cond = model.encode_prompts([PROMPTS[i // 4] for i in range(count)])
    record = rollout(
        model,
        cond,
        [NoiseKey(0, 0, i // 4, i % 4) for i in range(count)],
        config,
        latent_shape=model.latent_shape(SIDE_PX, SIDE_PX),
        window=draw_window(config, 0, 0),
    )
    return TrainBatch(
        record,
        cond,
        torch.tensor(advantage),
        torch.tensor([True] * count if valid is None else valid),
        groups=torch.arange(count) // 4,
    )


def context_for(model: FlowModel, name: str, old: Ema, **changes: float | str) -> LossContext:
    kind_of_settings = LOSS_SETTINGS[name]
    kind = "ode" if kind_of_settings.learns_from == "images" else "flow_sde"
    config = RolloutConfig(num_steps=5, kind=kind, keep_means=kind_of_settings.keep_means)
    table = {"clip_low": 0.02, "clip_high": 0.03, "kl_beta": 0.0, "noise_levels": 3, **changes}
    own = {key: table[key] for key in table if key in kind_of_settings.model_fields}
    loss = kind_of_settings.model_validate({"algorithm": name, **own})
    return LossContext(model, config, loss, old if LOSSES[name].old_decay else None)


def moved(model: FlowModel, seed: int = 0, size: float = 0.02) -> Ema:
    """The weights as they are, kept; the model's move a little."""
    old = Ema(model.trainable_parameters())
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.add_(size * torch.randn(parameter.shape, generator=source))
    return old


@pytest.fixture
def old(model: FlowModel):
    """The sampling policy; the trained one has moved on. Both are as before after the test."""
    kept = moved(model)
    yield kept
    restore_parameters(model.trainable_parameters(), kept.values)


def gradients(model: FlowModel, loss: Tensor) -> Gradients:
    parameters = model.trainable_parameters()
    found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    return {n: g for n, g in zip(parameters, found, strict=True) if g is not None}


def update_gradients(context: LossContext, parts: list[TrainBatch]) -> Gradients:
    """What an update accumulates over its micro-batches."""
    entry = LOSSES[context.loss.algorithm]
    if entry.prepare is not None:
        parts = entry.prepare(context, parts, lambda value: [value])
    parameters = context.model.trainable_parameters()
    for parameter in parameters.values():
        parameter.grad = None
    total = sum(int(part.valid.sum()) for part in parts)
    for part in parts:
        for term in entry.terms(context, part):
            (term.loss * (part.valid.sum() / total)).backward()
    return {n: p.grad.clone() for n, p in parameters.items() if p.grad is not None}


def assert_close(found: Gradients, expected: Gradients) -> None:
    assert found.keys() == expected.keys()
    largest = max(float(value.abs().max()) for value in expected.values())
    assert largest > 0
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5 * largest)


def predict(model: FlowModel, batch: TrainBatch, point: Point) -> Tensor:
    return model.velocity(point.x_t, point.t, batch.cond)


def errors(model: FlowModel, batch: TrainBatch, at: list[Point]) -> list[Tensor]:
    """Per point the matching error of each image."""
    return [((predict(model, batch, p) - p.target) ** 2).mean((1, 2, 3)) for p in at]


def test_points_are_on_the_line_from_image_to_noise_and_belong_to_the_image(
    model: FlowModel,
) -> None:
    batch = sampled(model, [0.0] * 6)
    found = points(batch, 3, own_sources(batch))
    for point in found:
        eps = point.target + point.x0
        torch.testing.assert_close(point.x_t, (1 - point.time) * point.x0 + point.time * eps)
        assert abs(float(eps.mean())) < 0.05
        assert float(eps.std()) == pytest.approx(1, abs=0.05)
    levels = torch.stack([point.t for point in found])
    schedule = batch.rollout.sigmas[:-1].tolist()
    assert all(len(set(row)) == 3 and set(row) <= set(schedule) for row in levels.T.tolist())
    some = batch.select([4, 1])
    for whole, part in zip(found, points(some, 3, own_sources(some)), strict=True):
        assert torch.equal(part.x_t, whole.x_t[[4, 1]])
        assert torch.equal(part.t, whole.t[[4, 1]])
    assert len(points(batch, 99, own_sources(batch))) == 5
    high = points(batch, 99, own_sources(batch), lowest=0.5)
    kept = [level for level in schedule if level >= 0.5]
    assert {t for point in high for t in point.t.tolist()} == set(kept)
    assert len(high) == len(kept) < 5
    pair = points(batch, 2, group_sources(batch))[0]
    eps = pair.target + pair.x0
    assert torch.equal(pair.t[0], pair.t[3])
    torch.testing.assert_close(eps[0], eps[3])
    assert not torch.allclose(eps[3], eps[4])


def test_nft_is_the_official_loss(model: FlowModel, old: Ema) -> None:
    """Written down from the loop of NVlabs/DiffusionNFT, scripts/train_nft_sd3.py."""
    beta, advantage_max, kl_beta = 0.7, 2.0, 0.3
    batch = sampled(model, [1.0, -1.0, 0.5, 3.0, -9.0], [True, True, True, False, True])
    kept = batch.select([0, 1, 2, 4])
    at = points(kept, 3, own_sources(kept))
    with torch.no_grad(), old.swap():
        before = [predict(model, kept, point) for point in at]
    with torch.no_grad(), model.reference():
        base = [predict(model, kept, point) for point in at]
    r = ((kept.advantage / advantage_max) / 2 + 0.5).clamp(0, 1)
    assert r.min() == 0  # clipped
    loss = torch.zeros(())
    for point, v_old, v_ref in zip(at, before, base, strict=True):
        v, t = predict(model, kept, point), point.t[:, None, None, None]

        def error(u: Tensor, point: Point = point, t: Tensor = t) -> Tensor:
            difference = point.x_t - t * u - point.x0
            with torch.no_grad():
                weight = difference.abs().mean((1, 2, 3), keepdim=True).clip(min=1e-5)
            return (difference**2 / weight).mean((1, 2, 3))

        positive = error(beta * v + (1 - beta) * v_old)
        negative = error((1 + beta) * v_old - beta * v)
        each = r * positive / beta + (1 - r) * negative / beta
        distance = ((v - v_ref) ** 2).mean((1, 2, 3))
        loss = loss + ((each * advantage_max).mean() + kl_beta * distance.mean()) / 3
    expected = gradients(model, loss)
    context = context_for(model, "nft", old, nft_beta=beta, kl_beta=kl_beta)
    context = replace(context, advantage_max=advantage_max)
    assert_close(update_gradients(context, [batch]), expected)
    # In parts of any size.
    parts = [batch.select(rows) for rows in ([0, 3], [4, 2], [1])]
    assert_close(update_gradients(context, parts), expected)


def test_awm_is_the_clipped_ratio_of_the_matching_error(model: FlowModel, old: Ema) -> None:
    batch = sampled(model, [1.0, -1.0, 0.5, 3.0, -2.0], [True, True, True, False, True])
    kept = batch.select([0, 1, 2, 4])
    at = points(kept, 3, own_sources(kept))
    with torch.no_grad(), old.swap():
        before = [predict(model, kept, point) for point in at]
    with torch.no_grad(), model.reference():
        base = [predict(model, kept, point) for point in at]
    after = [predict(model, kept, point) for point in at]

    def ratio(v: Tensor, v_old: Tensor, point: Point) -> Tensor:
        new, past = (-((u - point.target) ** 2).mean((1, 2, 3)) for u in (v, v_old))
        return torch.exp(new - past)

    ratios = torch.stack([ratio(*at_point) for at_point in zip(after, before, at, strict=True)])
    # So that some of the twelve are clipped and some are not.
    clip = float((ratios.detach() - 1).abs().median())
    loss = torch.zeros(())
    for r, v, v_ref in zip(ratios, after, base, strict=True):
        gain = torch.minimum(kept.advantage * r, kept.advantage * r.clamp(1 - clip, 1 + clip))
        loss = loss + (-gain + 0.3 * ((v - v_ref) ** 2).mean((1, 2, 3))).mean() / 3
    expected = gradients(model, loss)
    context = context_for(
        model,
        "awm",
        old,
        kl_beta=0.3,
        clip_low=clip,
        clip_high=clip,
    )
    assert_close(update_gradients(context, [batch]), expected)


@pytest.mark.parametrize("rows", [[[0, 1, 2, 3, 4, 5, 6, 7]], [[0, 5], [6, 1], [2, 7], [3, 4]]])
def test_dpo_is_the_loss_of_pairs_wherever_their_images_are(
    model: FlowModel, old: Ema, rows: list[list[int]]
) -> None:
    del old  # the policy has moved away from the reference
    advantage = [0.0, 1.0, 0.0, -1.0, -1.0, 0.0, 1.0, 0.0]
    batch = sampled(model, advantage, [value != 0 for value in advantage])
    context = context_for(model, "dpo", Ema(model.trainable_parameters()), dpo_beta=300.0)
    at = points(batch, 3, group_sources(batch))
    with torch.no_grad(), model.reference():
        base = errors(model, batch, at)
    loss = torch.zeros(())
    for error, reference in zip(errors(model, batch, at), base, strict=True):
        excess = error - reference
        z = 150.0 * (excess[[1, 6]] - excess[[3, 4]])
        loss = loss - F.logsigmoid(-z).mean() / 3
    expected = gradients(model, loss)
    assert_close(update_gradients(context, [batch.select(part) for part in rows]), expected)


def test_dpo_says_so_when_a_partner_is_missing(model: FlowModel) -> None:
    batch = sampled(model, [1.0, 0.0, 0.0, -1.0], [True, False, False, True])
    context = context_for(model, "dpo", Ema(model.trainable_parameters()))
    exchange = LOSSES["dpo"].prepare
    assert exchange is not None
    with pytest.raises(ValueError, match="of group 0, 1 of 2 images are in the update"):
        exchange(context, [batch.select([0, 1])], lambda value: [value])
    with pytest.raises(ValueError, match="exchange"):
        list(LOSSES["dpo"].terms(context, batch))
    with pytest.raises(ValueError, match="groups"):
        exchange(context, [replace(batch, groups=None)], lambda value: [value])


@pytest.mark.parametrize("rows", [[[0, 1, 2, 3, 4, 5, 6, 7]], [[0, 5], [6, 1], [2, 7], [3, 4]]])
def test_dgpo_is_the_preference_of_groups_wherever_their_images_are(
    model: FlowModel, old: Ema, rows: list[list[int]]
) -> None:
    """The likelihood that Luo-Yihong/DGPO, scripts/train_sd3_dgpo.py, weighs its images by."""
    del old  # the sampling policy has moved away from the reference, and the trained one from it
    sampling = moved(model, seed=1, size=0.005)
    advantage = [1.5, -1.0, 0.5, -1.0, 2.0, -1.0, 7.0, -1.0]
    batch = sampled(model, advantage, [place != 6 for place in range(8)])
    at = points(batch, 3, group_sources(batch), 0.5)
    with torch.no_grad(), model.reference():
        base = errors(model, batch, at)
    with torch.no_grad(), sampling.swap():
        before = errors(model, batch, at)
    after, up = errors(model, batch, at), batch.advantage > 0
    ratios = [(b - a.detach()).exp() for a, b in zip(after, before, strict=True)]
    clip = float((torch.stack(ratios) - 1).abs().median())
    loss, gone, beta = torch.zeros(()), [], 300.0
    for error, reference, ratio in zip(after, base, ratios, strict=True):
        gone.append((up & (ratio > 1 + clip)) | (~up & (ratio < 1 - clip)))
        excess = torch.where(gone[-1], error.detach(), error) - reference
        for group in ([0, 1, 2, 3], [4, 5, 7]):
            s = beta * (batch.advantage * excess)[group].mean()
            assert 0.05 < torch.sigmoid(s) < 0.95
            loss = loss - F.logsigmoid(-s) * len(group) / beta / 7 / 3
    assert 0 < torch.stack(gone).float().mean() < 1
    expected = gradients(model, loss)
    own = {"dgpo_beta": beta, "clip_low": clip, "clip_high": clip, "lowest_level": 0.5}
    context = context_for(model, "dgpo", sampling, **own)
    parts = [batch.select(part) for part in rows]
    assert_close(update_gradients(context, parts), expected)


@pytest.mark.parametrize("name", ["sft", "rwr"])
def test_matching_is_the_weighted_error(model: FlowModel, old: Ema, name: str) -> None:
    advantage = [0.0, 1.0, 0.0, 1.0] if name == "sft" else [0.5, 2.0, 0.25, 1.25]
    valid = [value != 0 for value in advantage]
    batch = sampled(model, advantage, valid)
    at = points(batch, 3, own_sources(batch))
    weighted = [(batch.advantage * error).sum() for error in errors(model, batch, at)]
    loss = torch.stack(weighted).sum() / (3 * sum(valid))
    found = update_gradients(
        context_for(model, name, old), [batch.select([0, 1]), batch.select([2, 3])]
    )
    assert_close(found, gradients(model, loss))


def flow_sde_step(
    model: FlowModel, batch: TrainBatch, place: int
) -> tuple[torch.distributions.Normal, Tensor, float]:
    """The Gaussian of step ``place`` (arXiv:2505.05470 eq. 9), where it went, and -dt."""
    record = batch.rollout
    sigmas = record.sigmas.tolist()
    step = record.steps[place]
    sigma, dt = sigmas[step], sigmas[step] - sigmas[step + 1]
    x = record.trajectory[:, place]
    v = model.velocity(x, torch.full((len(x),), sigma), batch.cond)
    noise = 0.7 * (sigma / (1 - (sigmas[1] if sigma == 1 else sigma))) ** 0.5
    drift = v + noise**2 / (2 * sigma) * (x + (1 - sigma) * v)
    normal = torch.distributions.Normal(x - dt * drift, noise * dt**0.5)
    return normal, record.trajectory[:, place + 1], dt


@pytest.mark.parametrize("name", ["grpo", "grpo_guard", "flow_dppo"])
def test_the_policy_gradient_is_that_of_the_published_formula(
    model: FlowModel, old: Ema, name: str
) -> None:
    valid = [True, True, True, False, True]
    with old.swap():
        batch = sampled(model, [1.0, -1.0, 0.5, 3.0, -2.0], valid, "flow_sde")
    kept = batch.select([0, 1, 2, 4])
    places = range(len(kept.rollout.steps))
    with torch.no_grad(), old.swap():
        befores = [flow_sde_step(model, kept, place)[0] for place in places]
    with torch.no_grad(), model.reference():
        bases = [flow_sde_step(model, kept, place)[0] for place in places]
    ratios, moves, weights, distances = [], [], [], []
    for place, before, base in zip(places, befores, bases, strict=True):
        new, x_next, dt = flow_sde_step(model, kept, place)
        log_ratio = (new.log_prob(x_next) - before.log_prob(x_next)).mean((1, 2, 3))
        std = new.stddev.mean((1, 2, 3))
        shift = torch.distributions.kl_divergence(new, before).mean((1, 2, 3))
        if name == "grpo_guard":
            log_ratio = (log_ratio + shift) * std
        ratios.append(log_ratio.exp())
        moves.append(shift.detach())
        weights.append(1 / dt if name == "grpo_guard" else 1.0)
        distances.append(torch.distributions.kl_divergence(new, base).mean())
    # So that some are clipped and some are not.
    clip = float((torch.stack(ratios).detach() - 1).abs().median())
    threshold = float(torch.stack(moves).median())
    loss, away = torch.zeros(()), []
    for r, move, weight, distance in zip(ratios, moves, weights, distances, strict=True):
        gain = torch.minimum(kept.advantage * r, kept.advantage * r.clamp(1 - clip, 1 + clip))
        if name == "flow_dppo":
            up, far = kept.advantage > 0, move > threshold
            away.append(far & ((up & (r > 1)) | (~up & (r < 1))))
            gain = kept.advantage * r * ~away[-1]
        loss = loss + (0.1 * distance - weight * gain.mean()) / len(ratios)
    expected = gradients(model, loss)
    if away:
        assert 0 < torch.stack(away).float().mean() < 1
    own = {"dppo_threshold": threshold} if away else {"clip_low": clip, "clip_high": clip}
    context = context_for(model, name, old, kl_beta=0.1, kl_form="mean_dt", **own)
    assert_close(update_gradients(context, [batch]), expected)


@pytest.mark.parametrize("name", list(LOSSES))
def test_a_failed_image_changes_nothing_to_the_bit(model: FlowModel, old: Ema, name: str) -> None:
    advantage = [1.0, -1.0, 0.5, -1.0, 1.0]
    kind = "ode" if name in ON_IMAGES else "flow_sde"
    valid = [True, True, False, False, False] if name == "dpo" else [True, True, False, True, True]
    batch = sampled(model, advantage, valid, kind)
    record, source = batch.rollout, torch.Generator().manual_seed(3)
    other = torch.randn(record.final.shape[1:], generator=source)
    final, trajectory, strange = (
        record.final.clone(),
        record.trajectory.clone(),
        batch.advantage.clone(),
    )
    final[2], trajectory[2], strange[2] = other, other, -4.0
    changed = replace(
        batch, advantage=strange, rollout=replace(record, final=final, trajectory=trajectory)
    )
    context = context_for(model, name, old, kl_beta=0.1, kl_form="velocity")
    first, second = (update_gradients(context, [part]) for part in (batch, changed))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert any(value.any() for value in first.values())


# sft, rwr and dpo are never given a bad image alone.
@pytest.mark.parametrize(
    ("name", "good"),
    [
        *((name, True) for name in [*ON_IMAGES, "grpo"]),
        *((name, False) for name in ("nft", "awm", "grpo")),
    ],
)
def test_a_step_goes_towards_good_images_and_away_from_bad_ones(
    model: FlowModel, name: str, good: bool
) -> None:
    pair = name == "dpo"
    batch = sampled(model, [1.0 if good else -1.0, -1.0] if pair else [1.0 if good else -1.0],
                    kind="ode" if name in ON_IMAGES else "flow_sde")  # fmt: skip
    context = context_for(model, name, Ema(model.trainable_parameters()))

    def badness() -> float:
        with torch.no_grad():
            if name == "grpo":
                terms = list(LOSSES[name].terms(context, batch))
                return sum(float(term.loss) for term in terms) * (1 if good else -1)
            at = points(batch, 3, group_sources(batch) if pair else own_sources(batch))
            found = torch.stack(errors(model, batch, at))
            return float((found[:, 0] - found[:, 1]).mean() if pair else found.mean())

    before, step = badness(), update_gradients(context, [batch])
    start = Ema(model.trainable_parameters())
    size = 1e-2 / max(float(value.abs().max()) for value in step.values())
    with torch.no_grad():
        for key, value in step.items():
            model.trainable_parameters()[key].sub_(size * value)
    after = badness()
    restore_parameters(model.trainable_parameters(), start.values)
    assert (after < before) == good


def test_losses_on_images_say_what_they_lack(model: FlowModel) -> None:
    batch = sampled(model, [1.0])
    for name in ("nft", "awm", "dgpo"):
        context = context_for(model, name, Ema(model.trainable_parameters()))
        prepared = replace(batch, prepared=torch.zeros(3, 1))
        with pytest.raises(ValueError, match="needs the sampling policy"):
            list(LOSSES[name].terms(replace(context, old=None), prepared))
    with pytest.raises(ValueError, match="exchange_groups"):
        list(LOSSES["dgpo"].terms(context, batch))
