"""Using a model outside the loop: draw prompts, evaluate. What is used is not changed."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.config.load import resolve_path
from trainer.data import TASKS
from trainer.evaluation.held_out import Evaluation, draw_images, evaluate_run
from trainer.evaluation.sampling import spread
from trainer.images import save_picture
from trainer.parallel.world import World, setup_torch
from trainer.rewards import connect
from trainer.tools.artifacts import Choice, Target, find
from trainer.types import Prompt


@dataclass(frozen=True, slots=True)
class Measured:
    """An evaluation and what was evaluated."""

    target: Target
    found: Evaluation
    prompts: int


def sample_target(
    place: str,
    choice: Choice,
    prompts: Sequence[str],
    out: Path,
    *,
    images: int,
    seed: int,
) -> Iterator[Path]:
    """Draw prompts and yield the path of each image (or video) as it is written.

    Raises:
        ConfigError: see `trainer.tools.artifacts.find`.
    """
    target = find(place, replace(choice, overrides=[f"eval.seed={seed}", *choice.overrides]))
    settings = target.settings
    device = setup_torch(settings.run)
    model = target.load(device)
    jobs = [(number, image) for number in range(len(prompts)) for image in range(images)]
    for start in range(0, len(jobs), settings.eval.batch_size):
        part = jobs[start : start + settings.eval.batch_size]
        chosen = [Prompt(prompts[number]) for number, _ in part]
        pixels = draw_images(model, chosen, part, settings)
        for (number, image), picture in zip(part, pixels, strict=True):
            yield save_picture(out / f"{number:03d}_{image:02d}", picture)


def evaluate_target(
    place: str,
    choice: Choice,
    environment: Mapping[str, str] | None = None,
) -> Measured | None:
    """Evaluate a model on held-out prompts, in as many processes as torchrun has started.

    REWARD_URL, torchrun's variables and what else the client reads come from the environment.

    Returns:
        What was found; None on other processes than the first.

    Raises:
        TrainerError: anything that a user can mend.
    """
    environment = os.environ if environment is None else environment
    url = environment.get("REWARD_URL")
    named = [f"rewards.url={url}"] if url else []
    target = find(place, replace(choice, overrides=[*named, *choice.overrides]))
    settings = target.settings
    prompts = TASKS[settings.task.name](resolve_path(settings.task.test), print)
    indices = spread(prompts, settings.eval.num_prompts)
    device = setup_torch(settings.run)
    world = World.join(environment, device.type)
    service = connect(settings.rewards, environment)
    try:
        world.everywhere(lambda: service.check(settings.terms))
        found = evaluate_run(
            target.load(device),
            prompts,
            service,
            settings,
            world,
            indices=indices,
            images_per_prompt=settings.eval.images_per_prompt,
            tag="offline",
        )
    finally:
        service.close()
        world.leave()
    return Measured(target, found, len(indices)) if world.is_main else None
