"""Flow matching on the policy's own images, weighted: online SFT and reward-weighted regression.

On finished images (``losses.images``): L = mean of A |v(x_t) - (eps - x_0)|^2. A comes
from ``trainer.algorithm.advantages``: with ``best`` it is 1 for the best image of a group, the only
one that is used (sft); with ``softmax`` it is exp of the relative advantage, 1 on average in a
group (rwr; Peters & Schaal 2007, for flows arXiv:2501.13918).
"""

from collections.abc import Iterator

from trainer.algorithm.losses.base import LossContext, LossValue, Term, TrainBatch, masked_mean
from trainer.algorithm.losses.images import Point, Velocities, image_terms, matching_error
from trainer.config.loss_settings import ImageLossSettings


def matching(context: LossContext[ImageLossSettings], batch: TrainBatch) -> Iterator[Term]:
    """The weighted matching error at the noise levels of every image."""

    def image_loss(batch: TrainBatch, point: Point, found: Velocities, place: int) -> LossValue:
        error = matching_error(found.new, point)
        return (
            masked_mean(batch.advantage * error, batch.valid),
            {"matching_error": masked_mean(error.detach(), batch.valid)},
        )

    return image_terms(context, batch, image_loss)
