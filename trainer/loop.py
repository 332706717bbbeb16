"""The one loop: sample -> score -> advantage -> update -> evaluate -> save.

`trainer.epoch` is one round of the first four; this file decides when to evaluate, save and stop.
"""

import time
from typing import Any

from trainer.alarms import Rules, active, as_rows
from trainer.console import epoch_line, evaluation_line
from trainer.epoch import train_epoch
from trainer.errors import ServiceError, ServiceLost
from trainer.eval_plan import spread
from trainer.grids import save_png, sheet, strip
from trainer.held_out import Evaluation, evaluate_run, metric_terms
from trainer.metrics import read
from trainer.monitor import judge
from trainer.run import Run, averaged, save, write
from trainer.run_state import out_of_budget


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
    return run.world.broadcast(out_of_budget(run.settings, run.progress) or run.alarmed)


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
    run.say(epoch_line(row, run.settings.run.epochs))
    if _evaluation_due(run):
        evaluate(run, "curve")
        tick()
    if run.progress.epoch % run.settings.run.save_every_epochs == 0:
        save(run)
        tick()


def _evaluation_due(run: Run) -> bool:
    every, progress = run.settings.eval, run.progress
    by_epoch = every.every_epochs > 0 and progress.epoch % every.every_epochs == 0
    since_s = progress.elapsed_s - progress.evaluated_s
    by_time = every.every_minutes > 0 and since_s >= every.every_minutes * 60
    # The final evaluation follows at once otherwise.
    return run.world.broadcast((by_epoch or by_time) and not _over_now(run))


def _over_now(run: Run) -> bool:
    return bool(out_of_budget(run.settings, run.progress))


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
        "rewards": dict(found.rewards),
        "watch": dict(found.watch),
        "outputs": dict(found.outputs),
        **({} if found.kl is None else {"kl": dict(found.kl)}),
        "failed": found.failed,
        "errors": dict(found.errors),
        "scorers": {name: list(seen) for name, seen in found.scorers.items()},
        "images": found.images,
        "samples": samples if shown else None,
        "shown": [run.test[index].text for index in shown],
        "seconds": time.perf_counter() - begin,
    }
    if run.world.is_main and shown:
        pixels = sheet([strip(found.shown[index]) for index in shown], columns=len(shown))
        save_png(run.run_dir / samples, pixels)
        if run.log is not None:
            run.log.image("samples", pixels, progress.epoch)
    _judge(run, row)
    return found


def _judge(run: Run, row: dict[str, Any]) -> None:
    """Write an evaluation's row with the alarms of the run, and say what is new."""
    rules = Rules.of(run.settings)
    # The main process has the metrics; what it decides holds for all.
    judged = judge(read(run.run_dir), row, rules) if run.world.is_main else None
    found, lines = run.world.broadcast(judged)
    write(run, {**row, "alarms": as_rows(active(found))})
    for line in (evaluation_line(row), *lines):
        run.say(line)
    begun = [alarm for alarm in active(found) if alarm.epoch == row["epoch"]]
    if begun and run.settings.run.stop_on_alarm:
        run.alarmed = f"alarm: {begun[0].name} fell"
