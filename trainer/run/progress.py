"""What a run is between two epochs, and how it is opened: locked, new, resumed or finished."""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from trainer.config.settings import Settings
from trainer.errors import CheckpointError, ConfigError
from trainer.run.controller import Controls
from trainer.run.log import write_json
from trainer.run.storage import storing

# What flock says when another process holds the lock.
HELD = (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK)
RESULT = "result.json"
RESOLVED = "config.json"
LOCK = ".lock"
GROUPS = "groups"


@dataclass
class Progress:
    epoch: int = 0  # finished epochs
    updates: int = 0  # optimiser updates done
    elapsed_s: float = 0.0  # seconds of the time budget used, over all resumes
    metrics_lines: int = 0  # lines of `metrics.jsonl` that belong to this state
    based: bool = False  # the base model has been evaluated
    evaluated_epoch: int = 0  # epoch of the last evaluation
    evaluated_s: float = 0.0  # `elapsed_s` at the last evaluation
    best: float | None = None  # best headline of any evaluation so far
    best_epoch: int = 0
    alarmed: str = ""  # the alarm that ends the run
    controls: Controls = field(default_factory=Controls)

    @staticmethod
    def read(table: Mapping[str, Any]) -> "Progress":
        """From a checkpoint's `progress.json`; CheckpointError if a field is missing."""
        # Versions whose alarms did not act have none.
        table = {**table, "controls": Controls(**table.get("controls", {}))}
        names = Progress.__dataclass_fields__
        missing = [name for name in names if name not in table]
        if missing:
            raise CheckpointError(f"the checkpoint's progress lacks {missing[0]!r}")
        return Progress(**{name: table[name] for name in names})


def out_of_budget(settings: Settings, progress: Progress) -> str:
    """Why the run is over; empty while it is not."""
    if progress.epoch >= settings.run.epochs:
        return f"{progress.epoch} epochs"
    limit_s = settings.run.max_minutes * 60
    if limit_s and progress.elapsed_s >= limit_s:
        return f"{settings.run.max_minutes:g} minutes"
    return ""


@contextmanager
def locked(run_dir: Path, say: Callable[[str], None] = print) -> Iterator[None]:
    """Hold a run's folder; the operating system lets go of it even after kill -9.

    ConfigError if another process holds it, or the folder cannot be made. Some network file
    systems have no locks: there a warning takes their place.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = (run_dir / LOCK).open("a+")
    except OSError as error:
        raise ConfigError(f"run.out_dir={run_dir}: {error.strerror}") from None
    with handle:
        try:
            _lock(handle)
        except OSError as error:
            if error.errno in HELD:
                raise ConfigError(f"another process is training in {run_dir}") from None
            say(
                f"warning: {run_dir} is on a file system without locks ({error.strerror}): see to "
                "it that no other process trains there"
            )
        with suppress(OSError):
            handle.truncate(0)
            os.write(handle.fileno(), socket.gethostname().encode())
        yield


def _lock(handle: IO[str]) -> None:
    """Take the lock, which `abandoned` holds for a moment now and then."""
    for _ in range(5):
        with suppress(BlockingIOError, PermissionError):
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(0.05)
    return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def abandoned(run_dir: Path) -> bool:
    """Whether the process that trained here is gone; False where this machine cannot know it.

    It cannot if the run was started on another host, by an older version, or without locks.
    """
    try:
        with (run_dir / LOCK).open(encoding="utf-8") as handle:
            if handle.read() != socket.gethostname():
                return False
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def finished(run_dir: Path, settings: Settings) -> dict[str, Any] | None:
    """The result of a run that these settings would not continue; None otherwise."""
    try:
        result = json.loads((run_dir / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    stands = Progress(epoch=result["epoch"], elapsed_s=result["elapsed_s"])
    return result if out_of_budget(settings, stands) else None


def reopen(run_dir: Path) -> bool:
    """Delete the result of a run that goes on; return whether there was one."""
    ended = (run_dir / RESULT).is_file()
    with storing(f"{run_dir / RESULT}"):
        (run_dir / RESULT).unlink(missing_ok=True)
    return ended


def kept_groups(run_dir: Path) -> list[Path]:
    """The files of `trainer.run.groups`, in the order of epochs."""
    return sorted((run_dir / GROUPS).glob("epoch_*.json"))


def read_resolved(run_dir: Path) -> dict[str, Any]:
    """What `write_resolved` wrote: `settings`, `versions`, `scorers`; ConfigError without a run."""
    path = run_dir / RESOLVED
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{run_dir} holds no run (there is no {RESOLVED})") from None
    except ValueError as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if "settings" not in found:
        # Networks have a file of this name, too.
        raise ConfigError(f"{path} is not that of a run")
    return found


def write_resolved(
    run_dir: Path, settings: Settings, versions: Mapping[str, str], scorers: Mapping[str, str]
) -> None:
    """Write what this process runs with: settings, package versions, scorer fingerprints."""
    table = {"settings": settings.model_dump(mode="json")}
    table |= {"versions": dict(versions), "scorers": dict(scorers)}
    with storing(f"settings in {run_dir}"):
        write_json(run_dir / RESOLVED, table)
