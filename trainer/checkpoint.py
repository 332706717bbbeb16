"""Checkpoints that are complete or not there, and that say so when they are damaged.

`checkpoints/epoch_000010/` holds tensors as safetensors and the rest as JSON; nothing is pickled.
A checkpoint is written beside its place, forced to the disk, and renamed; `manifest.json` has a
checksum of every file. A damaged checkpoint is moved aside and the one before it is used.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer.errors import CheckpointError

FOLDER = "checkpoints"
MANIFEST = "manifest.json"
PROGRESS = "progress.json"
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All that a run is, between two epochs.

    Attributes:
        progress: plain numbers and texts (epoch, updates, seconds used, metrics lines, ...).
        tensors: named tensors by file: `trained`, `optimizer`, `ema`, `rng`.
    """

    progress: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)


def name_of(epoch: int) -> str:
    """Folder name of the checkpoint after `epoch` epochs."""
    return f"epoch_{epoch:06d}"


def present(run_dir: Path) -> list[Path]:
    """Finished checkpoints, newest first."""
    return sorted((run_dir / FOLDER).glob("epoch_*"), reverse=True)


def save(run_dir: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write a checkpoint and remove the oldest beyond `keep`.

    An existing checkpoint of the same epoch is left as it is: the numbers are the same.

    Returns:
        Its folder.
    """
    root = run_dir / FOLDER
    root.mkdir(parents=True, exist_ok=True)
    target = root / name_of(int(checkpoint.progress["epoch"]))
    if not target.exists():
        _write(root, target, checkpoint)
    for old in present(run_dir)[keep:]:
        shutil.rmtree(old)
    return target


def _write(root: Path, target: Path, checkpoint: Checkpoint) -> None:
    for left_over in root.glob(".writing-*"):
        shutil.rmtree(left_over)
    temporary = root / f".writing-{target.name}"
    temporary.mkdir()
    for name, tensors in checkpoint.tensors.items():
        cpu = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(cpu, temporary / f"{name}.safetensors")
    text = json.dumps({"format": FORMAT, **checkpoint.progress}, indent=1)
    (temporary / PROGRESS).write_text(text, encoding="utf-8")
    sums = {path.name: _digest(path) for path in sorted(temporary.iterdir())}
    (temporary / MANIFEST).write_text(json.dumps(sums, indent=1), encoding="utf-8")
    for path in temporary.iterdir():
        _sync(path)
    _sync(temporary)
    temporary.rename(target)
    _sync(root)


def load(path: Path) -> Checkpoint:
    """Read one checkpoint after checking every file.

    Raises:
        CheckpointError: a file is missing, differs from its checksum or cannot be read.
    """
    try:
        sums = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        for name, digest in sums.items():
            if _digest(path / name) != digest:
                raise CheckpointError(f"{path / name} is damaged (its checksum does not match)")
        progress = json.loads((path / PROGRESS).read_text(encoding="utf-8"))
        tensors = {
            Path(name).stem: load_file(path / name)
            for name in sums
            if name.endswith(".safetensors")
        }
    except FileNotFoundError as error:
        raise CheckpointError(f"{error.filename} is missing") from None
    except (OSError, ValueError, AttributeError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    if progress.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {progress.get('format')}, expected {FORMAT}")
    return Checkpoint(progress, tensors)


def load_latest(run_dir: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and a line for each one that was not.

    Damaged ones are moved to `checkpoints/damaged/`.

    Raises:
        CheckpointError: there are checkpoints, but all are damaged.
    """
    warnings: list[str] = []
    for path in present(run_dir):
        try:
            found = load(path)
        except CheckpointError as error:
            warnings.append(str(error))
            continue
        _move_aside(run_dir, present(run_dir)[: len(warnings)])
        return found, warnings
    if warnings:
        raise CheckpointError(
            f"{warnings[0]}; no whole checkpoint is left in {run_dir / FOLDER}: restore one, or "
            "start again in another folder with --set run.out_dir="
        )
    return None, []


def _move_aside(run_dir: Path, damaged: list[Path]) -> None:
    for path in damaged:
        place = run_dir / FOLDER / "damaged"
        place.mkdir(exist_ok=True)
        target = place / path.name
        if target.exists():
            shutil.rmtree(target)
        path.rename(target)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """AdamW's state as named tensors."""
    out = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            out[f"{name}|{key}"] = torch.as_tensor(value)
    return out


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put back what `optimizer_tensors` gave.

    Raises:
        CheckpointError: the tensors belong to other parameters.
    """
    for full, value in tensors.items():
        name, _, key = full.rpartition("|")
        if name not in parameters:
            raise CheckpointError(f"the checkpoint's optimiser knows {name}, the model does not")
        parameter = parameters[name]
        # The step counter stays where AdamW keeps it: on the CPU.
        device = "cpu" if key == "step" else parameter.device
        optimizer.state[parameter][key] = value.to(device)


def restore_parameters(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy stored weights into the model.

    Raises:
        CheckpointError: names or shapes differ.
    """
    if set(parameters) != set(tensors):
        name = sorted(set(parameters) ^ set(tensors))[0]
        raise CheckpointError(f"the checkpoint is of another model or finetune mode ({name})")
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != tensors[name].shape:
                raise CheckpointError(
                    f"{name}: the checkpoint has shape {tuple(tensors[name].shape)}, the model "
                    f"{tuple(parameter.shape)}"
                )
            parameter.copy_(tensors[name])


def random_state() -> dict[str, Tensor]:
    """The state of PyTorch's global generators of this process."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Tensor]) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
