"""Drawing what a suite lacks, each process its share, a picture at a time into its place."""

import os
from collections.abc import Sequence
from typing import Any

from PIL import Image as PilImage

from trainer.config.settings import Settings
from trainer.evaluation.held_out import draw
from trainer.evaluation.sampling import plan
from trainer.models.model import FlowModel
from trainer.parallel.world import World
from trainer.run.storage import storing
from trainer.suites.cases import Case
from trainer.suites.pictures import Job, Pictures
from trainer.terminal import Show


def draw_missing(
    model: FlowModel,
    pictures: Pictures,
    cases: Sequence[Case],
    prompts: Sequence[int],
    settings: Settings,
    world: World,
    show: Show,
) -> None:
    """Draw what is missing of these prompts, each process its share.

    Raises:
        StorageError: a picture cannot be written.
    """
    size = settings.eval.batch_size
    batches = plan(prompts, pictures.per_prompt, size, rank=world.rank, size=world.size)
    for number, batch in enumerate(batches):
        total = len(prompts) * pictures.per_prompt
        show("drawing", number * total // len(batches), total)
        decoded = draw(model, [cases[p].prompt for p, _ in batch.jobs], batch.jobs, settings)
        for job, pixels, finite in zip(batch.jobs, decoded.uint8, decoded.finite, strict=True):
            if not batch.kept or pictures.path(job).is_file():
                continue
            with storing(str(pictures.path(job))):
                _write(pictures, job, pixels if finite else None)


def _write(pictures: Pictures, job: Job, pixels: Any) -> None:
    """Put a picture, or the mark of one that has none, in its place at once."""
    place = pictures.path(job)
    place.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pictures.broken(job).touch()
        return
    part = place.with_name(f".{os.getpid()}.{place.name}")
    PilImage.fromarray(pixels).save(part, format="PNG")
    part.replace(place)
