"""Held-out evaluation of a run: sample fixed prompts and seeds, score, and summarise.

Every prompt is evaluated exactly once, in the batches of `trainer.evaluation.sampling`;
`trainer.evaluation.statistics` makes numbers of the scores.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from torch import Tensor

from reward_client import Priority
from trainer.config.load import keeps_reference, negative_prompt, rollout_config
from trainer.config.settings import RewardTerm, Settings
from trainer.errors import ModelError, Stopped, TrainerError
from trainer.evaluation.sampling import EVAL_EPOCH, Batch, Job, plan, sample_and_compare
from trainer.evaluation.statistics import DIVERSITIES, by_prompt, distinct, summarise
from trainer.images import Pixels
from trainer.models.base import Decoded
from trainer.models.model import FlowModel
from trainer.parallel.world import World, shared
from trainer.rewards import RewardService
from trainer.rollout.noise import NoiseKey, initial_noise
from trainer.rollout.policy import draw_window
from trainer.rollout.rollout import rollout
from trainer.scores import NOT_FINITE, Scores, joined, merge, scores_of
from trainer.types import Prompt


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found; every row is one of `summarise`.

    `outputs` are all that the scorers gave: `scorer`, `scorer.component`, and `scorer.raw` where a
    transform has changed the score.
    """

    metrics: Mapping[str, Any]  # row per measured term
    rewards: Mapping[str, Any]  # row per term that is trained on
    watch: Mapping[str, Any]  # row per watched term, and per entry of `DIVERSITIES`
    outputs: Mapping[str, Any]
    kl: Mapping[str, Any] | None  # row of the distance to the base, where there is one
    failed: int  # images that lack the score of at least one term
    images: int
    # Mean of each prompt per measured and watched term, by category.
    by_prompt: Mapping[str, Mapping[str, Sequence[float | None]]]
    shown: Mapping[int, Pixels]  # first image of the prompts that are shown, by prompt index
    shown_scores: Mapping[int, float | None]  # the headline of these images
    errors: Mapping[str, int]  # how often which error occurred
    scorers: Mapping[str, Sequence[str]]  # fingerprints, by scorer

    def row(self) -> dict[str, Any]:
        """Everything but the pictures, by name, for files; `kl` only where there is one."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if "shown" not in f.name}
        return {name: value for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Part:
    """What one process found; goes to all others."""

    rows: tuple[Job, ...]  # its N images
    scores: Scores | TrainerError | None  # of its images, or why there are none
    distances: tuple[float | None, ...]  # N to the base, None where not finite; or none at all
    diversity: Mapping[str, Mapping[int, float]]  # by entry of `DIVERSITIES` and prompt index
    shown: Mapping[int, Pixels]  # pictures by prompt index


def evaluate_run(
    model: FlowModel,
    prompts: Sequence[Prompt],
    service: RewardService,
    settings: Settings,
    world: World,
    *,
    indices: Sequence[int],
    images_per_prompt: int,
    shown: Sequence[int] = (),
    tag: str = "eval",
    training_sampler: bool = False,
    stop: Callable[[], object] = lambda: False,
    show: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Evaluate the model as it is (the caller puts the averaged weights in).

    `indices` are the prompts that are evaluated, `shown` those whose first image is kept; `tag`
    names the evaluation in item ids; `show` gets how many images are done, of how many, in all
    processes, which have equal shares. With `training_sampler` images are
    sampled as in training, and there is no distance to the base.

    Raises:
        ServiceError: the service refused or went away.
        Stopped: on every process, if any was asked to stop.
    """
    terms = settings.terms
    batches = plan(
        indices, images_per_prompt, settings.eval.batch_size, rank=world.rank, size=world.size
    )
    futures: list[Future[Scores]] = []
    jobs: list[Job] = []
    distances: list[float | None] = []
    pictures: dict[int, Pixels] = {}
    pixels_of: dict[int, list[Pixels]] = defaultdict(list)
    done, mine = 0, sum(len(batch.jobs) for batch in batches)
    total = len(indices) * images_per_prompt
    for batch in batches:
        if world.any(bool(stop())):
            raise Stopped("asked to stop")
        show(done * total // mine, total)
        done += len(batch.jobs)
        chosen = [prompts[index] for index, _ in batch.jobs]
        if training_sampler:
            latents, distance = _sample_as_in_training(model, chosen, batch, settings), None
        else:
            latents, distance = _sample(model, chosen, batch.jobs, settings, compare=True)
        if not batch.kept:
            continue
        decoded = model.decode(latents)
        name = f"{tag}-{batch.number}"
        futures.append(service.submit(decoded, chosen, terms, tag=name, priority=Priority.EVAL))
        jobs += batch.jobs
        if distance is not None:
            distances += [value if math.isfinite(value) else None for value in distance.tolist()]
        pictured = zip(batch.jobs, decoded.uint8, decoded.finite, strict=True)
        for (index, sample), image, finite in pictured:
            if finite:
                pixels_of[index].append(image)
            if sample == 0 and index in shown:
                pictures[index] = image
    groups = {index: np.stack(images) for index, images in pixels_of.items() if len(images) > 1}
    diversity = {
        name: {index: measure(images) for index, images in groups.items()}
        for name, measure in DIVERSITIES.items()
    }
    scores = scores_of(futures, stop)
    parts = world.gather(Part(tuple(jobs), scores, tuple(distances), diversity, pictures))
    for other in parts:
        if isinstance(other.scores, TrainerError):
            raise shared(other.scores)
    return _collect(parts, prompts, settings, terms)


def draw_images(
    model: FlowModel, prompts: Sequence[Prompt], keys: Sequence[Job], settings: Settings
) -> Pixels:
    """Sample one batch as evaluations do; (B, H, W, 3), of videos (B, F, H, W, 3).

    `keys` are (prompt number, image number) of each of B prompts, which name its noise.

    Raises:
        ModelError: A picture with NaN or infinity.
    """
    decoded = draw(model, prompts, keys, settings)
    if not decoded.finite.all():
        raise ModelError(NOT_FINITE)
    return decoded.uint8


def draw(
    model: FlowModel, prompts: Sequence[Prompt], keys: Sequence[Job], settings: Settings
) -> Decoded:
    """The same with the pictures that are not finite, and which these are."""
    return model.decode(_sample(model, prompts, keys, settings, compare=False)[0])


def _sample(
    model: FlowModel,
    prompts: Sequence[Prompt],
    keys: Sequence[Job],
    settings: Settings,
    *,
    compare: bool,
) -> tuple[Tensor, Tensor | None]:
    """Final latents, and (B,) distances to the base where that is asked for and possible."""
    sampling = settings.sampling
    scale = sampling.eval_guidance_scale
    scale = sampling.guidance_scale if scale is None else scale
    shape = model.latent_shape(*sampling.size)
    cond = model.encode_prompts([prompt.request for prompt in prompts])
    negative = model.encode_negative(prompts, negative_prompt(settings))
    compared = settings.eval.kl_steps if compare and keeps_reference(settings) else 0
    latents, distance = sample_and_compare(
        model,
        cond,
        initial_noise(_noise_keys(keys, settings), shape, model.device),
        sampling.eval_num_steps,
        compared_steps=compared,
        guidance_scale=scale,
        negative=negative,
    )
    return latents, distance if compared else None


def _noise_keys(jobs: Sequence[Job], settings: Settings) -> list[NoiseKey]:
    return [NoiseKey(settings.eval.seed, EVAL_EPOCH, prompt, image) for prompt, image in jobs]


def _sample_as_in_training(
    model: FlowModel, prompts: Sequence[Prompt], batch: Batch, settings: Settings
) -> Tensor:
    """Final latents of the training sampler; each batch has a window of its own."""
    config = rollout_config(settings)
    return rollout(
        model,
        model.encode_prompts([prompt.request for prompt in prompts]),
        _noise_keys(batch.jobs, settings),
        config,
        latent_shape=model.latent_shape(*settings.sampling.size),
        window=draw_window(config, settings.eval.seed, EVAL_EPOCH, batch.number),
        negative=model.encode_negative(prompts, negative_prompt(settings)),
    ).final


def _collect(
    parts: Sequence[Part],
    prompts: Sequence[Prompt],
    settings: Settings,
    terms: Sequence[RewardTerm],
) -> Evaluation:
    rows_made = [row for part in parts for row in part.rows]
    index = [prompt for prompt, _ in rows_made]
    scores = [part.scores for part in parts if isinstance(part.scores, Scores)]
    whole = merge(scores)
    groups = [prompt.group or "all" for prompt in prompts]
    rows = {t.name: summarise(whole.values[t.name].tolist(), index, groups) for t in terms}
    headline = whole.values[settings.measured[0].name].tolist()
    spreads: dict[str, dict[int, float]] = defaultdict(dict)
    distances = [value for part in parts for value in part.distances]
    shown: dict[int, Pixels] = {}
    for part in parts:
        shown.update(part.shown)
        for name, column in part.diversity.items():
            spreads[name] |= column
    return Evaluation(
        metrics={t.name: rows[t.name] for t in settings.measured},
        rewards={t.name: rows[t.name] for t in settings.rewards.train},
        watch={t.name: rows[t.name] for t in settings.rewards.watch}
        | {name: summarise(list(v.values()), list(v), groups) for name, v in spreads.items() if v},
        outputs={
            name: summarise(column.tolist(), index, groups)
            for name, column in distinct(whole.outputs).items()
        },
        kl=summarise(distances, index, groups) if distances else None,
        failed=int((~whole.valid([term.name for term in terms])).sum()),
        images=len(index),
        by_prompt={
            term.name: by_prompt(whole.values[term.name].tolist(), index, groups)
            for term in (*settings.measured, *settings.rewards.watch)
        },
        shown=shown,
        shown_scores={
            prompt: score
            for (prompt, sample), score in zip(rows_made, headline, strict=True)
            if sample == 0 and prompt in shown
        },
        errors=whole.errors,
        scorers=joined(part.fingerprints for part in scores),
    )
