"""Whether a checkpoint belongs to this run, and how it is put back."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from trainer.algorithm.ema import Ema
from trainer.config.load import keeps_reference
from trainer.config.settings import AlarmSettings, Settings
from trainer.errors import CheckpointError, ConfigError
from trainer.parallel.world import World
from trainer.run.checkpoint import Checkpoint
from trainer.run.controller import Controls
from trainer.run.progress import Progress
from trainer.run.tensors import (
    REMEDY,
    restore_optimizer,
    restore_parameters,
    restore_random_state,
)
from trainer.run.update import Updater
from trainer.scores import SHOWN_CHARS

# Settings that may differ between a run and its resumption: they do not change its numbers.
FREE: Mapping[str, Collection[str]] = {
    "run": (
        "out_dir",
        "preset",
        "gpus",
        "epochs",
        "max_minutes",
        "save_every_epochs",
        "keep_checkpoints",
        "any_world_size",
        "peer_timeout_s",
        "on_alarm",
    ),
    "rewards": ("url", "deadline_s", "patience_s", "retry_pause_s", "requests_in_flight"),
    "logging": ("tensorboard", "wandb_project", "groups_every_epochs"),
    "eval": ("every_epochs", "every_minutes", "alarm_fall"),
    "alarm": tuple(AlarmSettings.model_fields),
}


def comparable(table: Mapping[str, Any]) -> dict[str, Any]:
    """Dumped settings without those that are free to change, flat: `section.key` -> value."""
    return {
        f"{section}.{key}": value
        for section, values in table.items()
        for key, value in values.items()
        if key not in FREE.get(section, ())
    }


def check_same(settings: Settings, table: Mapping[str, Any], run_dir: Path) -> None:
    """Refuse to continue a run with other settings.

    Raises:
        ConfigError: names the first setting that differs.
    """
    new, old = comparable(settings.model_dump(mode="json")), comparable(table)
    for name in sorted(new.keys() | old.keys()):
        if new.get(name) != old.get(name):
            raise ConfigError(
                f"{run_dir} was started with {name}={old.get(name)!r}, not {new.get(name)!r}; "
                "use another folder (--set run.out_dir=...) or the old value"
            )


def check_world(settings: Settings, before: int, world: World, say: Callable[[str], None]) -> None:
    """Refuse to continue with another number of processes, unless `run.any_world_size` allows it.

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
    """Refuse to continue from other weights than those that the run started from.

    Versions that did not write the fingerprint (`base_fingerprint`) have None before.

    Raises:
        CheckpointError: they differ.
    """
    if before not in (None, now):
        raise CheckpointError(
            f"model.path={settings.model.path} has other weights than this run started from "
            f"(fingerprint {now[:SHOWN_CHARS]}, not {before[:SHOWN_CHARS]}); {REMEDY}"
        )


def check_prompts(settings: Settings, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse to continue with other prompts: noise and curves belong to their numbers.

    `before` and `now` are the fingerprints by list, `train` and `test`; versions that did not write
    them have none before.

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


def check_reference(settings: Settings, controls: Controls) -> None:
    """Refuse to continue without the base model where an alarm has raised the weight of the KL.

    Raises:
        ConfigError: all weights are trained, and nothing else needs the base.
    """
    if controls.kl_beta is not None and not keeps_reference(settings):
        raise ConfigError(
            f"an alarm has raised the weight of the KL to {controls.kl_beta:g}, for which the base "
            f"model has to stay in memory: go on with run.on_alarm=raise_kl; with "
            f"alarm.max_actions={controls.actions} it is raised no further"
        )


def restore_learnt(stored: Checkpoint, updater: Updater, ema: Ema | None) -> None:
    """Put a checkpoint's weights, averages and optimiser back; epochs and updates are counted on.

    Raises:
        CheckpointError: it belongs to another model.
    """
    tensors = stored.tensors
    restore_parameters(updater.parameters, tensors["trained"])
    restore_optimizer(updater.optimizer, updater.parameters, tensors.get("optimizer", {}))
    for name, average in (("ema", ema), ("old", updater.old)):
        if average is not None:
            restore_parameters(average.values, tensors[name])
    if updater.scaler.is_enabled():
        updater.scaler.restore(tensors["scaler"])


def restore(stored: Checkpoint, updater: Updater, ema: Ema | None, world: World) -> Progress:
    """Put a checkpoint back: what `restore_learnt` does, the generators and where the run stands.

    Raises:
        CheckpointError: it belongs to another model.
    """
    restore_learnt(stored, updater, ema)
    tensors = stored.tensors
    own = f"{world.rank}|"
    states = {k.removeprefix(own): v for k, v in tensors["rng"].items() if k.startswith(own)}
    # A process that was not there before has no state to go back to.
    if states:
        restore_random_state(states)
    progress = Progress.read(stored.progress)
    updater.updates = progress.updates
    return progress
