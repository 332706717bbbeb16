"""A preset's arithmetic: what an epoch samples, computes and learns from.

A call of the network on one image is one evaluation; classifier-free guidance doubles the batch and
counts twice.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from trainer.algorithm.losses import LOSSES
from trainer.config import load as config
from trainer.config import preset
from trainer.config.geometry import Geometry, geometry, world_sizes
from trainer.config.load import rollout_config, training_guidance
from trainer.config.settings import GrpoSettings, Settings
from trainer.config.toml import differences, toml
from trainer.models.family import guides

# Families that are told the guidance as a number, so that it costs no second evaluation.
EMBEDDED_GUIDANCE = frozenset({"flux"})

# Images of a group that an update looks at, by what the advantages mean; the others: all.
_USED = {"best": 1, "best_worst": 2}


@dataclass(frozen=True, slots=True)
class Evaluations:
    """Evaluations of the network per sampled image and epoch, on average.

    Attributes:
        rollout: while sampling.
        train: with a backward pass.
        reference: of the untrained model.
        other: without gradients, of the policy or older weights of it.
        steps: sampling steps that are trained, or noise levels.
        doubled: 2 where guidance doubles the training batch, else 1.
        used: share of the images that updates learn from.
    """

    rollout: float
    train: float
    reference: float
    other: float
    steps: int
    doubled: int
    used: float

    @property
    def forward(self) -> float:
        """All evaluations without a backward pass."""
        return self.rollout + self.reference + self.other


def evaluations(settings: Settings) -> Evaluations:
    """Count the evaluations per image of an epoch in which every group has a signal."""
    loss, entry = settings.loss, LOSSES[settings.loss.algorithm]
    config = rollout_config(settings)
    family = settings.model.family
    further = guides(settings.model.true_cfg_scale)
    sampled = _doubled(family, settings.sampling.guidance_scale, further)
    trained = _doubled(family, training_guidance(settings), further)
    used = min(1.0, _USED.get(entry.advantage, 1e9) / settings.batch.images_per_prompt)
    reference = 1.0 if loss.kl_beta > 0 or entry.reference else 0.0
    other = 0.0
    if isinstance(loss, GrpoSettings):
        first, end = config.allowed
        steps = config.window_size or end - first
        other += _renewed(settings)
    else:
        steps = min(loss.noise_levels, settings.sampling.num_steps)
        other += bool(entry.old)
        if entry.prepare is not None:  # one pass of the policy and one of the reference before
            other, reference = other + 1, reference + 1
    each = steps * trained * used
    return Evaluations(
        rollout=settings.sampling.num_steps * sampled,
        train=each,
        reference=reference * each,
        other=other * each,
        steps=steps,
        doubled=trained,
        used=used,
    )


def _renewed(settings: Settings) -> float:
    """Whether old log-probabilities are computed again, because training batches differ."""
    batch = settings.batch
    size = batch.train_batch_size or batch.rollout_batch_size
    guidance = settings.sampling.guidance_scale, training_guidance(settings)
    same = size == batch.rollout_batch_size and guidance[0] == guidance[1]
    return 0.0 if same else 1.0


def _doubled(family: str, guidance_scale: float, further: bool) -> int:
    if family in EMBEDDED_GUIDANCE:
        return 2 if further else 1
    return 2 if guides(guidance_scale) else 1


def explain(name: str, settings: Settings, gpus: int) -> list[str]:
    """Lines for people.

    Args:
        name: name of the preset or file, as given.
        settings: as they would be used.
        gpus: number of processes.

    Raises:
        ConfigError: sizes that do not fit that number of processes.
    """
    plan, passes = geometry(settings, gpus), evaluations(settings)
    return [
        name,
        *(f"  {line}" for line in preset.header(name)),
        "",
        f"One epoch on {_gpus(gpus)}",
        *(f"  {line}" for line in _images(settings, plan, gpus)),
        "",
        "Evaluations of the network per image",
        *(f"  {line}" for line in _passes(settings, plan, passes)),
        "",
        *_sizes(name, settings, gpus),
        *_differences(name, settings),
    ]


def size_note(name: str, settings: Settings, gpus: int) -> str:
    """What to know when a preset runs on another number of GPUs than it was written for.

    Empty where there is nothing to say.
    """
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
    """The preset among `name` and its sizes that suits a number of GPUs best.

    That is the one written for as many, else the largest for fewer whose batch divides; without
    either, `name` itself.
    """
    found = {config.load(other).run.gpus: other for other in [name, *preset.siblings(name)]}
    for size in sorted((size for size in found if size <= gpus), reverse=True):
        if gpus in world_sizes(config.load(found[size])):
            return found[size]
    return name


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


def _passes(settings: Settings, plan: Geometry, passes: Evaluations) -> Iterator[str]:
    steps, guided = settings.sampling.num_steps, passes.rollout > settings.sampling.num_steps
    twice = " x 2 (with and without the prompt, for guidance)"
    yield f"sampling   {passes.rollout:>5g}   {steps} steps{twice if guided else ''}"
    entry = LOSSES[settings.loss.algorithm]
    kind = "stochastic steps" if entry.learns_from == "steps" else "noise levels"
    why = f"{passes.steps} {kind}{' x 2' if passes.doubled == 2 else ''}, forward and backward"
    if passes.used < 1:
        why += f", of {passes.used:.3g} of the images"
    yield f"training   {passes.train:>5.3g}   {why}"
    if passes.reference:
        yield f"reference  {passes.reference:>5.3g}   the untrained model, for comparison"
    else:
        yield "reference      0   no KL to the untrained model (loss.kl_beta is 0)"
    if passes.other:
        yield f"other      {passes.other:>5.3g}   older weights, or probabilities computed again"
    total = plan.images * (passes.forward + passes.train)
    yield f"together   {passes.forward + passes.train:>5.4g}   and {total:,.0f} in an epoch"


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
    yield ""
    yield f"Differs from {shipped[0]}"
    for key, (before, own) in differences(settings, shipped[0]).items():
        yield f"  {key}: {toml(before)} -> {toml(own)}"


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"
