"""Open a run: check data and service, load the model, resume where a checkpoint is."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.algorithm.ema import Ema
from trainer.config.load import geometry
from trainer.config.settings import RewardSettings, Settings
from trainer.data import category_probabilities, fingerprint
from trainer.models.model import FlowModel
from trainer.models.network import base_fingerprint
from trainer.models.precision import resolve
from trainer.parallel.sharding import parallel, prepare_networks, whole
from trainer.parallel.world import World, setup_torch
from trainer.rewards import RewardService, connect
from trainer.run import shards
from trainer.run.checkpoint import Checkpoint
from trainer.run.inputs import encode_all, load_model, load_prompts
from trainer.run.log import METRICS, MetricsLog, read, versions, write_json
from trainer.run.loop import train
from trainer.run.progress import RESULT, Progress, finished, locked, reopen, write_resolved
from trainer.run.record import Recorder
from trainer.run.resume import check_base, restore, resumable
from trainer.run.shards import FOLDER
from trainer.run.state import Run, averaged
from trainer.run.storage import storing
from trainer.run.trial import trial
from trainer.run.update import Updater
from trainer.scores import newest, take_note
from trainer.terminal import Show, silent
from trainer.types import Prompt


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call of `train_run` ended."""

    run_dir: Path
    reason: str  # the budget that is used up; empty if the run was asked to stop before
    epoch: int  # epochs that are done and saved
    already: bool = False  # the run had been finished before


Connect = Callable[[RewardSettings], RewardService]


def train_run(
    settings: Settings,
    *,
    environment: Mapping[str, str] | None = None,
    open_service: Connect | None = None,
    say: Callable[[str], None] = print,
    stop: Callable[[], object] = lambda: False,
    show: Show = silent,
) -> Outcome:
    """Start or resume the run in `run.out_dir`, and train until its budget is used up.

    `environment` has torchrun's variables and what the client reads. `stop` is asked between
    batches of images and while waiting. Tests pass an `open_service` without a network.

    Raises:
        TrainerError: everything that a user can mend, in one line.
    """
    run_dir, rewards = Path(settings.run.out_dir), settings.rewards
    environment = os.environ if environment is None else environment
    device = setup_torch(settings.run)
    late_s = settings.run.peer_timeout_s + rewards.patience_s + rewards.deadline_s
    world = World.join(environment, device.type, timeout_s=late_s)
    quiet = say if world.is_main else lambda text: None
    try:
        with ExitStack() as held:
            world.on_main(lambda: held.enter_context(locked(run_dir, quiet)))
            result = world.on_main(lambda: finished(run_dir, settings))
            if result is not None:
                return Outcome(run_dir, str(result["reason"]), int(result["epoch"]), already=True)
            with opened(
                settings,
                run_dir=run_dir,
                world=world,
                device=device,
                open_service=open_service or (lambda rewards: connect(rewards, environment)),
                say=quiet,
                stop=stop,
                show=show if world.is_main else silent,
            ) as run:
                if world.on_main(lambda: reopen(run_dir)):
                    # A run that an alarm has ended goes on when it is started again.
                    run.progress.alarmed = ""
                reason = train(run)
                if reason:
                    _finish(run, reason)
        return Outcome(run_dir, reason, run.progress.epoch)
    finally:
        world.leave()


@contextmanager
def opened(
    settings: Settings,
    *,
    run_dir: Path,
    world: World,
    device: torch.device,
    open_service: Connect,
    say: Callable[[str], None],
    stop: Callable[[], object],
    show: Show = silent,
) -> Iterator[Run]:
    """Make a `Run`, resumed if there is a checkpoint; close what it holds at the end."""
    geometry(settings, world.size)
    train_prompts, test_prompts = load_prompts(settings, say)
    every_prompt = [*train_prompts, *test_prompts]
    probabilities = category_probabilities(train_prompts, settings.task.category_weights)
    prompts = {"train": fingerprint(train_prompts), "test": fingerprint(test_prompts)}
    with ExitStack() as stack:
        service = open_service(settings.rewards)
        stack.callback(service.close)
        scorers = world.everywhere(lambda: service.check(settings.terms))
        world.on_main(lambda: trial(service, settings, every_prompt))
        stored = resumable(run_dir, settings, prompts, world, say)
        world.on_main(lambda: write_resolved(run_dir, settings, versions(), scorers))
        show(f"loading {settings.model.path}", 0, 0)
        model, base = _model(settings, stored, world, device)
        updater = Updater(model, settings, world)
        ema = None
        if settings.ema.enabled:
            ema = Ema(updater.parameters, settings.ema.decay, settings.ema.every_updates)
        progress = Progress() if stored is None else restore(stored, updater, ema, world)
        known = newest(_metrics(run_dir, progress, world, say))
        if stored is not None:
            say(f"resuming {run_dir} after epoch {progress.epoch}")
            for warning in take_note(known, {name: [seen] for name, seen in scorers.items()}):
                say(warning)
        log = world.everywhere(lambda: _open_log(run_dir, settings, progress, world, say))
        if log is not None:
            stack.callback(log.close)
        recorder = _open_recorder(run_dir, settings, train_prompts, progress, world, say)
        if recorder is not None:
            stack.callback(recorder.close)
        show("encoding prompts", 0, 0)
        encode_all(model, every_prompt, settings, say)
        yield Run(
            settings=settings,
            run_dir=run_dir,
            world=world,
            model=model,
            updater=updater,
            ema=ema,
            service=service,
            train=train_prompts,
            probabilities=probabilities,
            test=test_prompts,
            progress=progress,
            log=log,
            say=say,
            stop=stop,
            show=show,
            scorers={**known, **scorers},
            base=base,
            prompts=prompts,
            recorder=recorder,
        )


def _model(
    settings: Settings, stored: Checkpoint | None, world: World, device: torch.device
) -> tuple[FlowModel, str]:
    """The model, ready to be trained, and the fingerprint of the weights as they were loaded."""
    sharded = parallel(settings, world.size, device) == "fsdp"
    model = world.everywhere(lambda: load_model(settings, device, parked=sharded))
    base = base_fingerprint(model.networks())
    if stored is not None:
        before = stored.progress.get("base")
        world.everywhere(lambda: check_base(settings, before, base))
    half = resolve(settings.model.dtype, device)
    world.everywhere(lambda: prepare_networks(model, settings, world, half))
    return model, base


def _metrics(
    run_dir: Path, progress: Progress, world: World, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl` that belong to the state of the run."""
    rows = world.on_main(lambda: read(run_dir)[: progress.metrics_lines])
    if len(rows) < progress.metrics_lines:
        say(
            f"warning: {run_dir / METRICS} has lost lines: {len(rows)} of "
            f"{progress.metrics_lines} are left; curves and report will lack them"
        )
    return rows


def _open_log(
    run_dir: Path, settings: Settings, progress: Progress, world: World, say: Callable[[str], None]
) -> MetricsLog | None:
    if not world.is_main:
        return None
    with storing(f"metrics in {run_dir}"):
        return MetricsLog(
            run_dir,
            settings,
            keep_lines=progress.metrics_lines,
            first_epoch=progress.epoch,
            say=say,
        )


def _open_recorder(
    run_dir: Path,
    settings: Settings,
    train: Sequence[Prompt],
    progress: Progress,
    world: World,
    say: Callable[[str], None],
) -> Recorder | None:
    def forget() -> None:
        with storing(f"{run_dir / FOLDER}"):
            shards.forget(run_dir, progress.epoch)

    world.on_main(forget)
    if settings.record.images == "none":
        return None
    return world.everywhere(lambda: Recorder(run_dir, settings, train, world, say))


def _finish(run: Run, reason: str) -> None:
    """Save the averaged weights for diffusers and mark the run as finished."""
    result: dict[str, Any] = {
        "reason": reason,
        "epoch": run.progress.epoch,
        "elapsed_s": run.progress.elapsed_s,
        "best": run.progress.best,
        "best_epoch": run.progress.best_epoch,
    }

    def on_main() -> None:
        with storing(f"the model in {run.run_dir}"):
            run.model.save(run.run_dir / "model", weights)
            write_json(run.run_dir / RESULT, result)

    with averaged(run):
        weights = whole(run.updater.parameters, keep=run.world.is_main)
        run.world.on_main(on_main)
