"""Using a model outside the loop: draw prompts, evaluate, export. What is used is not changed."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from trainer.config.load import resolve_path
from trainer.config.settings import RunSettings, Settings
from trainer.data.references import read_references
from trainer.errors import ConfigError
from trainer.evaluation.held_out import Evaluation, draw_images, evaluate_run
from trainer.evaluation.sampling import spread
from trainer.images import save_picture
from trainer.models import lora_file
from trainer.parallel.world import World, setup_torch
from trainer.report.card import write_card
from trainer.report.snippets import absent_components
from trainer.rewards import connect
from trainer.run.checkpoint import LATEST
from trainer.run.inputs import check_for, read_prompts
from trainer.terminal import Show, silent
from trainer.tools.artifacts import Choice, Target, find
from trainer.types import Prompt


@dataclass(frozen=True, slots=True)
class Measured:
    target: Target
    found: Evaluation
    prompts: int


def sample_target(
    place: str,
    choice: Choice,
    prompts: Sequence[str],
    out: Path,
    references: Sequence[Path] = (),
    *,
    images: int,
    seed: int,
    show: Show = silent,
) -> Iterator[Path]:
    """Draw prompts about references, and yield the path of each image or video when written."""
    target = find(place, replace(choice, overrides=[f"eval.seed={seed}", *choice.overrides]))
    settings = target.settings
    device = setup_torch(settings.run)
    found = read_references([(path, "--reference") for path in references])
    pictures = tuple(found[path] for path in references)
    asked = [Prompt(text, references=pictures) for text in prompts]
    check_for(asked, settings, print)
    show(f"loading {place}", 0, 0)
    model = target.load(device)
    jobs = [(number, image) for number in range(len(prompts)) for image in range(images)]
    for start in range(0, len(jobs), settings.eval.batch_size):
        show("sampling", start, len(jobs))
        part = jobs[start : start + settings.eval.batch_size]
        chosen = [asked[number] for number, _ in part]
        pixels = draw_images(model, chosen, part, settings)
        for (number, image), picture in zip(part, pixels, strict=True):
            yield save_picture(out / f"{number:03d}_{image:02d}", picture)


def evaluate_target(
    place: str,
    choice: Choice,
    environment: Mapping[str, str] | None = None,
    show: Show = silent,
) -> Measured | None:
    """Evaluate a model on held-out prompts; None on other processes than the first.

    REWARD_URL, torchrun's variables and what else the client reads come from the environment.

    Raises:
        TrainerError: anything that a user can mend.
    """
    environment = os.environ if environment is None else environment
    url = environment.get("REWARD_URL")
    named = [f"rewards.url={url}"] if url else []
    target = find(place, replace(choice, overrides=[*named, *choice.overrides]))
    settings = target.settings
    prompts = read_prompts(settings, settings.task.test, print)
    indices = spread(prompts, settings.eval.num_prompts)
    device = setup_torch(settings.run)
    world = World.join(environment, device.type)
    service = connect(settings.rewards, environment)
    show = show if world.is_main else silent
    try:
        world.everywhere(lambda: service.check(settings.terms))
        show(f"loading {place}", 0, 0)
        found = evaluate_run(
            target.load(device),
            prompts,
            service,
            settings,
            world,
            indices=indices,
            images_per_prompt=settings.eval.images_per_prompt,
            tag="offline",
            show=lambda done, total: show("evaluating", done, total),
        )
    finally:
        service.close()
        world.leave()
    return Measured(target, found, len(indices)) if world.is_main else None


def export_run(run_dir: Path, out: Path, *, checkpoint: str = LATEST, whole: bool = False) -> Path:
    """Write a run's weights as diffusers loads them, and the model card.

    `out` must be empty or not exist. With `whole` it gets the complete pipeline instead of what was
    trained; a LoRA is merged into it.

    Raises:
        ConfigError: no run, or `out` holds something.
        CheckpointError: no such checkpoint, or a damaged one.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: there is something already; name a new folder")
    target = find(str(run_dir), Choice(checkpoint=checkpoint))
    device = setup_torch(RunSettings(device="cpu", threads=target.settings.run.threads))
    model = target.load(device)
    model.save(out, model.trainable_parameters())
    write_card(run_dir, out, epoch=target.epoch, whole=whole)
    if whole:
        complete(out, target.settings)
    return out


def complete(folder: Path, settings: Settings) -> None:
    """Put the base pipeline around the weights that are in a folder."""
    from diffusers import AutoModel, DiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]

    networks: dict[str, Any] = {
        path.parent.name: AutoModel.from_pretrained(str(path.parent))
        for path in sorted(folder.glob("*/config.json"))
    }
    place = resolve_path(settings.model.path)
    pipe: Any = DiffusionPipeline.from_pretrained(
        str(place if place.exists() else settings.model.path),
        torch_dtype=torch.float32,
        **{**dict.fromkeys(absent_components(settings)), **networks},
    )
    # The generic class ignores components that are optional in the pipeline's own, as Wan's
    # second expert is.
    pipe.register_modules(**networks)
    adapters = {} if networks else lora_file.find(folder)
    for name, file in adapters.items():
        second = {"load_into_transformer_2": True} if name == lora_file.SECOND else {}
        pipe.load_lora_weights(str(file.parent), **second)
    if adapters:
        pipe.fuse_lora(components=list(adapters))
        pipe.unload_lora_weights()
    for file in adapters.values():
        file.unlink()
    for name in networks:
        shutil.rmtree(folder / name)
    pipe.save_pretrained(folder)
