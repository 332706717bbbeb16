"""Held-out evaluation of a run: sample fixed prompts and seeds, score, and summarise.

Accuracies are means over the images of a category; the headline is the mean of the categories. The
95 % intervals treat prompts as the independent draws, since images of one prompt are alike.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reward_client import Priority
from trainer.distributed import World, shared
from trainer.diversity import DIVERSITIES
from trainer.errors import Stopped, TrainerError
from trainer.evaluate import EVAL_EPOCH, Estimate, sample_ode, summarise
from trainer.models.base import FlowModel
from trainer.noise import NoiseKey, initial_noise
from trainer.provenance import joined
from trainer.rewards import RewardService, Scores
from trainer.settings import RewardTerm, Settings
from trainer.types import Prompt
from trainer.waiting import scores_of

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        metrics: summary per measured term: mean, ci95, categories.
        watch: the same for the watched terms and `DIVERSITIES`.
        failed: images without a score.
        images: how many images were made.
        shown: the first image of the prompts that are shown, by prompt index.
        errors: how often which error occurred.
        scorers: fingerprints of what computed the scores, by scorer.
    """

    metrics: Mapping[str, Any]
    watch: Mapping[str, Any]
    failed: int
    images: int
    shown: Mapping[int, Pixels]
    errors: Mapping[str, int]
    scorers: Mapping[str, Sequence[str]]


def metric_terms(settings: Settings) -> tuple[RewardTerm, ...]:
    """What evaluations measure; the first is the headline."""
    return settings.eval.metrics or settings.rewards.train


def all_terms(settings: Settings) -> tuple[RewardTerm, ...]:
    """Every term a run ever asks for, each name once."""
    terms = (*settings.rewards.train, *metric_terms(settings), *settings.rewards.watch)
    return tuple({term.name: term for term in terms}.values())


def spread(prompts: Sequence[Prompt], count: int) -> list[int]:
    """Indices of `count` prompts, taken evenly from the categories in order; 0 takes all."""
    if count == 0 or count >= len(prompts):
        return list(range(len(prompts)))
    queues: dict[str, list[int]] = defaultdict(list)
    for index, prompt in enumerate(prompts):
        queues[prompt.group].append(index)
    # Evenly spaced inside a category too: files are often sorted.
    share = -(-count // len(queues))
    picked: list[list[int]] = []
    for members in queues.values():
        step = max(len(members) / share, 1.0)
        picked.append([members[int(i * step)] for i in range(min(share, len(members)))])
    rounds = [row[i] for i in range(share) for row in picked if i < len(row)]
    return sorted(rounds[:count])


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
    stop: Callable[[], object] = lambda: False,
) -> Evaluation:
    """Evaluate the model as it is (the caller puts the EMA weights in).

    Args:
        model: the policy.
        prompts: all held-out prompts.
        service: where scores come from.
        settings: the run's settings.
        world: prompts are shared out over its processes.
        indices: which prompts are evaluated.
        images_per_prompt: images of each.
        shown: prompts whose first image is kept.
        tag: names the evaluation in item ids.
        stop: whether this process was asked to stop; asked between batches.

    Raises:
        ServiceError: the service refused or went away.
        Stopped: on every process, if any was asked to stop.
    """
    terms = tuple({t.name: t for t in (*metric_terms(settings), *settings.rewards.watch)}.values())
    mine = list(indices)[world.rank :: world.size]
    futures: list[Future[Scores]] = []
    pictures: dict[int, Pixels] = {}
    pixels_of: dict[int, list[Pixels]] = defaultdict(list)
    jobs = [(index, sample) for index in mine for sample in range(images_per_prompt)]
    for start in range(0, len(jobs), settings.eval.batch_size):
        if world.any(bool(stop())):
            raise Stopped("asked to stop")
        batch = jobs[start : start + settings.eval.batch_size]
        chosen = [prompts[index] for index, _ in batch]
        images = draw_images(model, chosen, batch, settings)
        futures.append(
            service.submit(
                images, chosen, terms, tag=f"{tag}-{world.rank}-{start}", priority=Priority.EVAL
            )
        )
        for (index, sample), image in zip(batch, images, strict=True):
            pixels_of[index].append(image)
            if sample == 0 and index in shown:
                pictures[index] = image
    spreads = {
        name: {
            index: measure(np.stack(images), [index] * len(images))
            for index, images in pixels_of.items()
            if len(images) > 1
        }
        for name, measure in DIVERSITIES.items()
    }
    found = scores_of(futures, stop)
    scores, problem = (None, found) if isinstance(found, TrainerError) else (found, None)
    part = {
        "problem": problem,
        "rows": jobs,
        "values": {t.name: scores.values[t.name].tolist() for t in terms} if scores else {},
        "errors": dict(scores.errors) if scores else {},
        "scorers": dict(scores.fingerprints) if scores else {},
        "diversity": spreads,
        "shown": pictures,
    }
    parts = world.gather(part)
    for other in parts:
        if other["problem"] is not None:
            raise shared(other["problem"])
    return _collect(parts, prompts, settings, terms)


def draw_images(
    model: FlowModel,
    prompts: Sequence[Prompt],
    keys: Sequence[tuple[int, int]],
    settings: Settings,
) -> Pixels:
    """Sample one batch as evaluations do; (B, H, W, 3).

    Args:
        model: the policy.
        prompts: B prompts.
        keys: (prompt number, image number) of each, which name its noise: an image is the same
            whatever else is evaluated.
        settings: steps, guidance, size and seed.
    """
    sampling = settings.sampling
    scale = sampling.eval_guidance_scale
    scale = sampling.guidance_scale if scale is None else scale
    shape = model.latent_shape(sampling.resolution_px, sampling.resolution_px)
    noise = [NoiseKey(settings.eval.seed, EVAL_EPOCH, prompt, image) for prompt, image in keys]
    final = sample_ode(
        model,
        model.encode_prompts([prompt.text for prompt in prompts]),
        initial_noise(noise, shape, model.device),
        sampling.eval_num_steps,
        guidance_scale=scale,
        negative=None if scale == 1.0 else model.encode_prompts([sampling.negative_prompt]),
    )
    return model.decode(final).uint8


def _collect(
    parts: Sequence[Mapping[str, Any]],
    prompts: Sequence[Prompt],
    settings: Settings,
    terms: Sequence[RewardTerm],
) -> Evaluation:
    rows = [row for part in parts for row in part["rows"]]
    columns = {t.name: [v for p in parts for v in p["values"].get(t.name, ())] for t in terms}
    shown: dict[int, Pixels] = {}
    spreads: dict[str, dict[int, float]] = defaultdict(dict)
    errors: dict[str, int] = defaultdict(int)
    for part in parts:
        shown.update(part["shown"])
        for name, by_prompt in part["diversity"].items():
            spreads[name].update(by_prompt)
        for text, count in part["errors"].items():
            errors[text] += count
    summaries = {
        name: summary_row(column, [index for index, _ in rows], prompts)
        for name, column in columns.items()
    }
    watch = {t.name: summaries[t.name] for t in settings.rewards.watch}
    for name, by_prompt in spreads.items():
        if by_prompt:
            watch[name] = summary_row(list(by_prompt.values()), list(by_prompt), prompts)
    return Evaluation(
        metrics={t.name: summaries[t.name] for t in metric_terms(settings)},
        watch=watch,
        failed=sum(None in scores for scores in zip(*columns.values(), strict=True)),
        images=len(rows),
        shown=shown,
        errors=dict(errors),
        scorers=joined(part["scorers"] for part in parts),
    )


def summary_row(
    scores: Sequence[float | None], index: Sequence[int], prompts: Sequence[Prompt]
) -> dict[str, Any]:
    """Means with 95 % intervals as plain numbers.

    Args:
        scores: one per image; None where scoring failed.
        index: the prompt of each image.
        prompts: all held-out prompts.

    Returns:
        `mean`, `low`, `high` of the mean of the categories, `n` (images with a score), and
        `categories` with the same four each. Means are None where nothing has a score.
    """
    if all(score is None for score in scores):
        return {"mean": None, "low": None, "high": None, "n": 0, "categories": {}}
    found = summarise(scores, index, [prompt.group or "all" for prompt in prompts])
    return {
        **_plain(found.mean_of_groups),
        "categories": {name: _plain(row) for name, row in found.groups.items()},
    }


def _plain(estimate: Estimate) -> dict[str, Any]:
    return {
        "mean": estimate.mean,
        "low": estimate.low,
        "high": estimate.high,
        "n": estimate.count,
    }
