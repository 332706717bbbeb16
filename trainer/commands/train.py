"""`flow-train train`: a run, or with --dry-run what can be known of it."""

import os
import signal
from contextlib import nullcontext
from typing import Annotated

import typer

from trainer.commands.common import (
    INTERRUPTED,
    exit_recorded,
    is_main,
    open_console,
    print_result,
    quiet_libraries,
    settings_for,
    write_pages,
)
from trainer.commands.options import Gpus, Overrides, preset_completion
from trainer.config.settings import Settings
from trainer.errors import ConfigError
from trainer.run.signals import stop_signals
from trainer.run.storage import storing
from trainer.terminal import Terminal, examples
from trainer.tools.plan import explain, size_note

app = typer.Typer()


@app.command(
    epilog=examples(
        "flow-train train mini_geneval",
        "flow-train train my.toml --set optim.lr=1e-4 --out runs/mine",
        "torchrun --nproc-per-node 8 -m trainer train geneval_sd35m_8gpu",
        "flow-train train geneval_sd35m --dry-run --gpus 8",
    )
)
def train(
    name: Annotated[
        str,
        typer.Argument(
            metavar="PRESET", help="Preset or .toml file.", autocompletion=preset_completion
        ),
    ] = "",
    preset: Annotated[str, typer.Option(help="The same, as an option.")] = "",
    overrides: Overrides = None,
    out: Annotated[str, typer.Option(help="Folder of the run; --set run.out_dir=")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything, load nothing.")
    ] = False,
    gpus: Gpus = 0,
    gpu_gb: Annotated[
        float, typer.Option(min=0, help="With --dry-run: memory of a GPU; 0: of this machine's.")
    ] = 0.0,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print alarms, warnings and the result alone.")
    ] = False,
) -> None:
    """Train; the same command continues a run that was interrupted.

    Exit codes: 0 finished, or saved after SIGTERM (result.json is there when finished); 2 settings,
    data or checkpoint; 3 no reward service; 4 reward service lost; 5 disk; 6 another process lost;
    130 saved after Ctrl-C.
    """
    if bool(name) == bool(preset):
        raise ConfigError("name one preset, e.g. flow-train train mini_geneval")
    if dry_run:
        plan(name or preset, overrides, out, gpus=gpus, gpu_gb=gpu_gb)
        return
    if gpus:
        raise ConfigError(
            "--gpus is for --dry-run; to train on several GPUs: torchrun --nproc-per-node N -m "
            f"trainer train {name or preset}"
        )
    with exit_recorded(out):
        settings = settings_for(name or preset, overrides, out)
    with exit_recorded(settings.run.out_dir):
        _train(name or preset, settings, quiet)


def _train(name: str, settings: Settings, quiet: bool) -> None:
    quiet_libraries()
    from trainer.run.open import train_run

    console = open_console()
    terminal = Terminal(console, quiet=quiet)

    def say(text: str) -> None:
        if is_main():
            terminal.say(text)

    if note := size_note(name, settings, int(os.environ.get("WORLD_SIZE", "1"))):
        say(note)
    with terminal if is_main() else nullcontext(), stop_signals(say) as stop:
        outcome = train_run(settings, say=say, stop=stop, show=terminal.show)
        asked = stop()
    if not outcome.reason:
        say(f"stopped after epoch {outcome.epoch} of {outcome.run_dir}: the same command continues")
        raise typer.Exit(INTERRUPTED if asked == signal.SIGINT else 0)
    if not is_main():
        return
    page = outcome.run_dir / "report.html"
    if not outcome.already or not page.is_file():
        with storing(str(page)):
            page = write_pages(outcome.run_dir)
    if outcome.already:
        console.print(f"{outcome.run_dir} is already finished ({outcome.reason})")
    print_result(console, outcome.run_dir, page)


def plan(name: str, overrides: list[str] | None, out: str, *, gpus: int, gpu_gb: float) -> None:
    """Print what can be known of a run before it loads anything."""
    settings = settings_for(name, overrides, out, gpus)
    quiet_libraries()
    from trainer.tools.checks import checks

    count = gpus or settings.run.gpus or 1
    for line in explain(name, settings, count):
        typer.echo(line)
    typer.echo("\nChecks")
    found = list(checks(settings, os.environ, gpus=count, gpu_gb=gpu_gb))
    for one in found:
        state = "STOPS" if one.stops else "ok" if one.ok else "note"
        typer.echo(f"  {state:6}{one.what:9}{one.text}")
    if any(one.stops for one in found):
        raise typer.Exit(ConfigError.exit_code)
