"""The arithmetic of a run in words, and the preset that suits a number of GPUs."""

from collections.abc import Iterator, Mapping

from trainer.config import load as config
from trainer.config import preset
from trainer.config.geometry import Geometry, geometry, world_sizes
from trainer.config.settings import Settings
from trainer.config.toml import differences, toml


def explain(name: str, settings: Settings, gpus: int) -> list[str]:
    """What a preset does in an epoch, line by line; ConfigError if sizes do not fit `gpus`."""
    plan = geometry(settings, gpus)
    return [
        name,
        *(f"  {line}" for line in preset.header(name)),
        "",
        f"One epoch on {_gpus(gpus)}",
        *(f"  {line}" for line in _images(settings, plan, gpus)),
        "",
        *_sizes(name, settings, gpus),
        *_differences(name, settings),
    ]


def size_note(name: str, settings: Settings, gpus: int) -> str:
    """What changes on another number of GPUs than a preset was written for; else empty."""
    meant = settings.run.gpus
    if meant in (0, gpus):
        return ""
    plan = geometry(settings, gpus)
    other = geometry(settings, meant) if meant in world_sizes(settings) else None
    text = (
        f"{name} is written for {_gpus(meant)} and runs on {gpus}: the same {plan.images} images "
        f"and {settings.batch.optimizer_steps_per_epoch} updates per epoch"
    )
    if other is not None:
        ratio = plan.rollout_batches / other.rollout_batches
        speed = f"{ratio:g} times as long" if ratio > 1 else f"{1 / ratio:g} times as fast"
        text += (
            f", with {plan.rollout_batches} sampling batches per GPU instead of "
            f"{other.rollout_batches}: {speed}"
        )
    fitting = [s for s in preset.siblings(name) if config.load(s).run.gpus == gpus]
    hint = f". {fitting[0]} is made for {_gpus(gpus)}" if fitting else ""
    return f"{text}{hint}"


def for_gpus(name: str, gpus: int) -> str:
    """The size of the preset `name` for so many GPUs, else the largest for fewer that divides.

    Without either, `name` itself.
    """
    return _largest(_every_size(name), gpus) or name


def fitting(name: str, gpus: int) -> tuple[str, int]:
    """The preset (see `for_gpus`) that uses most of so many GPUs, and how many it uses."""
    sizes = _every_size(name)
    for count in range(gpus, 1, -1):
        chosen = _largest(sizes, count) or name
        if count in world_sizes(sizes[chosen]):
            return chosen, count
    return _largest(sizes, 1) or name, 1


def _every_size(name: str) -> dict[str, Settings]:
    return {other: config.load(other) for other in (name, *preset.siblings(name))}


def _largest(sizes: Mapping[str, Settings], gpus: int) -> str | None:
    """The preset for most GPUs, but not more than these, whose batch divides by these."""
    found = {s.run.gpus: n for n, s in sizes.items() if s.run.gpus <= gpus}
    for size in sorted(found, reverse=True):
        if gpus in world_sizes(sizes[found[size]]):
            return found[size]
    return None


def _images(settings: Settings, plan: Geometry, gpus: int) -> Iterator[str]:
    batch = settings.batch
    updates = batch.optimizer_steps_per_epoch
    per_update = plan.images // updates
    yield (
        f"{batch.prompts_per_epoch} prompts x {batch.images_per_prompt} images = {plan.images} "
        f"images; the {batch.images_per_prompt} images of a prompt are compared with each other"
    )
    yield (
        f"{plan.images_per_rank} images per GPU, sampled and scored in {plan.rollout_batches} "
        f"batches of {batch.rollout_batch_size}"
    )
    yield (
        f"{updates} {'update' if updates == 1 else 'updates'} of the weights, one every "
        f"{per_update} images: {plan.micro_per_update} training batches of "
        f"{plan.micro_batch_size} per GPU, gradients added up"
    )
    if settings.eval.every_epochs:
        total = settings.run.epochs // settings.eval.every_epochs
        yield (
            f"{settings.run.epochs} epochs are planned, with an evaluation every "
            f"{settings.eval.every_epochs} ({total} in all)"
        )
    else:
        yield f"at most {settings.run.epochs} epochs"


def _sizes(name: str, settings: Settings, gpus: int) -> Iterator[str]:
    fits = ", ".join(map(str, world_sizes(settings)))
    yield f"Numbers of GPUs that this batch divides by: {fits}"
    if note := size_note(name, settings, gpus):
        yield note
    for other in preset.siblings(name):
        batch, meant = config.load(other).batch, config.load(other).run.gpus
        images = f"{batch.prompts_per_epoch} x {batch.images_per_prompt} images"
        yield f"  {other}: for {_gpus(meant)}, {images}"


def _differences(name: str, settings: Settings) -> Iterator[str]:
    """Every setting that is not that of the preset it extends."""
    shipped = [parent for parent in preset.parents(name) if parent in preset.preset_names()]
    if not shipped:
        return
    found = differences(settings, shipped[0])
    yield ""
    yield f"Differs from {shipped[0]}" if found else f"The same settings as {shipped[0]}"
    for key, (before, own) in found.items():
        yield f"  {key}: {toml(before)} -> {toml(own)}"


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
