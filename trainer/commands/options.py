"""Arguments and options that several commands have."""

from pathlib import Path
from typing import Annotated

import typer

from trainer.config.preset import preset_names


def preset_completion(incomplete: str) -> list[str]:
    """For shell completion."""
    return [name for name in preset_names() if name.startswith(incomplete)]


Preset = Annotated[
    str, typer.Argument(help="Name of a preset, or a .toml file.", autocompletion=preset_completion)
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", help="section.key=value; may be repeated. Values as in TOML."),
]
Gpus = Annotated[int, typer.Option(min=0, help="Plan for so many; 0: as the preset says.")]
RunDir = Annotated[Path, typer.Argument(help="Folder of a run.")]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A run, a checkpoint, a LoRA or pipeline folder, or a hub id."
    ),
]
HowToLoad = Annotated[str, typer.Option("--preset", help="For what is no run: how to load it.")]
Stored = Annotated[
    str, typer.Option("--checkpoint", help="best, latest, or a folder such as epoch_000010.")
]
Base = Annotated[bool, typer.Option("--base", help="The untrained model instead.")]
