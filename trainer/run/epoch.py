"""One epoch: sample, score, compare, update.

Scores are requested as each sampling batch is decoded, and awaited before the first update: a
service that goes away loses nothing, since nothing has changed by then.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.ma import MaskedArray

from trainer.algorithm.advantages import Advantages
from trainer.algorithm.losses import TrainBatch
from trainer.config.load import negative_prompt
from trainer.models.base import Conditioning
from trainer.rollout.policy import RolloutBatch, draw_window
from trainer.rollout.prompts import Draw, draw_prompts, draws, share_out
from trainer.rollout.rollout import rollout
from trainer.run import groups
from trainer.run.record import Picture
from trainer.run.scores import epoch_scores
from trainer.run.state import Run, check_stop
from trainer.scores import Scores, epoch_advantages


@dataclass(frozen=True, slots=True)
class Sampled:
    """One rollout batch whose scores are pending; `first` numbers its first image in the epoch."""

    first: int
    batch: RolloutBatch
    cond: Conditioning
    negative: Conditioning | None
    pending: "Future[Scores]"
    pictures: "Future[list[Picture]] | None" = None  # encoded, where they are recorded


def train_epoch(run: Run) -> dict[str, Any]:
    """Sample, score and update once; return the epoch's metrics.

    Raises:
        ServiceError: the service went away or too much has no score; nothing has changed.
        Stopped: a process was asked to stop before the last scores were there; nothing has changed.
    """
    settings, epoch, sampled_after = run.settings, run.progress.epoch, run.progress.updates
    times: dict[str, float] = dict.fromkeys(("rollout", "score_wait", "train"), 0.0)
    cpu_s = time.process_time()
    with _timed(times, "rollout"):
        prompts = draw_prompts(
            run.probabilities,
            [prompt.group for prompt in run.train],
            settings.batch.prompts_per_epoch,
            seed=settings.run.seed,
            epoch=epoch,
        )
        sampled = sample_epoch(run, prompts)
    run.show("waiting for scores", 0, 0)
    with _timed(times, "score_wait"):
        scores = epoch_scores(run, [[item.pending for item in batches] for batches in sampled])
    found = epoch_advantages(settings, scores)
    names = [term.name for term in settings.rewards.train]
    keep = _groups_kept(run, prompts, sampled, scores) if groups.due(run) else None
    run.show("updating", 0, 0)
    with _timed(times, "train"):
        updates = [update(run, train_batches(run, batches, found)) for batches in sampled]
        run.updater.end_epoch()
    if keep is not None:
        keep()
    own = [(i.first, i.pending.result(), i.pictures) for batches in sampled for i in batches]
    kept = run.recorder and run.recorder.keep(epoch + 1, prompts, own, found, sampled_after)
    total, total_s = len(found.values), sum(times.values())
    return {
        "kind": "train",
        "epoch": epoch + 1,
        "updates": run.progress.updates,
        "window": sorted({step for group in range(len(prompts)) for step in _window(run, group)}),
        "reward": {name: _mean(scores.values[name]) for name in names},
        "categories": _by_category(run, prompts, scores.values[names[0]]),
        "advantage": dict(found.stats),
        "failed": int((~found.valid).sum()),
        "errors": scores.errors,
        "scorers": {name: list(seen) for name, seen in scores.fingerprints.items()},
        **combine_updates(updates),
        **_controlled(run),
        **({"record": kept} if kept else {}),
        "seconds": {**times, "total": total_s, "cpu": time.process_time() - cpu_s},
        "images": total,
        "images_per_s": total / total_s,
    }


def _groups_kept(
    run: Run, prompts: Sequence[int], sampled: Sequence[Sequence[Sampled]], scores: Scores
) -> Callable[[], None]:
    """Ask for explanations of the best and the worst groups; what is returned writes them down."""
    weighted = [scores.values[term.name] * term.weight for term in run.settings.rewards.train]
    rewards = sum(weighted[1:], start=weighted[0])
    chosen = groups.choose(rewards, run.settings.batch.images_per_prompt)
    batches = [(item.first, item.batch.final) for batches in sampled for item in batches]
    pending = groups.ask(run, prompts, batches, chosen)
    return lambda: groups.keep(run, prompts, chosen, scores, rewards, pending)


@contextmanager
def _timed(times: dict[str, float], name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    times[name] += time.perf_counter() - begin


def sample_epoch(run: Run, prompts: Sequence[int]) -> list[list[Sampled]]:
    """Sample this process's batches, by update, in the order in which updates need them."""
    settings = run.settings
    images = draws(
        prompts,
        settings.batch.images_per_prompt,
        seed=settings.run.seed,
        epoch=run.progress.epoch,
        group_noise=settings.sampling.group_noise,
    )
    size = settings.batch.rollout_batch_size
    shares = share_out(
        len(images) // size,
        settings.batch.optimizer_steps_per_epoch,
        rank=run.world.rank,
        world_size=run.world.size,
    )
    own = sum(len(share) for share in shares)
    sampled: list[list[Sampled]] = []
    with run.updater.sampling():
        for share in shares:
            sampled.append([])
            for number in share:
                # The other processes are about as far.
                done = sum(map(len, sampled))
                run.show("sampling", done * len(images) // own, len(images))
                batch = images[number * size : (number + 1) * size]
                sampled[-1].append(sample_batch(run, batch, number))
    return sampled


def sample_batch(run: Run, images: Sequence[Draw], number: int) -> Sampled:
    """Sample and decode the batch of this number in the epoch, and ask for its scores."""
    check_stop(run)
    settings, epoch = run.settings, run.progress.epoch
    chosen = [run.train[image.prompt] for image in images]
    cond = run.model.encode_prompts([prompt.request for prompt in chosen])
    # Each model family decides whether to use it.
    negative = run.model.encode_negative(chosen, negative_prompt(settings))
    batch = rollout(
        run.model,
        cond,
        [image.key for image in images],
        run.updater.config,
        latent_shape=run.model.latent_shape(*settings.sampling.size),
        window=_window(run, images[0].group),
        negative=negative,
    )
    decoded = run.model.decode(batch.final)
    pending = run.service.submit(decoded, chosen, settings.rewards.train, tag=f"e{epoch}-{number}")
    pictures = run.recorder and run.recorder.encode(decoded)
    # While the service is busy with the images.
    finite = torch.as_tensor(decoded.finite, device=batch.final.device)
    renewed = run.updater.renew(batch.keep_finite(finite), cond, negative)
    return Sampled(number * len(images), renewed, cond, negative, pending, pictures)


def _window(run: Run, group: int) -> tuple[int, ...]:
    """The stochastic steps of a group; a batch has one group if they differ (`geometry`)."""
    own = group if run.settings.sampling.window_per == "prompt" else None
    return draw_window(run.updater.config, run.settings.run.seed, run.progress.epoch, own)


def train_batches(run: Run, sampled: Sequence[Sampled], found: Advantages) -> list[TrainBatch]:
    """The batches of one update of this process with their advantages."""
    device = run.model.device
    out = []
    for item in sampled:
        rows = slice(item.first, item.first + len(item.batch))
        out.append(
            TrainBatch(
                item.batch,
                item.cond,
                torch.as_tensor(found.values[rows], dtype=torch.float32, device=device),
                torch.as_tensor(found.used[rows], device=device),
                item.negative,
                torch.as_tensor(found.groups[rows], device=device),
            )
        )
    return out


def update(run: Run, batches: Sequence[TrainBatch]) -> dict[str, float]:
    """Do one update and move the average; return its metrics."""
    controls = run.progress.controls
    metrics = run.updater.update(batches, kl_beta=controls.kl_beta, lr_scale=controls.lr_scale)
    if run.ema is not None and run.updater.updates > run.progress.updates:
        run.ema.update(run.updater.updates)
    run.progress.updates = run.updater.updates
    return metrics


def _controlled(run: Run) -> dict[str, Any]:
    """What the epoch was trained with, where alarms may change it."""
    controls, own = run.progress.controls, run.settings.loss.kl_beta
    if not controls.actions and run.settings.run.on_alarm not in ("raise_kl", "rewind"):
        return {}
    kl_beta = own if controls.kl_beta is None else controls.kl_beta
    return {"controls": {"kl_beta": kl_beta, "lr_scale": controls.lr_scale}}


def combine_updates(updates: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Means over the updates of an epoch; largest values stay the largest."""
    names = {name for metrics in updates for name in metrics}
    policy = {name: float(np.mean([m[name] for m in updates if name in m])) for name in names}
    for name in ("ratio_max", "ratio_deviation"):
        if name in policy:
            policy[name] = max(m[name] for m in updates if name in m)
    return {
        "first_ratio_deviation": updates[0].get("ratio_deviation"),
        "policy": dict(sorted(policy.items())),
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
