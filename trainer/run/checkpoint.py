"""Checkpoints that are complete or not there, and that say so when they are damaged.

`checkpoints/epoch_000010/` holds tensors as safetensors and the rest as JSON; nothing is pickled.
A checkpoint is written beside its place, forced to the disk, and renamed; `manifest.json` has a
checksum of every file. A damaged checkpoint is moved aside and the one before it is used.
`checkpoints/best` leads to the checkpoint with the best evaluation, which is never removed.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from trainer.errors import CheckpointError
from trainer.run.storage import digest, storing, sync

if TYPE_CHECKING:  # reports look for checkpoints where torch is not loaded
    from torch import Tensor

FOLDER = "checkpoints"
BEST = "best"
LATEST = "latest"
MANIFEST = "manifest.json"
PROGRESS = "progress.json"
FORMAT = 1


class DamagedError(CheckpointError):
    """A checkpoint is not what was written."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that a run is between two epochs: plain values, and named tensors by file."""

    progress: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, "Tensor"]] = field(default_factory=dict)


def name_of(epoch: int) -> str:
    return f"epoch_{epoch:06d}"


def present(run_dir: Path) -> list[Path]:
    """Finished checkpoints, newest first."""
    return sorted((run_dir / FOLDER).glob("epoch_*"), reverse=True)


def save(
    run_dir: Path,
    checkpoint: Checkpoint,
    *,
    keep: int,
    best_epoch: int = -1,
    also_epoch: int | None = None,
) -> Path:
    """Write a checkpoint, remove the oldest, and return its folder.

    The `keep` newest stay, the best (`best_epoch` is negative while there is none), and that of
    `also_epoch`. An existing checkpoint of the same epoch is left as it is: the numbers are the
    same.

    Raises:
        StorageError: the disk is full, read-only or broken; the checkpoints before are whole.
    """
    root = run_dir / FOLDER
    target = root / name_of(int(checkpoint.progress["epoch"]))
    with storing(f"checkpoint {target}"):
        root.mkdir(parents=True, exist_ok=True)
        # First of all: what a killed process has left may be what fills the disk.
        for left in (*root.glob(".writing-*"), *root.glob(".removing-*")):
            shutil.rmtree(left)
        if not target.exists():
            _write(root, target, checkpoint)
        mark_best(run_dir, best_epoch)
        stay = {_best(root), None if also_epoch is None else root / name_of(also_epoch)}
        for old in present(run_dir)[keep:]:
            if old not in stay:
                # A folder that is half removed must not look like a checkpoint.
                shutil.rmtree(old.rename(root / f".removing-{old.name}"))
    return target


def mark_best(run_dir: Path, epoch: int) -> None:
    """Let `checkpoints/best` lead to the checkpoint of an epoch, if there is one.

    Where there are no links (exFAT, CIFS) it is a file with the folder's name.
    """
    root = run_dir / FOLDER
    if not (root / name_of(epoch)).is_dir():
        return
    temporary = root / f".{BEST}"
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(name_of(epoch))
    except (OSError, NotImplementedError):
        temporary.write_text(name_of(epoch), encoding="utf-8")
    temporary.replace(root / BEST)


def _best(root: Path) -> Path | None:
    """The folder that `best` stands for."""
    mark = root / BEST
    if mark.is_symlink():
        return root / mark.readlink().name
    return root / mark.read_text(encoding="utf-8").strip() if mark.is_file() else None


def _write(root: Path, target: Path, checkpoint: Checkpoint) -> None:
    temporary = root / f".writing-{target.name}"
    try:
        _fill(temporary, checkpoint)
    except (OSError, SafetensorError):
        # A full disk gets its space back.
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    temporary.rename(target)
    sync(root)


def _fill(temporary: Path, checkpoint: Checkpoint) -> None:
    from safetensors.torch import save_file

    temporary.mkdir()
    for name, tensors in checkpoint.tensors.items():
        cpu = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(cpu, temporary / f"{name}.safetensors")
    text = json.dumps({"format": FORMAT, **checkpoint.progress}, indent=1)
    (temporary / PROGRESS).write_text(text, encoding="utf-8")
    sums = {path.name: digest(path) for path in sorted(temporary.iterdir())}
    (temporary / MANIFEST).write_text(json.dumps(sums, indent=1), encoding="utf-8")
    for path in temporary.iterdir():
        sync(path)
    sync(temporary)


def load(path: Path) -> Checkpoint:
    """Read one checkpoint after checking every file.

    Raises:
        DamagedError: a file is missing, differs from its checksum or cannot be read.
        CheckpointError: it is whole, but of another format, or this user may not read it.
    """
    from safetensors.torch import load_file

    try:
        sums = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name, expected in sums.items():
            if digest(path / name) != expected:
                raise DamagedError(f"{path / name} is damaged (its checksum does not match)")
        progress = json.loads((path / PROGRESS).read_text(encoding="utf-8"))
        tensors = {
            Path(name).stem: load_file(path / name)
            for name in sums
            if name.endswith(".safetensors")
        }
    except FileNotFoundError as error:
        raise DamagedError(f"{error.filename} is missing") from None
    except PermissionError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror}; make it readable") from None
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        raise DamagedError(f"{path} cannot be read: {error}") from None
    if progress.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {progress.get('format')}, this version reads {FORMAT}: continue "
            "with the version that wrote it, or start again with --set run.out_dir="
        )
    return Checkpoint(progress, tensors)


def find(run_dir: Path, name: str = LATEST) -> Checkpoint:
    """Read `latest` (the newest that is whole), `best`, or a folder such as `epoch_000010`.

    Raises:
        CheckpointError: there is none of that name, or it is damaged.
    """
    found = present(run_dir)
    if not found:
        raise CheckpointError(f"{run_dir} has no checkpoint yet")
    if name != LATEST:
        best = _best(run_dir / FOLDER)
        path = best if name == BEST else run_dir / FOLDER / name
        if path not in found:
            raise CheckpointError(
                f"{run_dir} has no checkpoint {name!r}; it has "
                + ", ".join([LATEST, *([BEST] if best in found else [])])
                + "".join(f", {path.name}" for path in found)
            )
        return load(path)
    stored, problems = _newest_whole(found)
    if stored is None:
        raise problems[0]
    return stored


def _newest_whole(paths: Sequence[Path]) -> tuple[Checkpoint | None, list[DamagedError]]:
    problems: list[DamagedError] = []
    for path in paths:
        try:
            found = load(path)
        except DamagedError as error:
            problems.append(error)
            continue
        return found, problems
    return None, problems


def load_latest(run_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and a line for each newer one that was not.

    These are moved to `checkpoints/damaged/`.

    Raises:
        CheckpointError: there are checkpoints, but all are damaged.
    """
    paths = present(run_dir)
    found, problems = _newest_whole(paths)
    if problems and found is None:
        raise CheckpointError(
            f"{problems[0]}; no whole checkpoint is left in {run_dir / FOLDER}: restore one, or "
            "start again in another folder with --set run.out_dir="
        )
    for path in paths[: len(problems)]:
        target = run_dir / FOLDER / "damaged" / path.name
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        path.rename(target)
    return found, [str(problem) for problem in problems]
