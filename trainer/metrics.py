"""What a run writes down: `metrics.jsonl`, TensorBoard, Weights & Biases, and the console.

`metrics.jsonl` is the record that everything else is made from: one JSON object per line, with
`kind` `train` (one per epoch) or `eval`. A checkpoint knows how many lines belong to it; the lines
after it are dropped when the run is resumed.
"""

import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.settings import Settings
from trainer.storage import replace_file

METRICS = "metrics.jsonl"
PACKAGES = ("flow-reward", "torch", "diffusers", "transformers", "peft", "numpy", "grpcio")


def read(run_dir: Path) -> list[dict[str, Any]]:
    """All complete lines of a run's metrics; an unfinished last line is left out."""
    path = run_dir / METRICS
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    rows: list[dict[str, Any]] = []
    # What follows the last line break was being written when the process was killed; what cannot
    # be read was not yet on the disk when the power failed.
    with suppress(ValueError):
        rows.extend(json.loads(line) for line in lines[:-1])
    return rows


def versions() -> dict[str, str]:
    """Versions of what computed the numbers."""
    found = {name: _version(name) for name in PACKAGES}
    return {"python": platform.python_version(), "platform": platform.platform(), **found}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is either the old or the new one, never half of it."""
    replace_file(path, json.dumps(value, indent=1))


class MetricsLog:
    """Appends to `metrics.jsonl` and mirrors numbers to TensorBoard and W&B.

    Args:
        run_dir: folder of the run.
        settings: for the loggers and their copy of the settings.
        keep_lines: lines that belong to the checkpoint that is resumed; later ones are dropped.
        first_epoch: TensorBoard forgets what it has from this epoch on.
    """

    def __init__(
        self, run_dir: Path, settings: Settings, *, keep_lines: int, first_epoch: int
    ) -> None:
        self._path = run_dir / METRICS
        lines = read(run_dir)[:keep_lines]
        replace_file(self._path, "".join(json.dumps(line) + "\n" for line in lines))
        self.lines = len(lines)
        self._handle = self._path.open("a", encoding="utf-8")
        self._board: Any = None
        self._wandb: Any = None
        if settings.logging.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            purge = first_epoch + 1 if first_epoch else None
            self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge)
        if settings.logging.wandb_project:
            self._wandb = _start_wandb(run_dir, settings)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append one line; numbers that are not finite become null."""
        clean = _clean(row)
        self._handle.write(json.dumps(clean) + "\n")
        self._handle.flush()
        self.lines += 1
        step = int(row["epoch"])
        numbers = dict(_numbers(str(row["kind"]), clean))
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def sync(self) -> None:
        """Wait until all lines are on the disk: a checkpoint counts on them."""
        os.fsync(self._handle.fileno())

    def image(self, name: str, pixels: Any, epoch: int) -> None:
        """Show an (H, W, 3) uint8 image in TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, pixels, epoch, dataformats="HWC")

    def close(self) -> None:
        """Close files and loggers."""
        # Every line was flushed; only what failed before can fail again.
        with suppress(OSError):
            self._handle.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def _start_wandb(run_dir: Path, settings: Settings) -> Any:
    from trainer.errors import ConfigError

    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ConfigError(
            "logging.wandb_project is set but wandb is not installed: pip install wandb, or "
            'use --set logging.wandb_project=""'
        ) from None
    marker = run_dir / "wandb_id.txt"
    known = marker.read_text(encoding="utf-8").strip() if marker.is_file() else None
    run = wandb.init(
        project=settings.logging.wandb_project,
        dir=str(run_dir),
        config=settings.model_dump(mode="json"),
        name=run_dir.name,
        id=known,
        resume="allow",
    )
    marker.write_text(run.id, encoding="utf-8")
    return run


def _clean(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _clean(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_clean(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _numbers(prefix: str, row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in row.items():
        if key in ("kind", "epoch"):
            continue
        if key == "outputs":
            # Everything that every scorer said: its means are enough for curves.
            means = ((name, row["mean"]) for name, row in value.items())
            yield from ((f"{prefix}/{key}/{n}", float(m)) for n, m in means if m is not None)
        elif isinstance(value, Mapping):
            yield from _numbers(f"{prefix}/{key}", value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}/{key}", float(value)
