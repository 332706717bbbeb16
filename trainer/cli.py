"""`flow-train`, also as `python -m trainer`: train, sample, evaluate, report, compare, ..."""

import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib import metadata
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from prompt_sets.cli import data_app
from trainer.config import load as config
from trainer.config.preset import header, preset_names
from trainer.config.settings import Settings
from trainer.config.toml import to_toml
from trainer.errors import ConfigError, ServiceError, TrainerError
from trainer.run.log import EXIT, write_json
from trainer.run.signals import stop_signals
from trainer.run.storage import storing
from trainer.terminal import Terminal, examples
from trainer.tools.plan import explain, size_note

INTERRUPTED = 130
# What wrong options and arguments raise: typer exports only this subclass of it.
UsageError: type[typer.BadParameter] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
presets_app = typer.Typer(no_args_is_help=True, help="Shipped settings.")
app.add_typer(presets_app, name="presets")
app.add_typer(data_app, name="data")


def _presets(incomplete: str) -> list[str]:
    """For shell completion."""
    return [name for name in preset_names() if name.startswith(incomplete)]


def _console(*, stderr: bool = False) -> Console:
    return Console(stderr=stderr, soft_wrap=True, highlight=False)


Preset = Annotated[
    str, typer.Argument(help="Name of a preset, or a .toml file.", autocompletion=_presets)
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


def main() -> None:
    """Entry point: errors that a user can mend are one line; the exit code tells which kind."""
    try:
        sys.exit(app(standalone_mode=False))
    except UsageError as error:
        # Without arguments there is no message: the help has been printed.
        if _is_main() and (text := error.format_message().rstrip(".")):
            where = error.ctx.command_path if error.ctx else "flow-train"
            _print_error(f"{text} (see {where} --help)")
        sys.exit(ConfigError.exit_code)
    except TrainerError as error:
        if _is_main() or not error.shared:
            where = "" if _is_main() else f"process {os.environ['RANK']}: "
            _print_error(where + str(error))
        sys.exit(error.exit_code)


def _print_error(text: str) -> None:
    _console(stderr=True).print(f"[bold red]error:[/] {escape(text)}")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"flow-train {metadata.version('flow-reward')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Train flow-matching image models with Flow-GRPO (arXiv:2505.05470)."""


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
        typer.Argument(metavar="PRESET", help="Preset or .toml file.", autocompletion=_presets),
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
        settings = _settings(name or preset, overrides, out)
    with exit_recorded(settings.run.out_dir):
        _train(name or preset, settings, quiet)


def _train(name: str, settings: Settings, quiet: bool) -> None:
    quiet_libraries()
    from trainer.run.open import train_run

    console = _console()
    terminal = Terminal(console, quiet=quiet)

    def say(text: str) -> None:
        if _is_main():
            terminal.say(text)

    if note := size_note(name, settings, int(os.environ.get("WORLD_SIZE", "1"))):
        say(note)
    with terminal if _is_main() else nullcontext(), stop_signals(say) as stop:
        outcome = train_run(settings, say=say, stop=stop, show=terminal.show)
        asked = stop()
    if not outcome.reason:
        say(f"stopped after epoch {outcome.epoch} of {outcome.run_dir}: the same command continues")
        raise typer.Exit(INTERRUPTED if asked == signal.SIGINT else 0)
    if not _is_main():
        return
    page = outcome.run_dir / "report.html"
    if not outcome.already or not page.is_file():
        with storing(str(page)):
            page = _written(outcome.run_dir)
    if outcome.already:
        console.print(f"{outcome.run_dir} is already finished ({outcome.reason})")
    _print_result(console, outcome.run_dir, page)


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
    with Terminal(_console(stderr=True)) as terminal:
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
    terminal = Terminal(_console(stderr=True))
    with terminal if _is_main() else nullcontext():
        measured = evaluate_target(target, choice, os.environ, terminal.show)
    if measured is None:
        return
    console = _console()
    for table in tables(measured):
        console.print(table)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(json_file, as_json(measured))
        console.print(f"written: {escape(str(json_file))}")


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
    terminal = Terminal(_console(stderr=True))
    todo = Plan(suites, place, data, limit, only)
    try:
        with terminal if _is_main() else nullcontext():
            found = run_benchmark(target, choice, todo, os.environ, terminal.say, terminal.show)
    except KeyboardInterrupt:
        if _is_main():
            _console(stderr=True).print(
                f"stopped: the same command continues in {escape(str(place))}"
            )
        raise typer.Exit(INTERRUPTED) from None
    if not _is_main():
        return
    console = _console()
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


@app.command(
    epilog=examples(
        "flow-train export runs/mine --out mine",
        "flow-train export runs/mine --out mine --checkpoint best --whole",
    )
)
def export(
    run_dir: RunDir,
    out: Annotated[Path, typer.Option(help="Folder for the weights and their card.")],
    checkpoint: Stored = "latest",
    whole: Annotated[
        bool, typer.Option("--whole", help="The complete pipeline, a LoRA merged into it.")
    ] = False,
) -> None:
    """Write a run's weights for diffusers, with a model card: of any checkpoint, at any time."""
    quiet_libraries()
    from trainer.tools.offline import export_run

    export_run(run_dir, out, checkpoint=checkpoint, whole=whole)
    typer.echo(str(out))


@app.command(
    epilog=examples(
        "flow-train report runs/mine",
        "flow-train report runs/mine --watch --every 30",
    )
)
def report(
    run_dir: RunDir,
    watch: Annotated[
        bool, typer.Option("--watch", help="Write it again as the run goes on, until it ends.")
    ] = False,
    every_s: Annotated[
        float, typer.Option("--every", min=1, help="With --watch: least seconds between two.")
    ] = 10.0,
) -> None:
    """Write RUN_DIR/report.html and the card of RUN_DIR/model again, finished or not.

    With --watch, the open page loads itself again and stays where it was; Ctrl-C ends it.
    """
    if watch:
        try:
            from trainer.report.watch import watch_run

            watch_run(run_dir, every_s, typer.echo)
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
    _print_result(_console(), run_dir, _written(run_dir))


@app.command(
    epilog=examples(
        "flow-train compare runs/kl_0.04 runs/kl_0.4",
        "flow-train compare runs/seed_* --out seeds.html",
        "flow-train compare base/benchmark.json trained/benchmark.json",
    )
)
def compare(
    run_dirs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN_A RUN_B ...", help="Runs, or two benchmark.json."),
    ],
    out: Annotated[Path, typer.Option(help="The page, of runs.")] = Path("compare.html"),
    force: Annotated[
        bool, typer.Option("--force", help="Compare benchmarks that were made unlike, and say how.")
    ] = False,
) -> None:
    """Put runs side by side: what differs, curves over each other, differences with intervals.

    Of two benchmark.json: the paired difference of every number; unlike manifests are refused.

    The first is what the others are compared with. Unfinished runs and runs of different length
    are welcome; runs of different tasks are refused.
    """
    console = _console()
    if all(place.suffix == ".json" for place in run_dirs):
        from trainer.suites.compare import compare as compare_benchmarks

        console.print(compare_benchmarks(run_dirs, force=force))
        return
    from trainer.report.compare import compare as compare_runs

    console.print(compare_runs(run_dirs, out))
    console.print(f"comparison: {escape(str(out.resolve()))}")


@app.command(
    epilog=examples(
        "flow-train rescore runs/mine --scorer pickscore --url grpc://127.0.0.1:50051",
        "flow-train rescore runs/mine --weights geneval=1,jpeg=0.2",
        "flow-train rescore runs/mine --scorer jpeg --weights geneval=1,jpeg=0.5",
    )
)
def rescore(
    run_dir: RunDir,
    scorer: Annotated[
        list[str] | None,
        typer.Option(help="scorer or scorer.component to score with; may be repeated."),
    ] = None,
    weights: Annotated[
        str, typer.Option(help="a=1,b=0.5: of --scorer and of what was recorded; else 1 each.")
    ] = "",
    url: Annotated[str, typer.Option(help="Reward service; else REWARD_URL or the run's.")] = "",
    groups: Annotated[
        int, typer.Option(min=0, help="Score so many groups, evenly over the run; 0: all.")
    ] = 0,
    force: Annotated[
        bool, typer.Option("--force", help="Score lossy pictures, too, and mark the result.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="The page, with the .json beside it; else in the run.")
    ] = None,
) -> None:
    """Give a recorded run the advantages of another reward, and show where the two disagree.

    Needs a run with record.images. Scores its pictures with other scorers, or weighs anew what was
    recorded; the run is not changed.
    """
    from trainer.report.rescored import reward_name, write
    from trainer.tools.rescore import Other, parse_weights
    from trainer.tools.rescore import rescore as rescore_run

    terms = tuple(config.term_of(text) for text in scorer or ())
    other = Other(terms, parse_weights(weights), url, force, groups)
    with Terminal(_console(stderr=True)) as terminal:
        found = rescore_run(run_dir, other, os.environ, terminal.show)
    name = re.sub(r"[^\w.-]+", "_", reward_name(found.found["other"]))
    page = out or run_dir / "rescored" / f"{name}.html"
    console = _console()
    console.print(write(found, run_dir, page))
    console.print(f"page: {escape(str(page.resolve()))}")


@presets_app.command("list", epilog=examples("flow-train presets list"))
def list_presets() -> None:
    """Name the presets."""
    table = Table("preset", "what it is", box=None)
    for name in preset_names():
        table.add_row(name, header(name)[0])
    Console().print(table)


@presets_app.command(
    "show",
    epilog=examples(
        "flow-train presets show mini_geneval",
        "flow-train presets show geneval_sd35m --gpus 8",
        "flow-train presets show geneval_sd35m --toml > mine.toml",
    ),
)
def show_preset(
    preset: Preset,
    overrides: Overrides = None,
    gpus: Gpus = 0,
    every: Annotated[
        bool, typer.Option("--all", help="Every setting as it would be used, with its meaning.")
    ] = False,
    toml: Annotated[
        bool, typer.Option("--toml", help="Every setting as a file of your own, nothing else.")
    ] = False,
) -> None:
    """Explain what a preset does in an epoch, and print its settings."""
    chosen = config.load(preset, overrides or (), os.environ, world_size=gpus)
    if toml:
        typer.echo(to_toml(chosen))
        return
    for line in explain(preset, chosen, gpus or chosen.run.gpus or 1):
        typer.echo(line)
    if not every:
        typer.echo(
            "\nEvery setting: --all, or as a file: --toml. Check what a run needs: flow-train train"
        )
        typer.echo(f"{preset} --dry-run")
        return
    for section, values in chosen:
        typer.echo(f"\n[{section}]")
        for name, field in type(values).model_fields.items():
            text = f"  # {' '.join(field.description.split())}" if field.description else ""
            typer.echo(f"{name} = {getattr(values, name)!r}{text}")


def plan(name: str, overrides: list[str] | None, out: str, *, gpus: int, gpu_gb: float) -> None:
    """Print what can be known of a run before it loads anything."""
    settings = _settings(name, overrides, out, gpus)
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


@contextmanager
def exit_recorded(run_dir: str) -> Iterator[None]:
    """Leave in RUN_DIR/exit.json how this start ended, because torchrun hides exit codes.

    It has `exit_code` and `error` (one line, or nothing); a start that was killed leaves no file.
    """
    if not run_dir or not _is_main():
        yield
        return
    file, code, error = Path(run_dir) / EXIT, 0, ""
    with suppress(OSError):
        file.unlink()
    try:
        yield
    except typer.Exit as ended:
        code = ended.exit_code
        raise
    except Exception as raised:
        code = raised.exit_code if isinstance(raised, TrainerError) else 1
        error = " ".join((str(raised) or type(raised).__name__).split())
        raise
    finally:
        # On a full disk the line on stderr has to do.
        with suppress(OSError):
            write_json(file, {"exit_code": code, "error": error})


def _written(run_dir: Path) -> Path:
    """Write the report, and the card of the weights where there are some."""
    from trainer.report.card import write_card
    from trainer.report.page import write_report

    page = write_report(run_dir)
    if (run_dir / "model").is_dir():
        write_card(run_dir, run_dir / "model")
    return page


def _print_result(console: Console, run_dir: Path, page: Path) -> None:
    from trainer.report.page import before_after

    console.print(before_after(run_dir))
    console.print(f"report: {page.resolve()}")


def _settings(preset: str, overrides: list[str] | None, out: str, world_size: int = 0) -> Settings:
    extra = [f"run.out_dir={out}"] if out else []
    return config.load(preset, [*(overrides or ()), *extra], os.environ, world_size=world_size)


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def quiet_libraries() -> None:
    """Loading bars and advice about optional packages are no use to someone who trains."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
