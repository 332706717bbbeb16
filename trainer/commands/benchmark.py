"""`flow-train benchmark`: a model on suites."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from trainer.commands.common import INTERRUPTED, is_main, open_console, quiet_libraries
from trainer.commands.options import Base, HowToLoad, Overrides, Stored
from trainer.errors import ConfigError, ServiceError
from trainer.terminal import Terminal, examples

app = typer.Typer()


@app.command(
    epilog=examples(
        "flow-train benchmark --list",
        "flow-train benchmark runs/mine --suite mini_geneval,mini_paraphrase",
        "flow-train benchmark runs/mine --suite geneval2 --only draw --limit 20",
    )
)
def benchmark(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A run, a checkpoint, a LoRA or pipeline folder, or a hub id."
        ),
    ] = "",
    suite: Annotated[
        list[str] | None, typer.Option(help="Suite, or several with commas; may be repeated.")
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="Name the suites, and those that are not supported.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Folder for pictures, scores and the result.")
    ] = None,
    data: Annotated[Path, typer.Option(help="Folder for prompts that are fetched.")] = Path(
        "dataset"
    ),
    limit: Annotated[
        int, typer.Option(min=0, help="Prompts of each suite, evenly; 0: all, which alone counts.")
    ] = 0,
    only: Annotated[str, typer.Option(help="draw or score: one of the two steps alone.")] = "",
    preset: HowToLoad = "",
    checkpoint: Stored = "latest",
    base: Base = False,
    overrides: Overrides = None,
) -> None:
    """Measure a model on benchmark suites: draw, score, and write benchmark.json and a page.

    Both steps continue where they stopped, and scores are asked for again without drawing. torchrun
    shares the drawing out.
    """
    from trainer.suites import manifest

    if listed:
        _print_suites()
        return
    suites = [name.strip() for text in suite or () for name in text.split(",") if name.strip()]
    if not target or not suites:
        raise ConfigError(
            "name a model and a suite, e.g. flow-train benchmark runs/mine --suite mini_geneval; "
            "--list names the suites"
        )
    if only not in ("", "draw", "score"):
        raise ConfigError(f"--only {only}: draw or score")
    for name in suites:
        manifest.load(name)
    quiet_libraries()
    from trainer.suites.page import tables, write_page
    from trainer.suites.run import Plan
    from trainer.suites.run import benchmark as run_benchmark
    from trainer.tools.artifacts import Choice

    place = out or Path("benchmark") / f"{Path(target).name}{'_base' if base else ''}"
    choice = Choice(preset, checkpoint, base, overrides=overrides or ())
    terminal = Terminal(open_console(stderr=True))
    todo = Plan(suites, place, data, limit, only)
    try:
        with terminal if is_main() else nullcontext():
            found = run_benchmark(target, choice, todo, os.environ, terminal.say, terminal.show)
    except KeyboardInterrupt:
        if is_main():
            open_console(stderr=True).print(
                f"stopped: the same command continues in {escape(str(place))}"
            )
        raise typer.Exit(INTERRUPTED) from None
    if not is_main():
        return
    console = open_console()
    if found is None:
        console.print(f"drawn: {escape(str(place))}; --only score does the rest")
        return
    for table in tables(found):
        console.print(table)
    console.print(f"page: {escape(str(write_page(found, place).resolve()))}")
    for name in suites:
        one = found["suites"][Path(name).stem]
        if all(row["unanswered"] == row["images"] for row in one["measures"].values()):
            reason = next(iter(one["errors"]), "")
            raise ServiceError(f"{name}: no image has a score, mostly: {reason}")


def _print_suites() -> None:
    from trainer.suites import manifest

    for name in manifest.names():
        one = manifest.load(name)
        judges = ", ".join(dict.fromkeys(measure.scorer for measure in one.measures))
        typer.echo(f"{name:16} {one.what}")
        typer.echo(f"{'':16} judged by {judges}; prompts: {one.prompts.licence}")
    typer.echo("\nnot supported:")
    for name, reason in manifest.unsupported().items():
        typer.echo(f"  {name:16} {reason}")
