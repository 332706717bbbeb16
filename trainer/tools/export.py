"""Weights of any checkpoint for diffusers, with their card."""

import shutil
from pathlib import Path
from typing import Any

from trainer.config.settings import RunSettings, Settings
from trainer.errors import ConfigError
from trainer.models import lora_file
from trainer.parallel.world import setup_torch
from trainer.report.card import write_card
from trainer.report.snippets import load_pipeline
from trainer.run.checkpoint import LATEST
from trainer.tools.artifacts import Choice, find


def export_run(run_dir: Path, out: Path, *, checkpoint: str = LATEST, whole: bool = False) -> Path:
    """Write a run's weights as diffusers loads them, and the model card.

    `out` must be empty or not exist. With `whole` it gets the complete pipeline instead of what was
    trained; a LoRA is merged into it.

    Raises:
        ConfigError: no run, or `out` holds something.
        CheckpointError: no such checkpoint, or a damaged one.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: there is something already; name a new folder")
    target = find(str(run_dir), Choice(checkpoint=checkpoint))
    device = setup_torch(RunSettings(device="cpu", threads=target.settings.run.threads))
    model = target.load(device)
    model.save(out, model.trainable_parameters())
    write_card(run_dir, out, epoch=target.epoch, whole=whole)
    if whole:
        complete(out, target.settings)
    return out


def complete(folder: Path, settings: Settings) -> None:
    """Put the base pipeline around the weights that are in a folder."""
    from diffusers import AutoModel  # pyright: ignore[reportPrivateImportUsage]

    networks: dict[str, Any] = {
        path.parent.name: AutoModel.from_pretrained(str(path.parent))
        for path in sorted(folder.glob("*/config.json"))
    }
    pipe = load_pipeline(settings, **networks)
    adapters = {} if networks else lora_file.find(folder)
    for name, file in adapters.items():
        second = {"load_into_transformer_2": True} if name == lora_file.SECOND else {}
        pipe.load_lora_weights(str(file.parent), **second)
    if adapters:
        pipe.fuse_lora(components=list(adapters))
        pipe.unload_lora_weights()
    for file in adapters.values():
        file.unlink()
    for name in networks:
        shutil.rmtree(folder / name)
    pipe.save_pretrained(folder)
