"""What the losses on finished images share: noising the images, and the forward passes.

The finished latents x_0 of a rollout are noised again, x_t = (1 - t) x_0 + t eps, at
``noise_levels`` levels t drawn without repetition from the rollout's schedule; the velocity that
explains x_t is eps - x_0. No log-probabilities and no stochastic steps: a rollout with
``kind="ode"`` is enough. Levels and noise belong to the image (or to its group), so that they are
the same in whatever batch, process or repeated pass they are drawn.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.algorithm.losses.base import LossContext, LossValue, Term, TrainBatch, masked_mean
from trainer.config.loss_settings import ImageLossSettings, LossSettings
from trainer.rollout.noise import draw, generator


@dataclass(frozen=True, slots=True)
class Point:
    """B finished images, each noised to one level."""

    t: Tensor  # (B,) noise levels
    x_t: Tensor  # (B, ...) noised latents
    x0: Tensor  # (B, ...) finished latents
    target: Tensor  # (B, ...) eps - x_0, the velocity that explains x_t

    @property
    def time(self) -> Tensor:
        """The noise levels as (B, 1, ...)."""
        return self.t.reshape(-1, *(1,) * (self.x0.ndim - 1))


# Gets velocities (B, ...): the policy's with gradient, and where asked for that of the policy which
# sampled; last comes the number of the point.
ImageLoss = Callable[[TrainBatch, Point, Tensor, Tensor | None, int], LossValue]


def used(batch: TrainBatch) -> TrainBatch:
    """The images that the loss uses; at least one row, so that processes stay in step."""
    rows = batch.valid.nonzero().flatten().tolist() or [0]
    return batch if len(rows) == len(batch.rollout) else batch.select(rows)


def points(
    batch: TrainBatch,
    noise_levels: int,
    sources: Sequence[torch.Generator],
    lowest: float = 0.0,
) -> list[Point]:
    """Noise the B finished images at ``noise_levels`` of the schedule's levels from ``lowest`` up.

    ``sources`` are B generators, one per image; each gives the levels, then the noise.
    """
    x0, schedule = batch.rollout.final, batch.rollout.sigmas[:-1]
    schedule = schedule[schedule >= lowest]
    order = torch.stack([torch.randperm(len(schedule), generator=source) for source in sources])
    out = []
    for place in range(min(noise_levels, len(schedule))):
        t = schedule[order[:, place]].to(x0.device)
        noise = draw(sources, tuple(x0.shape[1:]), x0.device)
        time = t.reshape(-1, *(1,) * (x0.ndim - 1))
        out.append(Point(t, (1 - time) * x0 + time * noise, x0, noise - x0))
    return out


def own_sources(batch: TrainBatch) -> list[torch.Generator]:
    """Generators that give every image its own levels and noise."""
    return [key.loss() for key in batch.rollout.keys]


def group_sources(batch: TrainBatch) -> list[torch.Generator]:
    """Generators that give the images of a group the same levels and noise."""
    if batch.groups is None:
        raise ValueError("the loss needs the groups of its images")
    return [
        generator("pair", key.seed, key.epoch, group)
        for key, group in zip(batch.rollout.keys, batch.groups.tolist(), strict=True)
    ]


def velocity(context: LossContext[LossSettings], batch: TrainBatch, point: Point) -> Tensor:
    """The model's prediction at a point, with the guidance of training."""
    scale = context.rollout.guidance_scale
    return context.model.velocity(point.x_t, point.t, batch.cond, scale, batch.negative)


def squared_distance(v: Tensor, other: Tensor) -> Tensor:
    """Squared difference of two velocities, averaged over elements; (B,)."""
    return ((v - other) ** 2).flatten(1).mean(1)


def matching_error(v: Tensor, point: Point) -> Tensor:
    """Squared error of a velocity against eps - x_0, averaged over elements; (B,)."""
    return squared_distance(v, point.target)


@torch.no_grad()
def reference_velocity(
    context: LossContext[LossSettings], batch: TrainBatch, point: Point
) -> Tensor:
    with context.model.reference():
        return velocity(context, batch, point)


@torch.no_grad()
def old_velocities(
    context: LossContext[LossSettings], batch: TrainBatch, found: Sequence[Point]
) -> Sequence[Tensor | None]:
    """The predictions of the policy that sampled at all points; None where no loss reads them."""
    if context.old is None:
        return [None] * len(found)
    with context.old.swap():
        return [velocity(context, batch, point) for point in found]


def image_terms(
    context: LossContext[ImageLossSettings],
    batch: TrainBatch,
    image_loss: ImageLoss,
    *,
    sources: Callable[[TrainBatch], list[torch.Generator]] = own_sources,
    needs_old: bool = False,
) -> Iterator[Term]:
    """Per noise level: a loss plus the weighted distance to the reference.

    Images that are not valid are left out before anything is computed. ``sources`` give levels and
    noise.

    Raises:
        ValueError: The loss reads the velocity of the policy that sampled (``needs_old``), which
            the context does not have.
    """
    if needs_old and context.old is None:
        raise ValueError("the loss needs the sampling policy in its context")
    loss, batch = context.loss, used(batch)
    found = points(batch, loss.noise_levels, sources(batch), loss.lowest_level)
    # Before any graph exists: swapping weights under a graph would make it invalid.
    old = old_velocities(context, batch, found)
    for place, point in enumerate(found):
        reference = reference_velocity(context, batch, point) if loss.kl_beta > 0 else None
        v = velocity(context, batch, point)
        value, metrics = image_loss(batch, point, v, old[place], place)
        metrics["policy_loss"] = metrics.get("policy_loss", value.detach())
        if reference is not None:
            penalty = masked_mean(squared_distance(v, reference), batch.valid)
            metrics["kl"] = penalty.detach()
            value = value + loss.kl_beta * penalty
        yield Term(value / len(found), metrics)
