"""A checkpoint becomes the state of a run; refused where it belongs to another one."""

from collections.abc import Callable

from trainer import checkpoint as checkpoints
from trainer.distributed import World
from trainer.ema import Ema
from trainer.errors import CheckpointError
from trainer.models.fingerprint import SHOWN_CHARS
from trainer.run_state import Progress
from trainer.settings import Settings
from trainer.update import Updater


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
            average.load_state_dict(stored.tensors[name])
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
