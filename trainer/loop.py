"""The one loop: sample -> score -> advantage -> update -> evaluate -> save.

Scores are requested as each sampling batch is decoded and awaited once the epoch is sampled. An
epoch changes nothing before all its scores are there, so a service that goes away loses nothing.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer import checkpoint as checkpoints
from trainer.advantages import advantages
from trainer.distributed import World
from trainer.ema import Ema
from trainer.errors import ServiceError, ServiceLost, TrainerError
from trainer.grids import save_png, sheet
from trainer.held_out import Evaluation, evaluate_run, metric_terms, spread
from trainer.losses import TrainBatch
from trainer.metrics import MetricsLog
from trainer.models.base import Conditioning, FlowModel
from trainer.rewards import RewardService, Scores, merge
from trainer.rollout import draw_window, rollout
from trainer.run_state import Progress, out_of_budget
from trainer.sampler import Draw, draw_prompts, draws
from trainer.settings import Settings
from trainer.types import Prompt
from trainer.update import Updater


@dataclass
class Run:
    """Everything the loop holds; made by `trainer.start.open_run`.

    Attributes:
        settings: the run's settings.
        run_dir: where files go.
        world: the processes.
        model: the policy.
        updater: optimiser and update.
        ema: average of the trained weights, or None.
        service: where scores come from.
        train: training prompts.
        probabilities: how likely each is to be drawn.
        test: held-out prompts.
        progress: where the run stands.
        log: metrics, on the main process.
        say: prints one line, on the main process.
        stop: asked between epochs whether to save and stop.
    """

    settings: Settings
    run_dir: Path
    world: World
    model: FlowModel
    updater: Updater
    ema: Ema | None
    service: RewardService
    train: Sequence[Prompt]
    probabilities: Sequence[float]
    test: Sequence[Prompt]
    progress: Progress
    log: MetricsLog | None
    say: Callable[[str], None]
    stop: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Sampled:
    """One rollout batch on its way.

    Attributes:
        micro: what training needs, still without advantages.
        pending: its scores.
    """

    batch: Any
    cond: Conditioning
    pending: Any


def train(run: Run) -> str:
    """Run until the budget is used up or someone asks to stop.

    Returns:
        Why the run is over, or an empty text if it was asked to stop.

    Raises:
        ServiceLost: the service went away; the run is saved.
        TrainerError: anything else that a user can mend; the run is saved if it had begun.
    """
    try:
        if not run.progress.based:
            evaluate(run, "base")
            run.progress.based = True
            save(run)
        while not (reason := _over(run)):
            if run.world.broadcast(run.stop()):
                save(run)
                return ""
            _epoch(run)
        save(run)
        evaluate(run, "final")
    except ServiceError as error:
        if run.progress.based:
            place = save(run)
            raise ServiceLost(
                f"{error}; the run is saved in {place}: the same command resumes it"
            ) from error
        raise
    return reason


def _over(run: Run) -> str:
    # Clocks differ between processes; the main one decides.
    return run.world.broadcast(out_of_budget(run.settings, run.progress))


def _epoch(run: Run) -> None:
    started = time.perf_counter()
    elapsed_before = run.progress.elapsed_s

    def tick() -> None:
        run.progress.elapsed_s = elapsed_before + time.perf_counter() - started

    row = train_epoch(run)
    run.progress.epoch += 1
    tick()
    row["train_minutes"] = run.progress.elapsed_s / 60
    write(run, row)
    run.say(epoch_line(run, row))
    if _evaluation_due(run):
        evaluate(run, "curve")
        tick()
    if run.progress.epoch % run.settings.run.save_every_epochs == 0:
        save(run)
        tick()


def train_epoch(run: Run) -> dict[str, Any]:
    """Sample, score and update once; return the epoch's metrics."""
    settings, epoch = run.settings, run.progress.epoch
    times: dict[str, float] = {}
    begin = time.perf_counter()
    prompts = draw_prompts(
        run.probabilities,
        settings.batch.prompts_per_epoch,
        seed=settings.run.seed,
        epoch=epoch,
    )
    images = draws(
        prompts,
        settings.batch.images_per_prompt,
        seed=settings.run.seed,
        epoch=epoch,
        rank=run.world.rank,
        world_size=run.world.size,
    )
    negative = _negative(run)
    size = settings.batch.rollout_batch_size
    with run.updater.sampling():
        sampled = [
            sample_batch(run, images[start : start + size], start, negative)
            for start in range(0, len(images), size)
        ]
    times["rollout"] = time.perf_counter() - begin
    begin = time.perf_counter()
    scores = collect(run, [item.pending for item in sampled])
    times["score_wait"] = time.perf_counter() - begin
    begin = time.perf_counter()
    names = [term.name for term in settings.rewards.train]
    found = advantages(
        {name: scores.values[name] for name in names},
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
    )
    updates = _update(
        run,
        sampled,
        share=len(images),
        values=found.values,
        valid=found.valid,
        negative=negative,
    )
    times["train"] = time.perf_counter() - begin
    total = len(scores.values[names[0]])
    return {
        "kind": "train",
        "epoch": epoch + 1,
        "updates": run.progress.updates,
        "reward": {name: _mean(scores.values[name]) for name in names},
        "categories": _by_category(run, prompts, scores.values[names[0]]),
        "advantage": dict(found.stats),
        "failed": int((~found.valid).sum()),
        "errors": dict(scores.errors),
        **_combine_updates(updates),
        "seconds": {**times, "total": sum(times.values())},
        "images": total,
        "images_per_s": total / sum(times.values()),
    }


def sample_batch(
    run: Run, images: Sequence[Draw], number: int, negative: Conditioning | None
) -> Sampled:
    """Sample and decode one batch, and ask for its scores."""
    settings, epoch = run.settings, run.progress.epoch
    side = settings.sampling.resolution_px
    chosen = [run.train[image.prompt] for image in images]
    cond = run.model.encode_prompts([prompt.text for prompt in chosen])
    batch = rollout(
        run.model,
        cond,
        [image.key for image in images],
        run.updater.config,
        latent_shape=run.model.latent_shape(side, side),
        window=draw_window(
            run.updater.config, settings.run.seed, epoch, number + run.world.rank * 1_000_003
        ),
        negative=negative,
    )
    pending = run.service.submit(
        run.model.decode(batch.final).uint8,
        chosen,
        settings.rewards.train,
        tag=f"e{epoch}-r{run.world.rank}-{number}",
    )
    return Sampled(batch, cond, pending)


def collect(run: Run, pending: Sequence[Any]) -> Scores:
    """The epoch's scores of all processes, in the order of the images.

    Raises:
        ServiceError: on every process, if any process lost the service or too much failed.
    """
    try:
        mine: Scores | TrainerError = merge([future.result() for future in pending])
    except TrainerError as error:
        mine = error
    parts = run.world.gather(mine)
    for part in parts:
        if isinstance(part, TrainerError):
            raise part
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


def _update(
    run: Run,
    sampled: Sequence[Sampled],
    *,
    share: int,
    values: Any,
    valid: Any,
    negative: Conditioning | None,
) -> list[dict[str, float]]:
    device = run.model.device
    offset = run.world.rank * share
    micros = []
    for item in sampled:
        rows = slice(offset, offset + len(item.batch))
        micros.append(
            TrainBatch(
                item.batch,
                item.cond,
                torch.as_tensor(values[rows], dtype=torch.float32, device=device),
                torch.as_tensor(valid[rows], device=device),
                negative,
            )
        )
        offset += len(item.batch)
    out = []
    for metrics in run.updater.epoch(micros, epoch=run.progress.epoch):
        run.progress.updates = run.updater.updates
        if run.ema is not None:
            run.ema.update(run.updater.updates)
        out.append(metrics)
    return out


def _combine_updates(updates: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Means over the updates of an epoch; what the first one alone shows is named so."""
    names = {name for metrics in updates for name in metrics}
    policy = {name: float(np.mean([m[name] for m in updates if name in m])) for name in names}
    for name in ("ratio_max", "ratio_deviation"):
        if name in policy:
            policy[name] = max(m[name] for m in updates if name in m)
    first = updates[0].get("ratio_deviation")
    return {"first_ratio_deviation": first, "policy": dict(sorted(policy.items()))}


def _by_category(run: Run, prompts: Sequence[int], values: Any) -> dict[str, float | None]:
    size = run.settings.batch.images_per_prompt
    groups: dict[str, list[float]] = {}
    for number, prompt in enumerate(prompts):
        category = run.train[prompt].group or "all"
        groups.setdefault(category, []).extend(values[number * size : (number + 1) * size])
    return {name: _mean(np.array(column)) for name, column in sorted(groups.items())}


def _mean(values: Any) -> float | None:
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if kept.size else None


def _negative(run: Run) -> Conditioning | None:
    if run.settings.sampling.guidance_scale == 1.0:
        return None
    return run.model.encode_prompts([run.settings.sampling.negative_prompt])


def _evaluation_due(run: Run) -> bool:
    every, progress = run.settings.eval, run.progress
    by_epoch = every.every_epochs > 0 and progress.epoch % every.every_epochs == 0
    since_s = progress.elapsed_s - progress.evaluated_s
    by_time = every.every_minutes > 0 and since_s >= every.every_minutes * 60
    # The final evaluation follows at once otherwise.
    return run.world.broadcast((by_epoch or by_time) and not _over_now(run))


def _over_now(run: Run) -> bool:
    return bool(out_of_budget(run.settings, run.progress))


def averaged(run: Run) -> AbstractContextManager[None]:
    """Inside, the model has the weights that are evaluated and saved."""
    return nullcontext() if run.ema is None else run.ema.swap()


def evaluate(run: Run, phase: str) -> Evaluation:
    """Evaluate the averaged weights on held-out prompts, and write the row and the images.

    Args:
        run: the run.
        phase: `base`, `curve` or `final`.
    """
    settings = run.settings.eval
    full = phase != "curve"
    begin = time.perf_counter()
    shown = spread(run.test, settings.samples_shown) if settings.samples_shown else []
    count = settings.num_prompts if full else settings.curve_num_prompts or settings.num_prompts
    with averaged(run):
        found = evaluate_run(
            run.model,
            run.test,
            run.service,
            run.settings,
            run.world,
            indices=sorted({*spread(run.test, count), *shown}),
            images_per_prompt=(
                settings.images_per_prompt if full else settings.curve_images_per_prompt
            ),
            shown=shown,
            tag=f"{phase}-{run.progress.epoch}",
        )
    progress = run.progress
    progress.evaluated_epoch, progress.evaluated_s = progress.epoch, progress.elapsed_s
    headline = found.metrics[metric_terms(run.settings)[0].name]["mean"]
    if headline is not None and (progress.best is None or headline > progress.best):
        progress.best, progress.best_epoch = headline, progress.epoch
    samples = f"samples/{phase}_{progress.epoch:06d}.png"
    row = {
        "kind": "eval",
        "phase": phase,
        "epoch": progress.epoch,
        "updates": progress.updates,
        "train_minutes": progress.elapsed_s / 60,
        "metrics": dict(found.metrics),
        "watch": dict(found.watch),
        "failed": found.failed,
        "errors": dict(found.errors),
        "images": found.images,
        "samples": samples if shown else None,
        "shown": [run.test[index].text for index in shown],
        "seconds": time.perf_counter() - begin,
    }
    if run.world.is_main and shown:
        pixels = sheet([found.shown[index] for index in shown], columns=len(shown))
        save_png(run.run_dir / samples, pixels)
        if run.log is not None:
            run.log.image("samples", pixels, progress.epoch)
    write(run, row)
    run.say(evaluation_line(row))
    return found


def write(run: Run, row: Mapping[str, Any]) -> None:
    """Append a row to the metrics and count it."""
    if run.log is not None:
        run.log.write(row)
        run.progress.metrics_lines = run.log.lines


def save(run: Run) -> Path:
    """Write a checkpoint of the state between two epochs."""
    states = run.world.gather(checkpoints.random_state())
    target = run.run_dir / checkpoints.FOLDER / checkpoints.name_of(run.progress.epoch)
    if run.world.is_main:
        tensors = {
            "trained": dict(run.updater.parameters),
            "optimizer": checkpoints.optimizer_tensors(
                run.updater.optimizer, run.updater.parameters
            ),
            "rng": {f"{r}|{k}": v for r, state in enumerate(states) for k, v in state.items()},
        }
        averages = {"ema": run.ema, "old": run.updater.old}
        for name, average in averages.items():
            if average is not None:
                tensors[name] = average.state_dict()
        progress = {
            **asdict(run.progress),
            "world_size": run.world.size,
            "settings": run.settings.model_dump(mode="json"),
        }
        target = checkpoints.save(
            run.run_dir,
            checkpoints.Checkpoint(progress, tensors),
            keep=run.settings.run.keep_checkpoints,
        )
    run.world.barrier()
    return target


def epoch_line(run: Run, row: Mapping[str, Any]) -> str:
    """One readable line per epoch."""
    rewards = "  ".join(f"{n} {_text(v)}" for n, v in row["reward"].items())
    policy = row["policy"]
    parts = [
        f"epoch {row['epoch']:>4}/{run.settings.run.epochs}",
        f"{row['train_minutes']:5.1f} min",
        rewards,
        f"kl {_text(policy.get('kl'), 4)}",
        f"clip {_text(_sum(policy, 'clip_frac_low', 'clip_frac_high'))}",
        f"flat groups {_text(row['advantage']['zero_std_groups'], 2)}",
        "{rollout:.1f}+{score_wait:.1f}+{train:.1f} s".format(**row["seconds"]),
        f"{row['images_per_s']:.1f} img/s",
    ]
    if row["failed"]:
        parts.append(f"{row['failed']} failed")
    return "  ".join(parts)


def evaluation_line(row: Mapping[str, Any]) -> str:
    """One readable line per evaluation."""
    values = "  ".join(
        f"{name} {_text(value['mean'])} [{_text(value['low'])}, {_text(value['high'])}]"
        for name, value in {**row["metrics"], **row["watch"]}.items()
    )
    return f"evaluation ({row['phase']}, epoch {row['epoch']}, {row['images']} images)  {values}"


def _sum(table: Mapping[str, float], *names: str) -> float | None:
    return sum(table[name] for name in names) if all(name in table for name in names) else None


def _text(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
