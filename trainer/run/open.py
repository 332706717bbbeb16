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
from trainer.errors import CheckpointError
from trainer.models.network import SHOWN_CHARS, base_fingerprint
from trainer.models.precision import resolve
from trainer.parallel.sharding import parallel, prepare_networks, whole
from trainer.parallel.world import World, setup_torch
from trainer.rewards import RewardService, connect
from trainer.run import checkpoint as checkpoints
from trainer.run.inputs import encode_all, load_model, load_prompts
from trainer.run.log import METRICS, MetricsLog, read, versions, write_json
from trainer.run.loop import train
from trainer.run.progress import (
    RESULT,
    Progress,
    check_same,
    finished,
    locked,
    reopen,
    write_resolved,
)
from trainer.run.state import Run, averaged
from trainer.run.storage import storing
from trainer.run.trial import trial
from trainer.run.update import Updater
from trainer.scores import newest, take_note
from trainer.types import Prompt


def check_world(settings: Settings, before: int, world: World, say: Callable[[str], None]) -> None:
    """Refuse to go on with another number of processes, unless that is wanted.

    Raises:
        CheckpointError: the numbers differ.
    """
    if before == world.size:
        return
    text = f"the checkpoint was written by {before} process(es), this run has {world.size}"
    if not settings.run.any_world_size:
        raise CheckpointError(
            f"{text}: start {before}, or accept numbers that are rounded differently with "
            "--set run.any_world_size=true"
        )
    say(f"warning: {text}; from here on sums are rounded differently")


def check_base(settings: Settings, before: str | None, now: str) -> None:
    """Refuse to go on from other weights than those that the run started from.

    Args:
        settings: the run's settings.
        before: `base_fingerprint` in the checkpoint; None in those of versions without it.
        now: that of the model as it was loaded now.

    Raises:
        CheckpointError: they differ.
    """
    if before not in (None, now):
        raise CheckpointError(
            f"model.path={settings.model.path} has other weights than this run started from "
            f"(fingerprint {now[:SHOWN_CHARS]}, not {before[:SHOWN_CHARS]}); {checkpoints.REMEDY}"
        )


def check_prompts(settings: Settings, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse to go on with other prompts: noise, memory and curves belong to their numbers.

    Args:
        settings: the run's settings.
        before: the fingerprints in the checkpoint, by list; empty in those of versions without.
        now: those of the files as they were read now.

    Raises:
        CheckpointError: they differ.
    """
    for name, seen in now.items():
        if before.get(name, seen) != seen:
            raise CheckpointError(
                f"task.{name}={getattr(settings.task, name)} holds other prompts than when this "
                "run began: put the file back as it was, or start another run with "
                "--set run.out_dir="
            )


def restore(
    stored: checkpoints.Checkpoint, updater: Updater, ema: Ema | None, world: World
) -> Progress:
    """Put a checkpoint into the optimiser, the average, the weights and the generators.

    Raises:
        CheckpointError: it belongs to another model.
    """
    checkpoints.restore_parameters(updater.parameters, stored.tensors["trained"])
    checkpoints.restore_optimizer(
        updater.optimizer, updater.parameters, stored.tensors.get("optimizer", {})
    )
    for name, average in (("ema", ema), ("old", updater.old)):
        if average is not None:
            checkpoints.restore_parameters(average.values, stored.tensors[name])
    prefix = f"{world.rank}|"
    random_state = {
        name.removeprefix(prefix): value
        for name, value in stored.tensors["rng"].items()
        if name.startswith(prefix)
    }
    # A process that was not there before has no state to go back to.
    if random_state:
        checkpoints.restore_random_state(random_state)
    if updater.scaler is not None:
        updater.scaler.restore(stored.tensors["scaler"])
    progress = Progress.read(stored.progress)
    updater.updates = progress.updates
    return progress


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a call of `train_run` ended.

    Attributes:
        run_dir: folder of the run.
        reason: the budget that is used up; empty if the run was asked to stop before.
        epoch: how many epochs are done and saved.
        already: the run had been finished before.
    """

    run_dir: Path
    reason: str
    epoch: int
    already: bool = False


Connect = Callable[[RewardSettings], RewardService]


def train_run(
    settings: Settings,
    *,
    environment: Mapping[str, str] | None = None,
    open_service: Connect | None = None,
    say: Callable[[str], None] = print,
    stop: Callable[[], object] = lambda: False,
) -> Outcome:
    """Start or resume the run in `run.out_dir`, and train until its budget is used up.

    Args:
        settings: checked settings.
        environment: process environment (torchrun's variables).
        open_service: makes the connection (tests pass one without a network); by default to
            rewards.url, with the key and certificates of the environment.
        say: prints one line.
        stop: whether to save and stop; asked between batches of images and while waiting.

    Raises:
        TrainerError: everything that a user can mend, in one line.
    """
    run_dir = Path(settings.run.out_dir)
    environment = os.environ if environment is None else environment
    device = setup_torch(
        settings.run.device,
        threads=settings.run.threads,
        deterministic=settings.run.deterministic,
        tf32=settings.run.tf32,
    )
    rewards = settings.rewards
    late_s = settings.run.peer_timeout_s + rewards.patience_s + rewards.deadline_s
    world = World.join(environment, device.type, timeout_s=late_s)
    opener = open_service or (lambda rewards: connect(rewards, environment))
    quiet = say if world.is_main else lambda text: None
    try:
        with _held(run_dir, world, quiet):
            result = world.on_main(lambda: finished(run_dir, settings))
            if result is not None:
                return Outcome(run_dir, str(result["reason"]), int(result["epoch"]), already=True)
            with opened(
                settings,
                run_dir=run_dir,
                world=world,
                device=device,
                open_service=opener,
                say=quiet,
                stop=stop,
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
def _held(run_dir: Path, world: World, say: Callable[[str], None]) -> Iterator[None]:
    with ExitStack() as stack:

        def hold() -> None:
            stack.enter_context(locked(run_dir, say))

        world.on_main(hold)
        yield


def _scorers(
    service: RewardService, settings: Settings, prompts: Sequence[Prompt], world: World
) -> dict[str, str]:
    """The fingerprints of the scorers, which take what this run will send."""
    scorers = world.everywhere(lambda: service.check(settings.terms))
    world.on_main(lambda: trial(service, settings, prompts))
    return scorers


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
) -> Iterator[Run]:
    """Make a `Run`, resumed if there is a checkpoint; close what it holds at the end."""
    geometry(settings, world.size)
    train_prompts, test_prompts = load_prompts(settings, say)
    probabilities = category_probabilities(train_prompts, settings.task.category_weights)
    prompts = {"train": fingerprint(train_prompts), "test": fingerprint(test_prompts)}
    service = open_service(settings.rewards)
    log: MetricsLog | None = None
    try:
        scorers = _scorers(service, settings, [*train_prompts, *test_prompts], world)
        stored, warnings = world.on_main(lambda: checkpoints.load_latest(run_dir))
        for line in warnings:
            say(f"warning: {line}; going back to the checkpoint before it")
        if stored is not None:
            check_same(settings, stored.progress["settings"], run_dir)
            check_prompts(settings, stored.progress.get("prompts", {}), prompts)
            check_world(settings, stored.progress["world_size"], world, say)
        world.on_main(lambda: write_resolved(run_dir, settings, versions(), scorers))
        sharded = parallel(settings, world.size, device) == "fsdp"
        model = world.everywhere(lambda: load_model(settings, device, parked=sharded))
        base = base_fingerprint(model.networks())
        if stored is not None:
            before = stored.progress.get("base")
            world.everywhere(lambda: check_base(settings, before, base))
        half = resolve(settings.model.dtype, device)
        world.everywhere(lambda: prepare_networks(model, settings, world, half))
        updater = Updater(model, settings, world)
        average = settings.ema
        ema = (
            Ema(updater.parameters, average.decay, average.every_updates)
            if average.enabled
            else None
        )
        progress = Progress() if stored is None else restore(stored, updater, ema, world)
        rows = world.on_main(lambda: read(run_dir)[: progress.metrics_lines])
        known = newest(rows)
        if len(rows) < progress.metrics_lines:
            say(
                f"warning: {run_dir / METRICS} has lost lines: {len(rows)} of "
                f"{progress.metrics_lines} are left; curves and report will lack them"
            )
        if stored is not None:
            say(f"resuming {run_dir} after epoch {progress.epoch}")
            for warning in take_note(known, {name: [seen] for name, seen in scorers.items()}):
                say(warning)

        def open_log() -> None:
            nonlocal log
            with storing(f"metrics in {run_dir}"):
                log = MetricsLog(
                    run_dir,
                    settings,
                    keep_lines=progress.metrics_lines,
                    first_epoch=progress.epoch,
                    say=say,
                )

        world.on_main(open_log)
        texts = [prompt.text for prompt in (*train_prompts, *test_prompts)]
        encode_all(model, [*texts, settings.sampling.negative_prompt], settings, say)
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
            scorers={**known, **scorers},
            base=base,
            prompts=prompts,
        )
    finally:
        if log is not None:
            log.close()
        service.close()


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
