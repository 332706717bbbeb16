"""DiffusionNFT (arXiv:2509.16117): learning from finished images only.

No log-probabilities and no stochastic steps: a rollout with ``kind="ode"`` is enough. The finished
latents x_0 are noised again, x_t = (1 - t) x_0 + t eps, and with the optimality probability
r = clip(A / (2 A_max) + 1/2, 0, 1) the loss draws v towards good images and away from bad ones:

    v+ = beta v + (1 - beta) v_old          v- = (1 + beta) v_old - beta v
    L  = A_max [r L(v+) + (1 - r) L(v-)] / beta,     L(u) = |x_t - t u - x_0|^2 / weight(u)

Images have to be sampled with the old policy (``with old.swap():`` around the rollout); after
every update ``old.blend(old_decay(step))`` follows.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from trainer.losses.base import LossContext, Term, TrainBatch
from trainer.losses.grpo import masked_mean
from trainer.noise import draw


def old_decay(step: int, flat: int = 0, rate: float = 0.001, maximum: float = 0.5) -> float:
    """How much of the old policy is kept after update ``step`` (official type 1 by default)."""
    return min(max(step - flat, 0) * rate, maximum)


def _x0_error(x_t: Tensor, t: Tensor, v: Tensor, x0: Tensor) -> Tensor:
    """Squared error of the predicted x_0, divided by its own mean size; (B,)."""
    error = x_t - t * v - x0
    weight = error.detach().abs().flatten(1).mean(1).clamp_min(1e-5)
    return (error**2).flatten(1).mean(1) / weight


def nft_loss(
    v: Tensor,
    v_old: Tensor,
    x_t: Tensor,
    t: Tensor,
    *,
    x0: Tensor,
    optimality: Tensor,
    beta: float,
) -> Tensor:
    """Per-sample loss, (B,), without the factor A_max.

    Args:
        v: Velocity of the policy, (B, ...), with gradient.
        v_old: Velocity of the policy that sampled.
        x_t: Noised latents.
        t: (B,) noise levels.
        x0: Finished latents.
        optimality: (B,) in [0, 1].
        beta: Guidance strength, > 0.
    """
    time = t.reshape(-1, *(1,) * (x0.ndim - 1))
    positive = _x0_error(x_t, time, beta * v + (1 - beta) * v_old, x0)
    negative = _x0_error(x_t, time, (1 + beta) * v_old - beta * v, x0)
    return (optimality * positive + (1 - optimality) * negative) / beta


def nft(context: LossContext, batch: TrainBatch) -> Iterator[Term]:
    """DiffusionNFT's loss at ``nft_times`` noise levels per image, drawn from the schedule.

    Raises:
        ValueError: No old policy or no generator in the context.
    """
    if context.old is None or context.generator is None:
        raise ValueError("nft needs the old policy and a generator in its context")
    loss, model, record = context.loss, context.model, batch.rollout
    source, x0 = context.generator, record.final
    schedule = record.sigmas[:-1]
    times = min(loss.nft_times, len(schedule))
    order = torch.stack([torch.randperm(len(schedule), generator=source) for _ in range(len(x0))])
    optimality = (batch.advantage / (2 * loss.advantage_max) + 0.5).clamp(0, 1)
    guidance = context.rollout.guidance_scale
    noised = []
    # Before any graph exists: swapping weights under a graph would make it invalid.
    with torch.no_grad(), context.old.swap():
        for place in range(times):
            t = schedule[order[:, place]].to(x0.device)
            noise = draw([source] * len(x0), tuple(x0.shape[1:]), x0.device)
            time = t.reshape(-1, *(1,) * (x0.ndim - 1))
            x_t = (1 - time) * x0 + time * noise
            v_old = model.velocity(x_t, t, batch.cond, guidance, batch.negative)
            noised.append((t, x_t, v_old))
    for t, x_t, v_old in noised:
        v_ref = None
        if loss.kl_beta > 0:
            with torch.no_grad(), model.reference():
                v_ref = model.velocity(x_t, t, batch.cond, guidance, batch.negative)
        v = model.velocity(x_t, t, batch.cond, guidance, batch.negative)
        each = nft_loss(v, v_old, x_t, t, x0=x0, optimality=optimality, beta=loss.nft_beta)
        value = loss.advantage_max * masked_mean(each, batch.valid)
        metrics = {
            "policy_loss": value.detach(),
            "v_change": masked_mean(((v - v_old).detach() ** 2).flatten(1).mean(1), batch.valid),
        }
        if v_ref is not None:
            penalty = masked_mean(((v - v_ref) ** 2).flatten(1).mean(1), batch.valid)
            metrics["kl"] = penalty.detach()
            value = value + loss.kl_beta * penalty
        yield Term(value / times, metrics)
