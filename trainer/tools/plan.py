"""What is known of a run before it loads anything: its arithmetic, and what would stop it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.config import load as config
from trainer.config import preset
from trainer.config.geometry import Geometry, geometry, world_sizes
from trainer.config.load import keeps_reference, resolve_path
from trainer.config.settings import Settings
from trainer.config.toml import differences, toml
from trainer.data import category_probabilities
from trainer.errors import ConfigError, ServiceError, TrainerError
from trainer.models.loading import in_cache, looks_like_path, network_parameters
from trainer.rewards import connect
from trainer.run import checkpoint as checkpoints
from trainer.run.inputs import load_prompts, starting_lora
from trainer.run.progress import finished
from trainer.run.trial import trial
from trainer.types import Prompt

_PATIENCE_S = 2.0
_GB = 1e9


def explain(name: str, settings: Settings, gpus: int) -> list[str]:
    """Lines for people.

    Raises:
        ConfigError: sizes that do not fit that number of processes.
    """
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


def fitting(name: str, gpus: int) -> tuple[str, int]:
    """The most of so many GPUs that the batch of `name`, or of one of its sizes, divides by.

    Returns:
        The preset, see `for_gpus`, and how many GPUs it can use.
    """
    for count in range(gpus, 1, -1):
        chosen = for_gpus(name, count)
        if count in world_sizes(config.load(chosen)):
            return chosen, count
    return for_gpus(name, 1), 1


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
    yield ""
    yield f"Differs from {shipped[0]}"
    for key, (before, own) in differences(settings, shipped[0]).items():
        yield f"  {key}: {toml(before)} -> {toml(own)}"


def _gpus(count: int) -> str:
    return "1 GPU" if count == 1 else f"{count} GPUs"


@dataclass(frozen=True, slots=True)
class Found:
    """What a check found: `ok` unless there is something to note; `stops` if a run would end."""

    what: str
    text: str
    ok: bool = True
    stops: bool = False


def checks(
    settings: Settings, environment: Mapping[str, str], *, gpus: int, gpu_gb: float
) -> Iterator[Found]:
    """Look at prompts, model, service and folder.

    `gpu_gb` is the memory of one GPU in 10^9 bytes; 0: that of this machine's, if it has one.
    """
    found, prompts = _prompts(settings)
    yield found
    yield from _model(settings, gpus, gpu_gb)
    yield _service(settings, environment, prompts)
    yield _folder(settings)


def _prompts(settings: Settings) -> tuple[Found, list[Prompt]]:
    said: list[str] = []
    try:
        train, test = load_prompts(settings, said.append)
        category_probabilities(train, settings.task.category_weights)
    except TrainerError as error:
        return Found("prompts", str(error), stops=True), []
    rows = sum(prompt.rows for prompt in train)
    text = f"{len(train):,} to train on ({rows:,} rows), {len(test):,} held out"
    return Found("prompts", "; ".join([text, *said])), [*train, *test]


def _model(settings: Settings, gpus: int, gpu_gb: float) -> Iterator[Found]:
    name = settings.model.path
    folder = resolve_path(name)
    if not folder.is_dir() and (folder.exists() or looks_like_path(name)):
        yield Found("model", f"model.path={name} is no folder of a pipeline", stops=True)
        return
    if not folder.is_dir():
        cached = in_cache(name)
        if cached is None:
            yield Found(
                "model",
                f"{name} is not on this machine: accept its licence on the hub if it has one, run "
                f"`hf auth login`, then `hf download {name}`, or set model.path to a folder",
                ok=False,
            )
            return
        folder = cached
    try:
        count = network_parameters(folder, both=settings.model.experts == "both")
    except ValueError as error:
        yield Found("model", str(error), stops=True)
        return
    try:
        starting_lora(settings)
    except ConfigError as error:
        yield Found("model", str(error), stops=True)
        return
    yield Found("model", f"{name}: {count / 1e9:.3g} billion parameters in the network")
    available_gb = gpu_gb or _gpu_gb()
    if not available_gb:
        return
    least_gb = least_bytes(settings, count, gpus) / _GB
    text = f"weights, gradients and moments alone take {least_gb:.3g} GB of {available_gb:.3g} GB"
    if least_gb > available_gb:
        yield Found("memory", f"{text} per GPU", stops=True)
    else:
        yield Found("memory", f"{text} per GPU; activations come on top")


def least_bytes(settings: Settings, parameters: int, gpus: int) -> float:
    """Bytes per GPU that hold the weights and, where all are trained, what trains them.

    A lower bound: adapters, activations, decoding and text encoders come on top.
    """
    model, run = settings.model, settings.run
    full = model.finetune == "full"
    copies = 1.0
    if full:
        copies += keeps_reference(settings)
        if not model.trained_layers:  # gradients, two moments, the average
            copies += 3 + settings.ema.enabled
    size = 4 if full or model.dtype == "float32" else 2
    sharded = run.parallel == "fsdp" or (run.parallel == "auto" and full)
    return parameters * size * copies / (gpus if sharded else 1)


def _gpu_gb() -> float:
    if not torch.cuda.is_available():
        return 0.0
    return torch.cuda.get_device_properties(0).total_memory / _GB


def _service(
    settings: Settings, environment: Mapping[str, str], prompts: Sequence[Prompt]
) -> Found:
    quick = settings.rewards.model_copy(update={"patience_s": _PATIENCE_S})
    try:
        service = connect(quick, environment)
        try:
            service.check(settings.terms)
            if prompts:
                trial(service, settings, prompts)
        finally:
            service.close()
    except ServiceError as error:
        return Found("rewards", str(error), ok=False)
    except ConfigError as error:
        return Found("rewards", str(error), stops=True)
    return Found("rewards", f"{settings.rewards.url} is ready with every scorer")


def _folder(settings: Settings) -> Found:
    run_dir = Path(settings.run.out_dir)
    result = finished(run_dir, settings)
    if result is not None:
        return Found("folder", f"{run_dir} holds a finished run ({result['reason']})")
    found = checkpoints.present(run_dir)
    if found:
        return Found("folder", f"{run_dir} would be resumed from {found[0].name}")
    return Found("folder", f"{run_dir} is new")
