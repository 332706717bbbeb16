"""A run in memory: what the loop holds, and how its state reaches the disk."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from trainer.algorithm.ema import Ema
from trainer.config.settings import Settings
from trainer.errors import Stopped
from trainer.models.model import FlowModel
from trainer.parallel.sharding import whole
from trainer.parallel.world import World
from trainer.rewards import RewardService
from trainer.run import checkpoint as checkpoints
from trainer.run.log import MetricsLog
from trainer.run.progress import Progress
from trainer.run.record import Recorder
from trainer.run.storage import storing
from trainer.run.tensors import optimizer_tensors, random_state
from trainer.run.update import Updater
from trainer.scores import take_note
from trainer.terminal import Show, silent
from trainer.types import Prompt


@dataclass
class Run:
    """Everything the loop holds; made by `trainer.run.open.opened`."""

    settings: Settings
    run_dir: Path
    world: World
    model: FlowModel
    updater: Updater
    ema: Ema | None  # average of the trained weights
    service: RewardService
    train: Sequence[Prompt]
    probabilities: Sequence[float]  # how likely each training prompt is to be drawn
    test: Sequence[Prompt]  # held out
    progress: Progress
    log: MetricsLog | None  # on the main process
    say: Callable[[str], None]  # prints one line, on the main process
    stop: Callable[[], object]  # whether this process was asked to stop; asked between batches
    show: Show = silent  # on the main process
    scorers: dict[str, str] = field(default_factory=dict)  # fingerprints as last seen
    base: str = ""  # fingerprint of the weights that the run started from
    prompts: Mapping[str, str] = field(default_factory=dict)  # fingerprints of `train` and `test`
    recorder: Recorder | None = None


def averaged(run: Run) -> AbstractContextManager[None]:
    """Inside, the model has the weights that are evaluated and saved."""
    return nullcontext() if run.ema is None else run.ema.swap()


def write(run: Run, row: Mapping[str, Any]) -> None:
    """Append a row to the metrics and count it; say so if a scorer is not the one before."""
    for warning in take_note(run.scorers, row["scorers"]):
        run.say(warning)

    def append() -> int:
        if run.log is None:
            return run.progress.metrics_lines + 1
        with storing(f"metrics in {run.run_dir}"):
            run.log.write(row)
        return run.log.lines

    run.progress.metrics_lines = run.world.on_main(append)


def check_stop(run: Run) -> None:
    """Raise Stopped on every process if any was asked to stop; all processes have to call this."""
    if run.world.any(bool(run.stop())):
        raise Stopped("asked to stop")


def _tensors(run: Run) -> dict[str, Mapping[str, Tensor]]:
    """What a checkpoint holds, by file; shards where the model is sharded."""
    updater = run.updater
    tensors: dict[str, Mapping[str, Tensor]] = {
        "trained": updater.parameters,
        "optimizer": optimizer_tensors(updater.optimizer, updater.parameters),
    }
    for name, average in (("ema", run.ema), ("old", updater.old)):
        if average is not None:
            tensors[name] = average.values
    if updater.scaler.is_enabled():
        tensors["scaler"] = updater.scaler.state()
    return tensors


def save(run: Run) -> Path:
    """Write a checkpoint of the state between two epochs; all processes have to call this."""
    if run.recorder is not None:
        run.recorder.settle()
    states = run.world.gather(random_state())
    tensors = {name: whole(part, keep=run.world.is_main) for name, part in _tensors(run).items()}
    tensors["rng"] = {f"{r}|{k}": v for r, part in enumerate(states) for k, v in part.items()}

    def on_main() -> Path:
        if run.log is not None:
            with storing(f"metrics in {run.run_dir}"):
                run.log.sync()
        progress = {
            **asdict(run.progress),
            "world_size": run.world.size,
            "settings": run.settings.model_dump(mode="json"),
            "base": run.base,
            "prompts": dict(run.prompts),
        }
        return checkpoints.save(
            run.run_dir,
            checkpoints.Checkpoint(progress, tensors),
            keep=run.settings.run.keep_checkpoints,
            best_epoch=-1 if run.progress.best is None else run.progress.best_epoch,
            also_epoch=run.progress.controls.safe_epoch,
        )

    return run.world.on_main(on_main)
