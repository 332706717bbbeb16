"""The batch arithmetic of one epoch: derived, checked, and explained where it does not add up."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.config.settings import BatchSettings, Settings
from trainer.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Geometry:
    """The batch arithmetic of one epoch, for one of `world_size` processes."""

    images: int  # of all processes
    images_per_rank: int  # of this process
    rollout_batches: int  # sampling batches of this process
    micro_batch_size: int  # images of one training forward
    micro_per_update: int  # training micro-batches between two updates


def geometry(settings: Settings, world_size: int = 1) -> Geometry:
    """Derive the batch arithmetic; ConfigError says which sizes do not divide, and what fits."""
    batch = settings.batch
    images = batch.prompts_per_epoch * batch.images_per_prompt
    updates = batch.optimizer_steps_per_epoch
    size = batch.rollout_batch_size
    product = f"{batch.prompts_per_epoch} prompts x {batch.images_per_prompt} images = {images}"
    if images % updates:
        raise ConfigError(
            f"batch.optimizer_steps_per_epoch={updates} does not divide the images of an epoch "
            f"({product}); use {_nearest(_divisors(images), updates)}"
        )
    if images // updates % world_size:
        raise ConfigError(
            f"batch: {product}, in {_updates(updates)}, do not divide by {world_size} processes; "
            f"{_other_sizes(batch, world_size)}"
        )
    share = images // updates // world_size
    if share % size:
        raise ConfigError(
            f"batch.rollout_batch_size={size} does not divide the {share} images per process and "
            f"update ({product}, {world_size} process{'es' if world_size > 1 else ''}, "
            f"{_updates(updates)}); use {_nearest(_divisors(share), size)}"
        )
    micro = batch.train_batch_size or size
    if size % micro:
        raise ConfigError(
            f"batch.train_batch_size={micro} does not divide batch.rollout_batch_size={size}; use "
            f"{_nearest(_divisors(size), micro)}"
        )
    if settings.sampling.window_per == "prompt" and batch.images_per_prompt % size:
        raise ConfigError(
            f"sampling.window_per=prompt needs sampling batches of one prompt: "
            f"batch.rollout_batch_size={size} does not divide batch.images_per_prompt="
            f"{batch.images_per_prompt}; use {_nearest(_divisors(batch.images_per_prompt), size)}"
        )
    per_rank = images // world_size
    return Geometry(
        images=images,
        images_per_rank=per_rank,
        rollout_batches=per_rank // size,
        micro_batch_size=micro,
        micro_per_update=share // micro,
    )


def world_sizes(settings: Settings) -> list[int]:
    """The numbers of processes that these sizes can be shared out over, ascending."""
    batch = settings.batch
    images = batch.prompts_per_epoch * batch.images_per_prompt
    batches, rest = divmod(images, batch.optimizer_steps_per_epoch * batch.rollout_batch_size)
    return [] if rest else _divisors(batches)


def _other_sizes(batch: BatchSettings, world_size: int) -> str:
    """What would fit: other numbers of processes, or of prompts."""
    images = batch.prompts_per_epoch * batch.images_per_prompt
    share = images // batch.optimizer_steps_per_epoch
    batches, rest = divmod(share, batch.rollout_batch_size)
    counts = _divisors(share if rest else batches)
    unit = world_size * batch.optimizer_steps_per_epoch * batch.rollout_batch_size
    fits = [
        count
        for count in range(1, 2 * batch.prompts_per_epoch + unit)
        if count * batch.images_per_prompt % unit == 0
    ]
    return (
        f"use {_nearest(counts, world_size)} processes, or batch.prompts_per_epoch = "
        f"{_nearest(fits, batch.prompts_per_epoch)}"
    )


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _nearest(fits: Sequence[int], wanted: int) -> str:
    """Up to three of `fits` (ascending), those nearest to `wanted`, in words."""
    near = sorted(sorted(fits, key=lambda n: abs(n - wanted))[:3])
    *first, last = map(str, near)
    return f"{', '.join(first)} or {last}" if first else last


def _updates(count: int) -> str:
    return "1 update" if count == 1 else f"{count} updates"
