"""What a run is made from: its prompts, and the base model."""

from collections.abc import Callable, Sequence

import torch

from trainer.config.load import keeps_reference, negative_prompt, resolve_path
from trainer.config.settings import Settings
from trainer.data import TASKS, check_overlap, without
from trainer.data.references import check_alike, check_references
from trainer.errors import CheckpointError, ConfigError, DataError
from trainer.models import lora_file
from trainer.models.base import ModelOptions
from trainer.models.model import FlowModel
from trainer.models.precision import resolve
from trainer.models.registry import MODELS
from trainer.types import Prompt


def load_prompts(
    settings: Settings, say: Callable[[str], None]
) -> tuple[list[Prompt], list[Prompt]]:
    """Read training and held-out prompts; DataError for broken files and forbidden overlaps."""
    task = settings.task
    train, test = (read_prompts(settings, file, say) for file in (task.train, task.test))
    check_alike(train[0], test[0])
    shared = check_overlap(train, test) if task.overlap != "allow" else []
    if not shared:
        return train, test
    text = f"{len(shared)} of {len(test)} test prompts are also trained on, e.g. {shared[0]!r}"
    if task.overlap == "error":
        raise DataError(f"{text}; set task.overlap=drop to leave them out")
    if task.overlap == "drop":
        say(f"{text}: left out of the training")
        return without(train, test), test
    say(f"warning: {text}")
    return train, test


def read_prompts(settings: Settings, file: str, say: Callable[[str], None]) -> list[Prompt]:
    """Read a file of prompts; DataError if malformed, or with what the model cannot take."""
    prompts = TASKS[settings.task.name](resolve_path(file), say)
    check_for(prompts, settings, say)
    return prompts


def check_for(prompts: Sequence[Prompt], settings: Settings, say: Callable[[str], None]) -> None:
    """Check that the model can take what prompts have; see `check_references`.

    Raises:
        DataError: pictures, or a negative prompt, that the family does not take.
    """
    height, width, _ = settings.sampling.size
    family = settings.model.family
    entry = MODELS[family]
    negative = [settings.sampling.negative_prompt, *(prompt.negative for prompt in prompts)]
    if not entry.negative and (texts := [text for text in negative if text]):
        raise DataError(
            f"the pipeline of model.family={family} takes no negative prompt, but there is "
            f'{texts[0]!r}: leave sampling.negative_prompt and "negative" of rows empty'
        )
    if warning := check_references(prompts, family, entry.references, (width, height)):
        say(warning)


def load_model(settings: Settings, device: torch.device, *, parked: bool = False) -> FlowModel:
    """Load the base model, ready to be trained; `parked` leaves its networks on the CPU for now.

    Raises:
        ConfigError: there is no such model, or it cannot make images of this size.
    """
    chosen = settings.model
    place = resolve_path(chosen.path)
    start = starting_lora(settings)
    height, width, frames = settings.sampling.size
    options = ModelOptions(
        **chosen.model_dump(),
        device=str(device),
        compute_dtype=resolve(chosen.dtype, device),
        reference_size=(width, height),
        num_frames=frames,
        keep_reference=keeps_reference(settings),
        seed=settings.run.seed,
        parked=parked,
    )
    try:
        model = MODELS[chosen.family](place if place.exists() else chosen.path, options)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(f"model.path={chosen.path}: {first}") from error
    try:
        model.latent_shape(*settings.sampling.size)
        if start is not None:
            parameters = model.trainable_parameters()
            lora_file.start_from(start, parameters, chosen.lora_rank, chosen.lora_alpha)
    except ValueError as error:
        raise ConfigError(f"sampling: {error}") from error
    except CheckpointError as error:
        raise ConfigError(f"model.lora_path={chosen.lora_path}: {error}") from None
    return model


def starting_lora(settings: Settings) -> lora_file.LoraFile | None:
    """The LoRA at `model.lora_path`; ConfigError if there is none, or all weights are trained."""
    chosen = settings.model
    if not chosen.lora_path:
        return None
    if chosen.finetune != "lora":
        raise ConfigError(
            "model.lora_path is where adapters begin; with model.finetune=full merge the LoRA into "
            "the pipeline and name that as model.path"
        )
    try:
        return lora_file.read(resolve_path(chosen.lora_path))
    except CheckpointError as error:
        raise ConfigError(f"model.lora_path: {error}") from None


def encode_all(
    model: FlowModel, prompts: Sequence[Prompt], settings: Settings, say: Callable[[str], None]
) -> None:
    """Encode all prompts, so that the encoders can leave; they stay if memory is too small."""
    negative = negative_prompt(settings)
    texts = [prompt.text for prompt in prompts]
    texts += [text for prompt in prompts if (text := prompt.negative or negative)]
    if cut := model.cut_prompts(list(dict.fromkeys(texts))):
        say(
            f"warning: {len(cut)} prompts are longer than the text encoders read "
            f"(model.max_sequence_length={settings.model.max_sequence_length}); their ends change "
            f"nothing, e.g. {cut[0]!r:.200}"
        )
    if settings.model.keep_encoders:
        return
    if not model.fill_cache(prompts, negative):
        say(
            f"the text encoders stay in memory: {len(prompts):,} encoded prompts need more than "
            f"model.prompt_cache_gb={settings.model.prompt_cache_gb:g}"
        )
        return
    model.drop_encoders()
