"""Losses on single finished images (``losses.images``): NFT, AWM, online SFT and RWR.

DiffusionNFT (arXiv:2509.16117). With the optimality probability r = clip(A / (2 A_max) + 1/2, 0, 1)
the loss draws v towards good images and away from bad ones:

    v+ = beta v + (1 - beta) v_old          v- = (1 + beta) v_old - beta v
    L  = A_max [r L(v+) + (1 - r) L(v-)] / beta,     L(u) = |x_t - t u - x_0|^2 / weight(u)

Images are sampled with the old policy, which is the same in all updates of an epoch; after the last
one it follows the policy: ``old.blend(old_decay(updates))``.

The others weigh the matching error E = |v(x_t) - (eps - x_0)|^2, mean over elements. AWM
(arXiv:2509.25050) takes -E as a log-probability: the rest is GRPO's clipped ratio against the
policy that sampled, at the same (t, eps). SFT and RWR take the mean of A E, with A from
``trainer.algorithm.advantages``: ``best`` gives 1 for the best image of a group, the only one that
is used (sft); ``softmax`` gives exp of the relative advantage, 1 on average in a group (rwr; Peters
& Schaal 2007, for flows arXiv:2501.13918).
"""

from collections.abc import Iterator

from torch import Tensor

from trainer.algorithm.losses.base import LossContext, LossValue, Term, TrainBatch, masked_mean
from trainer.algorithm.losses.grpo import grpo_loss
from trainer.algorithm.losses.images import Point, image_terms, matching_error, squared_distance
from trainer.config.loss_settings import AwmSettings, ImageLossSettings, NftSettings


def old_decay(updates: int) -> float:
    """How much of NFT's old policy is kept after an epoch, by updates so far (official type 1)."""
    return min(0.001 * updates, 0.5)


def _x0_error(v: Tensor, point: Point) -> Tensor:
    """Squared error of the predicted x_0, divided by its own mean size; (B,)."""
    error = point.x_t - point.time * v - point.x0
    weight = error.detach().abs().flatten(1).mean(1).clamp_min(1e-5)
    return (error**2).flatten(1).mean(1) / weight


def nft_loss(v: Tensor, v_old: Tensor, point: Point, *, optimality: Tensor, beta: float) -> Tensor:
    """Per-sample loss, (B,), without the factor A_max; optimality (B,) in [0, 1], beta > 0."""
    positive = _x0_error(beta * v + (1 - beta) * v_old, point)
    negative = _x0_error((1 + beta) * v_old - beta * v, point)
    return (optimality * positive + (1 - optimality) * negative) / beta


def nft(context: LossContext[NftSettings], batch: TrainBatch) -> Iterator[Term]:
    beta = context.loss.nft_beta

    def image_loss(
        batch: TrainBatch, point: Point, v: Tensor, old: Tensor | None, place: int
    ) -> LossValue:
        assert old is not None
        optimality = (batch.advantage / (2 * context.advantage_max) + 0.5).clamp(0, 1)
        each = nft_loss(v, old, point, optimality=optimality, beta=beta)
        change = squared_distance(v.detach(), old)
        value = context.advantage_max * masked_mean(each, batch.valid)
        return value, {"v_change": masked_mean(change, batch.valid)}

    return image_terms(context, batch, image_loss, needs_old=True)


def awm(context: LossContext[AwmSettings], batch: TrainBatch) -> Iterator[Term]:
    clip = {"clip_low": context.loss.clip_low, "clip_high": context.loss.clip_high}

    def image_loss(
        batch: TrainBatch, point: Point, v: Tensor, old: Tensor | None, place: int
    ) -> LossValue:
        assert old is not None
        new, before = (-matching_error(each, point) for each in (v, old))
        return grpo_loss(new, before, batch.advantage, **clip, valid=batch.valid)

    return image_terms(context, batch, image_loss, needs_old=True)


def matching(context: LossContext[ImageLossSettings], batch: TrainBatch) -> Iterator[Term]:
    """The weighted matching error at the noise levels of every image (SFT, RWR)."""

    def image_loss(
        batch: TrainBatch, point: Point, v: Tensor, old: Tensor | None, place: int
    ) -> LossValue:
        error = matching_error(v, point)
        return (
            masked_mean(batch.advantage * error, batch.valid),
            {"matching_error": masked_mean(error.detach(), batch.valid)},
        )

    return image_terms(context, batch, image_loss)
