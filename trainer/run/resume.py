"""Whether a checkpoint belongs to this run, and how it is put back."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainer.algorithm.ema import Ema
from trainer.config.load import keeps_reference
from trainer.config.settings import AlarmSettings, RecordSettings, Settings
from trainer.errors import CheckpointError, ConfigError
from trainer.parallel.world import World, shared
from trainer.run.checkpoint import Checkpoint, load_latest
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
FREE = {
    f"{section}.{key}"
    for section, keys in {
        "run": "out_dir preset gpus epochs max_minutes save_every_epochs keep_checkpoints "
        "any_world_size peer_timeout_s on_alarm",
        "rewards": "url deadline_s patience_s retry_pause_s requests_in_flight",
        "logging": "tensorboard wandb_project groups_every_epochs",
        "eval": "every_epochs every_minutes alarm_fall diversity_fall",
        "alarm": " ".join(AlarmSettings.model_fields),
        "record": " ".join(RecordSettings.model_fields),
    }.items()
    for key in keys.split()
}


def comparable(table: Mapping[str, Any]) -> dict[str, Any]:
    """Dumped settings without those that are free to change, flat: `section.key` -> value."""
    flat = {f"{name}.{key}": value for name, part in table.items() for key, value in part.items()}
    return {name: value for name, value in flat.items() if name not in FREE}


def resumable(
    run_dir: Path,
    settings: Settings,
    prompts: Mapping[str, str],
    world: World,
    say: Callable[[str], None],
) -> Checkpoint | None:
    """The newest whole checkpoint, if there is one, after checking that it belongs to this run.

    Raises:
        ConfigError, CheckpointError: it does not; the message says what differs.
    """
    stored, warnings = world.on_main(lambda: load_latest(run_dir))
    for line in warnings:
        say(f"warning: {line}; going back to the checkpoint before it")
    if stored is not None:
        check_same(settings, stored.progress["settings"], run_dir)
        _check_prompts(settings, stored.progress.get("prompts", {}), prompts)
        _check_reference(settings, Progress.read(stored.progress).controls)
        _check_world(settings, stored.progress["world_size"], world, say)
    return stored


def check_same(settings: Settings, table: Mapping[str, Any], run_dir: Path) -> None:
    """Raise ConfigError for the first setting that differs from those of the run."""
    new, old = comparable(settings.model_dump(mode="json")), comparable(table)
    for name in sorted(new.keys() | old.keys()):
        if new.get(name) != old.get(name):
            text = f"{run_dir} was started with {name}={old.get(name)!r}, not {new.get(name)!r}"
            hint = "use another folder (--out FOLDER) or the old value"
            raise shared(ConfigError(f"{text}; {hint}"))


def _check_world(settings: Settings, before: int, world: World, say: Callable[[str], None]) -> None:
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
    """Raise CheckpointError for other weights (`base_fingerprint`) than the run started from.

    Versions that did not write the fingerprint have None before.
    """
    if before not in (None, now):
        raise CheckpointError(
            f"model.path={settings.model.path} has other weights than this run started from "
            f"(fingerprint {now[:SHOWN_CHARS]}, not {before[:SHOWN_CHARS]}); {REMEDY}"
        )


def _check_prompts(settings: Settings, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    # Noise and curves belong to the numbers of prompts; older versions wrote no fingerprints.
    for name, seen in now.items():
        if before.get(name, seen) != seen:
            raise CheckpointError(
                f"task.{name}={getattr(settings.task, name)} holds other prompts than when this "
                "run began: put the file back as it was, or start another run with "
                "--set run.out_dir="
            )


def _check_reference(settings: Settings, controls: Controls) -> None:
    if controls.kl_beta is not None and not keeps_reference(settings):
        raise ConfigError(
            f"an alarm has raised the weight of the KL to {controls.kl_beta:g}, for which the base "
            f"model has to stay in memory: go on with run.on_alarm=raise_kl; with "
            f"alarm.max_actions={controls.actions} it is raised no further"
        )


def restore_learnt(stored: Checkpoint, updater: Updater, ema: Ema | None) -> None:
    """Put back weights, averages and optimiser; epochs and updates are counted on."""
    tensors = stored.tensors
    restore_parameters(updater.parameters, tensors["trained"])
    restore_optimizer(updater.optimizer, updater.parameters, tensors.get("optimizer", {}))
    for name, average in (("ema", ema), ("old", updater.old)):
        if average is not None:
            restore_parameters(average.values, tensors[name])
    if updater.scaler.is_enabled():
        updater.scaler.restore(tensors["scaler"])


def restore(stored: Checkpoint, updater: Updater, ema: Ema | None, world: World) -> Progress:
    """Put a checkpoint back: what `restore_learnt` does, generators, and where the run stands."""
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
