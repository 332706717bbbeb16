"""What a run writes down: `metrics.jsonl`, TensorBoard, Weights & Biases, and the console.

`metrics.jsonl` is the record that everything else is made from: one JSON object per line, with
`kind` `train` (one per epoch) or `eval`. A checkpoint knows how many lines belong to it; those
after it are dropped when the run is resumed. `scorers` has the fingerprints that computed a row's
scores: one, or several if the service was changed in between.
"""

import json
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from trainer.config.settings import Settings
from trainer.errors import ConfigError
from trainer.run.storage import replace_file

METRICS = "metrics.jsonl"
EXIT = "exit.json"
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
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        found[package] = "not installed"
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that is either the old or the new one, never half of it."""
    replace_file(path, json.dumps(value, indent=1))


def read_json(path: Path) -> Any:
    """The value in a JSON file, None where there is none."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


class MetricsLog:
    """Appends to `metrics.jsonl` and mirrors numbers to TensorBoard and W&B.

    Lines after the first `keep_lines` are dropped; TensorBoard forgets what it has from
    `first_epoch` on. ConfigError if a logger cannot be started.
    """

    def __init__(
        self,
        run_dir: Path,
        settings: Settings,
        *,
        keep_lines: int,
        first_epoch: int,
        say: Callable[[str], None] = print,
    ) -> None:
        self._say = say
        self._path = run_dir / METRICS
        lines = read(run_dir)[:keep_lines]
        replace_file(self._path, "".join(json.dumps(line) + "\n" for line in lines))
        self.lines = len(lines)
        self._handle = self._path.open("a", encoding="utf-8")
        self._board: Any = None
        self._wandb: Any = None
        if settings.logging.tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise _absent("logging.tensorboard", "tensorboard", "false", error) from error
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
            try:
                self._wandb.log(numbers, step=step)
            # wandb has errors of its own; none is worth a run.
            except Exception as error:
                self._wandb = None
                self._say(f"warning: nothing goes to wandb from here on ({_line(error)})")

    def sync(self) -> None:
        """Wait until all lines are on the disk: a checkpoint counts on them."""
        os.fsync(self._handle.fileno())

    def image(self, name: str, pixels: Any, epoch: int) -> None:
        """Show an (H, W, 3) uint8 image in TensorBoard."""
        if self._board is not None:
            self._board.add_image(name, pixels, epoch, dataformats="HWC")

    def close(self) -> None:
        # Every line was flushed; only what failed before can fail again.
        with suppress(OSError):
            self._handle.close()
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            with suppress(Exception):
                self._wandb.finish()


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]}..."


def _absent(setting: str, package: str, off: str, error: ImportError) -> ConfigError:
    """One line for a logger whose package is missing, or there and broken."""
    missing = isinstance(error, ModuleNotFoundError) and error.name == package
    why = "is not installed" if missing else f"cannot be imported ({_line(error)})"
    return ConfigError(
        f"{setting} is set but {package} {why}: pip install {package}, or set {setting}={off}"
    )


def _start_wandb(run_dir: Path, settings: Settings) -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise _absent("logging.wandb_project", "wandb", '""', error) from error
    marker = run_dir / "wandb_id.txt"
    known = marker.read_text(encoding="utf-8").strip() if marker.is_file() else None
    try:
        run = wandb.init(
            project=settings.logging.wandb_project,
            dir=str(run_dir),
            config=settings.model_dump(mode="json"),
            name=run_dir.name,
            id=known,
            resume="allow",
        )
    # wandb has errors of its own: no key, no network, no such project.
    except Exception as error:
        raise ConfigError(
            f"logging.wandb_project={settings.logging.wandb_project}: {_line(error)}; run `wandb "
            'login`, set WANDB_MODE=offline, or set logging.wandb_project=""'
        ) from error
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
            means = {name: row["mean"] for name, row in value.items()}
            yield from _numbers(f"{prefix}/{key}", means)
        elif isinstance(value, Mapping):
            yield from _numbers(f"{prefix}/{key}", value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}/{key}", float(value)


def epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    policy = row["policy"]
    clipped = [policy.get(name) for name in ("clip_frac_low", "clip_frac_high")]
    parts = [
        f"epoch {row['epoch']:>4}/{epochs}",
        f"{row['train_minutes']:5.1f} min",
        "  ".join(f"{n} {_text(v)}" for n, v in row["reward"].items()),
        f"kl {_text(policy.get('kl'), 4)}",
        f"clip {_text(None if None in clipped else sum(clipped))}",
        f"flat groups {_text(row['advantage']['zero_std_groups'], 2)}",
        "{rollout:.1f}+{score_wait:.1f}+{train:.1f} s".format(**row["seconds"]),
        f"{row['images_per_s']:.1f} img/s",
    ]
    if row["failed"]:
        parts.append(f"{row['failed']} failed{_first_error(row)}")
    return "  ".join(parts)


def _first_error(row: Mapping[str, Any]) -> str:
    """The most frequent reason of failed images, with what there is of others."""
    if not row["errors"]:
        return ""
    reason, others = max(row["errors"], key=row["errors"].get), len(row["errors"]) - 1
    return f" ({reason:.160}{f', and {others} other reasons' if others else ''})"


def evaluation_line(row: Mapping[str, Any]) -> str:
    values = "  ".join(
        f"{name} {_text(value['mean'])} [{_text(value['low'])}, {_text(value['high'])}]"
        for name, value in {**row["metrics"], **sampled_as_trained(row), **row["watch"]}.items()
    )
    failed = f"  {row['failed']} failed{_first_error(row)}" if row["failed"] else ""
    images = f"{row['images']} images"
    return f"evaluation ({row['phase']}, epoch {row['epoch']}, {images})  {values}{failed}"


def sampled_as_trained(row: Mapping[str, Any]) -> dict[str, Any]:
    """What an evaluation measured with the training sampler, named so; empty without one."""
    return {f"{name}, training sampler": v for name, v in row.get("training_sampler", {}).items()}


def figure(value: float, decimals: int = 3) -> str:
    """Fixed decimals, or three significant digits where those would hide a small value."""
    fixed = value == 0 or abs(value) >= 10 ** (1 - decimals)
    return f"{value:.{decimals}f}" if fixed else f"{value:.3g}"


def _text(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else figure(value, digits)
