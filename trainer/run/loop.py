"""The one loop: sample -> score -> advantage -> update -> evaluate -> save.

`trainer.run.epoch` is one round of the first four; this file decides when to evaluate, save and
stop. Every decision is a function of the settings and the `Progress`, so that a resumed run takes
the same ones.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Literal

import numpy as np

from trainer.errors import ServiceError, ServiceLost, Stopped
from trainer.evaluation.alarms import Rules, active, beyond, judge
from trainer.evaluation.held_out import Evaluation, evaluate_run
from trainer.evaluation.sampling import spread
from trainer.images import load_reference, save_png, sheet, strip
from trainer.parallel.world import shared
from trainer.run import checkpoint as checkpoints
from trainer.run import controller
from trainer.run.epoch import train_epoch
from trainer.run.log import epoch_line, evaluation_line, read
from trainer.run.progress import out_of_budget
from trainer.run.resume import restore_learnt
from trainer.run.scores import check_failures
from trainer.run.state import Run, averaged, check_stop, save, write
from trainer.run.storage import storing
from trainer.run.tensors import random_state, restore_random_state
from trainer.terminal import EPOCHS
from trainer.types import Prompt


def train(run: Run) -> str:
    """Run until the budget is used up or someone asks to stop.

    Returns:
        Why the run is over, or an empty text if it was asked to stop; it is saved then, unless
        the base model was still being evaluated.

    Raises:
        ServiceLost: the service went away; the run is saved.
        StorageError: something could not be written; the checkpoints before are whole.
        PeerLost: another process is gone; the checkpoints before are whole.
    """
    try:
        return _train(run)
    except Stopped:
        if run.progress.based:
            save(run)
        return ""
    except ServiceError as error:
        if not run.progress.based:
            raise
        place = save(run)
        text = f"{error}; the run is saved in {place}: the same command resumes it"
        raise shared(ServiceLost(text)) from error


def _train(run: Run) -> str:
    if not run.progress.based:
        evaluate(run, "base")
        run.progress.based = True
        save(run)
    # A run that ended before its evaluation, or that was finished and now goes on.
    _evaluate_if_due(run)
    _rewind(run)
    while not (reason := _over(run)):
        check_stop(run)
        _epoch(run)
        improved = _evaluate_if_due(run)
        if improved or run.progress.epoch % run.settings.run.save_every_epochs == 0:
            with _counted(run):
                save(run)
        _rewind(run)
    save(run)
    evaluate(run, "final")
    run.world.on_main(lambda: _mark_best(run))
    return reason


def _rewind(run: Run) -> None:
    """Put back the checkpoint that an alarm has decided on.

    The decision is in the checkpoint before it: a run that is killed here decides nothing anew.
    """
    controls = run.progress.controls
    if controls.rewind_to is None:
        return
    name = checkpoints.name_of(controls.rewind_to)
    stored = run.world.on_main(lambda: checkpoints.find(run.run_dir, name))
    restore_learnt(stored, run.updater, run.ema)
    run.progress.controls = replace(controls, rewind_to=None)


def _mark_best(run: Run) -> None:
    if run.progress.best is not None:
        with storing(f"{run.run_dir / checkpoints.FOLDER / checkpoints.BEST}"):
            checkpoints.mark_best(run.run_dir, run.progress.best_epoch)


def _over(run: Run) -> str:
    # Clocks differ between processes; the main one decides.
    return run.world.broadcast(out_of_budget(run.settings, run.progress) or run.progress.alarmed)


@contextmanager
def _counted(run: Run) -> Iterator[None]:
    """The seconds inside belong to the time budget."""
    started, before = time.perf_counter(), run.progress.elapsed_s
    yield
    run.progress.elapsed_s = before + time.perf_counter() - started


def _epoch(run: Run) -> None:
    before = random_state()
    try:
        with _counted(run):
            row = train_epoch(run)
    except (ServiceError, Stopped):
        # What is saved now is the state before this epoch, which will be repeated.
        restore_random_state(before)
        raise
    run.progress.epoch += 1
    row["train_minutes"] = run.progress.elapsed_s / 60
    write(run, row)
    epochs, first = run.settings.run.epochs, run.settings.rewards.train[0].name
    run.say(epoch_line(row, epochs))
    run.show(EPOCHS, run.progress.epoch, epochs, row["reward"][first])


def _evaluate_if_due(run: Run) -> bool:
    """Evaluate where the settings ask for it; whether its checkpoint is to be kept."""
    if not _evaluation_due(run):
        return False
    with _counted(run):
        evaluate(run, "curve")
    here = run.progress.epoch
    return here in (run.progress.best_epoch, run.progress.controls.safe_epoch)


def _evaluation_due(run: Run) -> bool:
    every, progress = run.settings.eval, run.progress
    if progress.evaluated_epoch == progress.epoch:
        return False
    by_epoch = every.every_epochs > 0 and progress.epoch % every.every_epochs == 0
    since_s = progress.elapsed_s - progress.evaluated_s
    by_time = every.every_minutes > 0 and since_s >= every.every_minutes * 60
    # The final evaluation follows at once otherwise.
    over = bool(out_of_budget(run.settings, progress))
    return run.world.broadcast((by_epoch or by_time) and not over)


def evaluate(run: Run, phase: Literal["base", "curve", "final"]) -> Evaluation:
    """Evaluate the averaged weights on held-out prompts, and write the row and the images."""
    settings = run.settings.eval
    full = phase != "curve"
    begin = time.perf_counter()
    shown = spread(run.test, settings.samples_shown) if settings.samples_shown else []
    examine = partial(
        evaluate_run,
        run.model,
        run.test,
        run.service,
        run.settings,
        run.world,
        indices=sorted({*spread(run.test, settings.num_prompts), *shown}),
        images_per_prompt=settings.images_per_prompt if full else settings.curve_images_per_prompt,
        stop=run.stop,
        show=lambda done, total: run.show(f"evaluating {phase}", done, total),
    )
    tag = f"{phase}-{run.progress.epoch}"
    with averaged(run):
        found = examine(shown=shown, tag=tag)
        sampled = settings.training_sampler and full
        trained = examine(tag=f"{tag}-training", training_sampler=True) if sampled else None
    # An evaluation without scores is not written down as one.
    scored = min(value["n"] for value in found.metrics.values())
    failed = 1 - scored / max(found.images, 1)
    check_failures(run.settings, failed, found.errors, "an evaluation")
    progress = run.progress
    progress.evaluated_epoch, progress.evaluated_s = progress.epoch, progress.elapsed_s
    headline = found.metrics[run.settings.measured[0].name]["mean"]
    if controller.better(run.settings, headline, progress.best):
        progress.best, progress.best_epoch = headline, progress.epoch
    samples = f"samples/{phase}_{progress.epoch:06d}.png"
    row = {
        "kind": "eval",
        "phase": phase,
        "epoch": progress.epoch,
        "updates": progress.updates,
        "train_minutes": progress.elapsed_s / 60,
        **found.row(),
        "samples": samples if shown else None,
        "shown": [run.test[index].text for index in shown],
        "shown_scores": [found.shown_scores.get(index) for index in shown],
        "prompts": run.prompts.get("test", ""),
        **_named([run.test[index] for index in shown]),
        **({"training_sampler": trained.metrics} if trained else {}),
        "seconds": time.perf_counter() - begin,
    }
    if shown:
        run.world.on_main(lambda: _keep_samples(run, found, shown, samples))
    _judge(run, row)
    return found


def _named(prompts: Sequence[Prompt]) -> dict[str, list[list[str]]]:
    """The files that prompts are about, for the report; nothing where there are none."""
    files = [[str(reference.path) for reference in prompt.references] for prompt in prompts]
    return {"references": files} if any(files) else {}


def _keep_samples(run: Run, found: Evaluation, shown: Sequence[int], samples: str) -> None:
    """Write the first images of prompts, below the pictures that the prompts are about."""
    height, width, _ = run.settings.sampling.size
    rows = zip(*(run.test[index].references for index in shown), strict=True)
    named = [reference for row in rows for reference in row]
    strips = [strip(found.shown[index]) for index in shown]
    # A source is as large as a frame: it stands above the first one of its video.
    sources = [np.asarray(load_reference(one.path, (width, height))) for one in named]
    right = ((0, 0), (0, strips[0].shape[1] - width), (0, 0))
    cells = [*(np.pad(source, right, constant_values=255) for source in sources), *strips]
    pixels = sheet(cells, columns=len(shown))
    with storing(f"samples {run.run_dir / samples}"):
        save_png(run.run_dir / samples, pixels)
        if run.log is not None:
            run.log.image("samples", pixels, run.progress.epoch)


def _judge(run: Run, row: dict[str, Any]) -> None:
    """Write an evaluation's row with the alarms of the run and what is done about them."""
    rules = Rules.of(run.settings)
    # The main process has the metrics; what it decides holds for all.
    judged = judge(read(run.run_dir), row, rules) if run.world.is_main else None
    found, lines = run.world.broadcast(judged)
    lines = [evaluation_line(row), *lines]
    row = {**row, "alarms": [asdict(alarm) for alarm in active(found)]}
    # The base has nothing to act about, and after the final evaluation nothing is trained.
    if row["phase"] != "final":
        settings, progress = run.settings, run.progress
        headline = row["metrics"][settings.measured[0].name]["mean"]
        clean = rules.decides(row) and not active(found)
        controls = controller.remember(
            settings, progress.controls, progress.epoch, headline, clean=clean
        )
        falls = beyond(found, row, rules)
        progress.controls, action = controller.decide(settings, controls, falls, progress.epoch)
        if action is not None:
            row["action"] = asdict(action)
            lines.append(f"action: {controller.text(action, settings.alarm.max_actions)}")
            if action.kind == "stop":
                progress.alarmed = f"alarm: {action.causes[0]} fell"
    write(run, row)
    for line in lines:
        run.say(line)
