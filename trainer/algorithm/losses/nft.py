"""DiffusionNFT (arXiv:2509.16117): images draw the velocity towards themselves or push it away.

On finished images (``losses.images``). With the optimality probability
r = clip(A / (2 A_max) + 1/2, 0, 1) the loss draws v towards good images and away from bad ones:

    v+ = beta v + (1 - beta) v_old          v- = (1 + beta) v_old - beta v
    L  = A_max [r L(v+) + (1 - r) L(v-)] / beta,     L(u) = |x_t - t u - x_0|^2 / weight(u)

Images are sampled with the old policy, which is the same in all updates of an epoch; after the last
one it follows the policy: ``old.blend(old_decay(updates))``.
"""

from collections.abc import Iterator

from torch import Tensor

from trainer.algorithm.losses.base import LossContext, LossValue, Term, TrainBatch, masked_mean
from trainer.algorithm.losses.images import Point, Velocities, image_terms, squared_distance
from trainer.config.loss_settings import NftSettings


def old_decay(updates: int) -> float:
    """How much of the old policy is kept after an epoch, by updates so far (official type 1)."""
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
    """DiffusionNFT's loss at the noise levels of every image."""
    beta = context.loss.nft_beta

    def image_loss(batch: TrainBatch, point: Point, found: Velocities, place: int) -> LossValue:
        assert found.old is not None
        optimality = (batch.advantage / (2 * context.advantage_max) + 0.5).clamp(0, 1)
        each = nft_loss(found.new, found.old, point, optimality=optimality, beta=beta)
        change = squared_distance(found.new.detach(), found.old)
        value = context.advantage_max * masked_mean(each, batch.valid)
        return value, {"v_change": masked_mean(change, batch.valid)}

    return image_terms(context, batch, image_loss, needs_old=True)
