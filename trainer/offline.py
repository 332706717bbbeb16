"""Using a run's model outside its loop: draw prompts, evaluate again. The run is not changed."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from trainer import checkpoint as checkpoints
from trainer.config import apply_overrides, parse, resolve_path
from trainer.distributed import World, setup_torch
from trainer.errors import ConfigError
from trainer.eval_plan import spread
from trainer.grids import save_picture
from trainer.held_out import draw_images, evaluate_run, metric_terms
from trainer.models.base import FlowModel
from trainer.rewards import connect
from trainer.run_state import RESOLVED
from trainer.settings import Settings
from trainer.start import load_model
from trainer.tasks import TASKS
from trainer.types import Prompt


def settings_of(run_dir: Path, overrides: Sequence[str] = ()) -> Settings:
    """The settings that a run was made with, with changes.

    Raises:
        ConfigError: no run there, or a wrong override.
    """
    try:
        table: dict[str, Any] = json.loads((run_dir / RESOLVED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{run_dir} holds no run (there is no {RESOLVED})") from None
    return parse(apply_overrides(table["settings"], overrides), source=RESOLVED)


def load_trained(
    run_dir: Path, settings: Settings, *, base: bool, checkpoint: str = checkpoints.LATEST
) -> tuple[FlowModel, int]:
    """The model of a checkpoint with its averaged weights, and the checkpoint's epoch.

    Args:
        run_dir: folder of the run.
        settings: its settings.
        base: load the untrained model instead (epoch 0).
        checkpoint: `latest`, `best` or the name of its folder.

    Raises:
        CheckpointError: there is none of that name that is whole.
    """
    device = setup_torch(
        settings.run.device,
        threads=settings.run.threads,
        deterministic=settings.run.deterministic,
    )
    stored = None if base else checkpoints.find(run_dir, checkpoint)
    model = load_model(settings, device)
    if stored is None:
        return model, 0
    weights = stored.tensors["ema" if settings.ema.enabled else "trained"]
    checkpoints.restore_parameters(model.trainable_parameters(), weights)
    return model, int(stored.progress["epoch"])


def sample_run(
    run_dir: Path,
    prompts: Sequence[str],
    out: Path,
    *,
    images: int,
    seed: int,
    base: bool = False,
    checkpoint: str = checkpoints.LATEST,
) -> Iterator[Path]:
    """Draw prompts and yield the path of each image as it is written."""
    settings = settings_of(run_dir, [f"eval.seed={seed}"])
    model, _ = load_trained(run_dir, settings, base=base, checkpoint=checkpoint)
    jobs = [(number, image) for number in range(len(prompts)) for image in range(images)]
    for start in range(0, len(jobs), settings.eval.batch_size):
        part = jobs[start : start + settings.eval.batch_size]
        chosen = [Prompt(prompts[number]) for number, _ in part]
        pixels = draw_images(model, chosen, part, settings)
        for (number, image), picture in zip(part, pixels, strict=True):
            yield save_picture(out / f"{number:03d}_{image:02d}", picture)


def evaluate_checkpoint(
    run_dir: Path,
    overrides: Sequence[str],
    environment: Mapping[str, str] | None = None,
    *,
    base: bool = False,
    checkpoint: str = checkpoints.LATEST,
) -> Table:
    """Evaluate a checkpoint of a run on its held-out prompts.

    Args:
        run_dir: folder of the run.
        overrides: changes of settings, e.g. of `eval` or `task.test`.
        environment: process environment; REWARD_URL and what else the client reads
            are used.
        base: evaluate the untrained model instead.
        checkpoint: `latest`, `best` or the name of its folder.

    Returns:
        A table of means with 95 % intervals.
    """
    environment = os.environ if environment is None else environment
    url = environment.get("REWARD_URL")
    settings = settings_of(run_dir, [*([f'rewards.url="{url}"'] if url else ()), *overrides])
    prompts = TASKS[settings.task.name](resolve_path(settings.task.test))
    service = connect(settings.rewards, environment)
    try:
        service.check((*metric_terms(settings), *settings.rewards.watch))
        model, epoch = load_trained(run_dir, settings, base=base, checkpoint=checkpoint)
        found = evaluate_run(
            model,
            prompts,
            service,
            settings,
            World(),
            indices=spread(prompts, settings.eval.num_prompts),
            images_per_prompt=settings.eval.images_per_prompt,
            tag="offline",
        )
    finally:
        service.close()
    table = Table(title=f"{run_dir.name}, epoch {epoch}: {found.images} images")
    for name in ("", "mean", "95 % interval", "images"):
        table.add_column(name, justify="right" if name else "left")
    for name, row in {**found.metrics, **found.watch}.items():
        table.add_row(f"[bold]{name}[/]", *_cells(row))
        if name in found.metrics:
            for category, inner in row["categories"].items():
                table.add_row(f"  {category}", *_cells(inner))
    return table


def _cells(row: Mapping[str, Any]) -> tuple[str, str, str]:
    if row["mean"] is None:
        return "-", "-", "0"
    return f"{row['mean']:.3f}", f"{row['low']:.3f} to {row['high']:.3f}", str(row["n"])
