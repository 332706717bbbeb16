"""Commands about runs that have begun: weights, report, comparison, another reward."""

import os
import re
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from trainer.commands.common import (
    INTERRUPTED,
    open_console,
    print_result,
    quiet_libraries,
    write_pages,
)
from trainer.commands.options import RunDir, Stored
from trainer.config import load as config
from trainer.terminal import Terminal, examples

app = typer.Typer()


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
    print_result(open_console(), run_dir, write_pages(run_dir))


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
    console = open_console()
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
    with Terminal(open_console(stderr=True)) as terminal:
        found = rescore_run(run_dir, other, os.environ, terminal.show)
    name = re.sub(r"[^\w.-]+", "_", reward_name(found.found["other"]))
    page = out or run_dir / "rescored" / f"{name}.html"
    console = open_console()
    console.print(write(found, run_dir, page))
    console.print(f"page: {escape(str(page.resolve()))}")
