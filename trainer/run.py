"""A run in memory: what the loop holds, and how its state reaches the disk."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trainer import checkpoint as checkpoints
from trainer.distributed import World
from trainer.ema import Ema
from trainer.metrics import MetricsLog
from trainer.models.base import FlowModel
from trainer.provenance import take_note
from trainer.rewards import RewardService
from trainer.run_state import Progress
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
        scorers: fingerprint of each scorer as last seen.
        alarmed: the alarm that ends the run, or an empty text.
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
    scorers: dict[str, str] = field(default_factory=dict)
    alarmed: str = ""


def averaged(run: Run) -> AbstractContextManager[None]:
    """Inside, the model has the weights that are evaluated and saved."""
    return nullcontext() if run.ema is None else run.ema.swap()


def write(run: Run, row: Mapping[str, Any]) -> None:
    """Append a row to the metrics and count it; say so if a scorer is not the one before."""
    for warning in take_note(run.scorers, row["scorers"]):
        run.say(warning)
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
