"""Commands about any model: draw with it, evaluate it."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from trainer.commands.common import is_main, open_console, quiet_libraries
from trainer.commands.options import Base, HowToLoad, Model, Overrides, Stored
from trainer.run.log import write_json
from trainer.terminal import Terminal, examples

app = typer.Typer()


@app.command(
    epilog=examples(
        "flow-train sample runs/mine 'a red star' --checkpoint best",
        "flow-train sample runs/mine 'a red star' --base --seed 7",
        "flow-train sample runs/editor 'make the star blue' --reference star.png",
    )
)
def sample(
    target: Model,
    prompts: Annotated[list[str], typer.Argument(help="What to draw.")],
    out: Annotated[Path, typer.Option(help="Folder for the images.")] = Path("samples"),
    images: Annotated[int, typer.Option(min=1, help="Images per prompt.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    reference: Annotated[
        list[Path] | None,
        typer.Option(help="For a model that edits: the picture; may be repeated."),
    ] = None,
    preset: HowToLoad = "",
    checkpoint: Stored = "latest",
    base: Base = False,
    overrides: Overrides = None,
) -> None:
    """Draw prompts with a trained model, or with any pipeline."""
    quiet_libraries()
    from trainer.tools.artifacts import Choice
    from trainer.tools.offline import sample_target

    choice = Choice(preset, checkpoint, base, overrides=overrides or ())
    with Terminal(open_console(stderr=True)) as terminal:
        found = sample_target(
            target,
            choice,
            prompts,
            out,
            reference or (),
            images=images,
            seed=seed,
            show=terminal.show,
        )
        for path in found:
            typer.echo(str(path))


@app.command(
    epilog=examples(
        "flow-train evaluate runs/mine --images 8 --json found.json",
        "flow-train evaluate weights/sd35m --preset geneval_sd35m --task geneval",
    )
)
def evaluate(
    target: Model,
    task: Annotated[str, typer.Option(help="geneval, ocr or texts; else the model's own.")] = "",
    prompts: Annotated[str, typer.Option(help="Prompt file, else the task's.")] = "",
    scorer: Annotated[
        list[str] | None,
        typer.Option(help="scorer or scorer.component, instead of the task's; may be repeated."),
    ] = None,
    images: Annotated[int, typer.Option(min=0, help="Images per prompt; 0: as set.")] = 0,
    preset: HowToLoad = "",
    checkpoint: Stored = "latest",
    base: Base = False,
    overrides: Overrides = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write everything there, too.")
    ] = None,
) -> None:
    """Evaluate a trained model, or any pipeline, on held-out prompts.

    Prints the table of the paper and everything that was measured. What is evaluated is not
    changed. torchrun shares the work out over processes.
    """
    quiet_libraries()
    from trainer.tools.artifacts import Choice
    from trainer.tools.offline import evaluate_target
    from trainer.tools.table import as_json, tables

    own = [f"eval.images_per_prompt={images}"] if images else []
    changes = [*own, *(overrides or ())]
    choice = Choice(preset, checkpoint, base, task, prompts, scorer or (), changes)
    terminal = Terminal(open_console(stderr=True))
    with terminal if is_main() else nullcontext():
        measured = evaluate_target(target, choice, os.environ, terminal.show)
    if measured is None:
        return
    console = open_console()
    for table in tables(measured):
        console.print(table)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(json_file, as_json(measured))
        console.print(f"written: {escape(str(json_file))}")
