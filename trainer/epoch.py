"""One epoch: sample, score, compare, update.

Scores are requested as each sampling batch is decoded and awaited once the epoch is sampled.
Nothing changes before all scores are there, so a service that goes away loses nothing.
"""

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.ma import MaskedArray

from trainer import prompt_filter
from trainer.advantages import Advantages, advantages
from trainer.config import training_guidance
from trainer.distributed import shared
from trainer.errors import ServiceLost, TrainerError
from trainer.losses import LOSSES, TrainBatch
from trainer.models.base import Conditioning
from trainer.rewards import Scores, merge
from trainer.rollout import RolloutBatch, draw_window, rollout
from trainer.run import Run, check_stop
from trainer.sampler import Draw, draw_prompts, draws
from trainer.waiting import scores_of


@dataclass(frozen=True, slots=True)
class Sampled:
    """One rollout batch on its way.

    Attributes:
        batch: what training needs of the sampling.
        cond: its encoded prompts.
        pending: its scores.
    """

    batch: RolloutBatch
    cond: Conditioning
    pending: "Future[Scores]"


def train_epoch(run: Run) -> dict[str, Any]:
    """Sample, score and update once; return the epoch's metrics."""
    settings, epoch = run.settings, run.progress.epoch
    times: dict[str, float] = {}
    begin = time.perf_counter()
    asleep = _resting(run)
    prompts = draw_prompts(
        prompt_filter.in_play(run.probabilities, asleep),
        settings.batch.prompts_per_epoch,
        seed=settings.run.seed,
        epoch=epoch,
    )
    images = draws(
        prompts,
        settings.batch.images_per_prompt,
        seed=settings.run.seed,
        epoch=epoch,
        shared_noise=settings.sampling.shared_noise,
        rank=run.world.rank,
        world_size=run.world.size,
    )
    negative = _negative(run)
    size, first = settings.batch.rollout_batch_size, run.world.rank * len(images)
    with run.updater.sampling():
        sampled = [
            sample_batch(run, images[start : start + size], first + start, negative)
            for start in range(0, len(images), size)
        ]
    times["rollout"] = time.perf_counter() - begin
    begin = time.perf_counter()
    scores = collect(run, [item.pending for item in sampled])
    times["score_wait"] = time.perf_counter() - begin
    begin = time.perf_counter()
    names = [term.name for term in settings.rewards.train]
    found = advantages(
        {name: scores.values[name].data for name in names},
        [
            image // settings.batch.images_per_prompt
            for image in range(len(scores.values[names[0]]))
        ],
        weights={term.name: term.weight for term in settings.rewards.train},
        valid=scores.valid(names),
        std=settings.advantage.std,
        combine=settings.advantage.combine,
        eps=settings.advantage.eps,
        clip=settings.advantage.clip,
        mode=LOSSES[settings.loss.algorithm].advantage,
        temperature=settings.loss.rwr_temperature,
    )
    updates = update(run, sampled, found, negative)
    times["train"] = time.perf_counter() - begin
    filtered = _remember(run, prompts, scores, asleep)
    total = len(scores.values[names[0]])
    return {
        "kind": "train",
        "epoch": epoch + 1,
        "updates": run.progress.updates,
        "reward": {name: _mean(scores.values[name]) for name in names},
        "categories": _by_category(run, prompts, scores.values[names[0]]),
        **filtered,
        "advantage": dict(found.stats),
        "failed": int((~found.valid).sum()),
        "errors": dict(scores.errors),
        "scorers": {name: list(seen) for name, seen in scores.fingerprints.items()},
        **combine_updates(updates),
        "seconds": {**times, "total": sum(times.values())},
        "images": total,
        "images_per_s": total / sum(times.values()),
    }


def sample_batch(
    run: Run, images: Sequence[Draw], number: int, negative: Conditioning | None
) -> Sampled:
    """Sample and decode one batch, and ask for its scores.

    Args:
        run: the run.
        images: what to sample.
        number: number of the first image in the epoch, which names the batch on all processes.
        negative: the encoded negative prompt, or None.
    """
    check_stop(run)
    settings, epoch = run.settings, run.progress.epoch
    chosen = [run.train[image.prompt] for image in images]
    cond = run.model.encode_prompts([prompt.text for prompt in chosen])
    batch = rollout(
        run.model,
        cond,
        [image.key for image in images],
        run.updater.config,
        latent_shape=run.model.latent_shape(*settings.sampling.size),
        window=draw_window(run.updater.config, settings.run.seed, epoch, number),
        negative=negative,
    )
    pending = run.service.submit(
        run.model.decode(batch.final).uint8,
        chosen,
        settings.rewards.train,
        tag=f"e{epoch}-{number}",
    )
    return Sampled(batch, cond, pending)


def collect(run: Run, pending: Sequence["Future[Scores]"]) -> Scores:
    """The epoch's scores of all processes, in the order of the images.

    Raises:
        ServiceError: on every process, if any process lost the service or too much failed.
        Stopped: on every process, if any was asked to stop.
    """
    parts = run.world.gather(scores_of(pending, run.stop))
    for part in parts:
        if isinstance(part, TrainerError):
            raise shared(part)
    scores = merge(parts)
    names = [term.name for term in run.settings.rewards.train]
    failed = float((~scores.valid(names)).mean())
    if failed > run.settings.rewards.max_failed_fraction:
        commonest = max(scores.errors, key=lambda text: scores.errors[text], default="no message")
        raise ServiceLost(
            f"{failed:.0%} of the images of epoch {run.progress.epoch + 1} have no score "
            f"(rewards.max_failed_fraction is {run.settings.rewards.max_failed_fraction:.0%}); "
            f"mostly: {commonest}"
        )
    return scores


def update(
    run: Run,
    sampled: Sequence[Sampled],
    found: Advantages,
    negative: Conditioning | None,
) -> list[list[dict[str, float]]]:
    """Do the epoch's updates; return the metrics of each, by process.

    Args:
        run: the run.
        sampled: the batches of this process.
        found: advantages of the images of all processes.
        negative: the encoded negative prompt, or None.
    """
    device = run.model.device
    offset = run.world.rank * sum(len(item.batch) for item in sampled)
    batches = []
    for item in sampled:
        rows = slice(offset, offset + len(item.batch))
        batches.append(
            TrainBatch(
                item.batch,
                item.cond,
                torch.as_tensor(found.values[rows], dtype=torch.float32, device=device),
                torch.as_tensor(found.used[rows], device=device),
                negative,
                torch.as_tensor(found.groups[rows], device=device),
            )
        )
        offset += len(item.batch)
    out = []
    for metrics in run.updater.epoch(batches, epoch=run.progress.epoch):
        if run.ema is not None and run.updater.updates > run.progress.updates:
            run.ema.update(run.updater.updates)
        run.progress.updates = run.updater.updates
        out.append(metrics)
    return run.world.gather(out)


def combine_updates(updates: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Means over the updates of an epoch and the processes; largest values stay the largest."""
    rows = [metrics for part in updates for metrics in part]
    names = {name for metrics in rows for name in metrics}
    policy = {name: float(np.mean([m[name] for m in rows if name in m])) for name in names}
    for name in ("ratio_max", "ratio_deviation"):
        if name in policy:
            policy[name] = max(m[name] for m in rows if name in m)
    first = [part[0]["ratio_deviation"] for part in updates if "ratio_deviation" in part[0]]
    return {
        "first_ratio_deviation": max(first, default=None),
        "policy": dict(sorted(policy.items())),
    }


def _resting(run: Run) -> frozenset[int]:
    """Training prompts that the filter leaves out of this epoch."""
    if not run.settings.filter.enabled:
        return frozenset()
    return prompt_filter.resting(
        prompt_filter.read(run.progress.filter),
        run.settings.filter,
        run.probabilities,
        epoch=run.progress.epoch,
        at_least=run.settings.batch.prompts_per_epoch,
    )


def _remember(
    run: Run, prompts: Sequence[int], scores: Scores, asleep: frozenset[int]
) -> dict[str, Any]:
    """Tell the filter about the epoch's groups; return its part of the metrics."""
    settings = run.settings.filter
    if not settings.enabled:
        return {}
    values = scores.values[settings.reward or run.settings.rewards.train[0].name]
    size = run.settings.batch.images_per_prompt
    means = [_mean(values[place * size : (place + 1) * size]) for place in range(len(prompts))]
    memory = prompt_filter.advance(
        prompt_filter.read(run.progress.filter),
        settings,
        epoch=run.progress.epoch,
        prompts=prompts,
        means=means,
    )
    run.progress.filter = prompt_filter.write(memory)
    eligible = sum(share > 0 for share in run.probabilities)
    solved = sum(mean is not None and mean >= settings.solved_at for mean in means)
    return {
        "prompts": {
            "active": eligible - len(asleep),
            "resting": len(asleep),
            "solved_groups": solved,
        }
    }


def _by_category(run: Run, prompts: Sequence[int], values: MaskedArray) -> dict[str, float | None]:
    size = run.settings.batch.images_per_prompt
    groups: dict[str, list[MaskedArray]] = {}
    for number, prompt in enumerate(prompts):
        category = run.train[prompt].group or "all"
        groups.setdefault(category, []).append(values[number * size : (number + 1) * size])
    return {name: _mean(np.ma.concatenate(parts)) for name, parts in sorted(groups.items())}


def _mean(values: MaskedArray) -> float | None:
    kept = values.compressed()
    return float(kept.mean()) if kept.size else None


def _negative(run: Run) -> Conditioning | None:
    scales = (run.settings.sampling.guidance_scale, training_guidance(run.settings))
    if scales == (1.0, 1.0):
        return None
    return run.model.encode_prompts([run.settings.sampling.negative_prompt])
