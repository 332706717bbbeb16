"""`flow-train data`: fetch published prompts, or make new ones."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from prompt_sets import geneval as geneval_prompts
from prompt_sets import ocr as ocr_prompts
from prompt_sets.official import catalog
from trainer.data import TASKS
from trainer.errors import DataError, did_you_mean
from trainer.terminal import examples

data_app = typer.Typer(
    no_args_is_help=True, help="Prompts: fetch the published ones, make new ones."
)

Count = Annotated[int, typer.Option(min=1, help="How many prompts.")]
Out = Annotated[Path, typer.Option(help="File to write, .jsonl.")]
Seed = Annotated[int, typer.Option(help="Decides every choice.")]
Exclude = Annotated[
    Path | None, typer.Option(help="Prompt file; none of its prompts will be in the new one.")
]


@data_app.command("list", epilog=examples("flow-train data list"))
def list_sets() -> None:
    """Name the published sets."""
    for one in catalog().values():
        typer.echo(f"{one.name:21} {one.what}")
        further = "; pull says how to get the pictures" if one.further else ""
        typer.echo(f"{'':21} licence: {one.licence}{further}")


@data_app.command(
    "pull", epilog=examples("flow-train data pull geneval", "flow-train data pull ocr --into sets")
)
def pull_sets(
    names: Annotated[list[str], typer.Argument(help="As `flow-train data list` names them.")],
    into: Annotated[Path, typer.Option(help="Folder for the sets.")] = Path("dataset"),
) -> None:
    """Fetch published prompt files and check them; the presets look for them in dataset/."""
    from prompt_sets.download import pull

    for name in names:
        if name not in catalog():
            raise DataError(
                f"unknown set {name!r}{did_you_mean(name, list(catalog()))}; "
                f"there are {', '.join(catalog())}"
            )
    sets = [catalog()[name] for name in names]
    for one in sets:
        typer.echo(f"{one.name}: licence {one.licence}")
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bars:
        bar = bars.add_task("connecting", total=None)
        pull(
            sets,
            into,
            typer.echo,
            lambda file, done_bytes, total_bytes: bars.update(
                bar, description=file, completed=done_bytes, total=total_bytes or None
            ),
        )
    for one in sets:
        if one.further:
            typer.echo(one.further.format(root=into).strip())


@data_app.command(
    "geneval",
    epilog=examples("flow-train data geneval --out train.jsonl --exclude test.jsonl"),
)
def make_geneval(
    out: Out,
    count: Count = 50_000,
    seed: Seed = 0,
    exclude: Exclude = None,
    ratio: Annotated[
        str, typer.Option(help="Shares of the categories, name=share with commas between.")
    ] = ",".join(f"{name}={share}" for name, share in geneval_prompts.RATIO.items()),
) -> None:
    """Make GenEval training prompts in the benchmark's wording and mixture.

    With --exclude, neither a prompt of that file nor its scene in other words is made.
    """
    held_out = TASKS["geneval"](exclude, print) if exclude else []
    rows = geneval_prompts.generate(
        count,
        seed=seed,
        ratio=_ratio(ratio),
        exclude=[{**(p.spec or {}), "prompt": p.text} for p in held_out],
    )
    _write(out, rows, "tag")


@data_app.command(
    "ocr",
    epilog=examples(
        "flow-train data ocr --out train.txt", "flow-train data ocr --out test.jsonl --test"
    ),
)
def make_ocr(
    out: Out,
    count: Count = 20_000,
    seed: Seed = 0,
    exclude: Exclude = None,
    test: Annotated[
        bool, typer.Option("--test", help="Test prompts: their texts never come in training.")
    ] = False,
) -> None:
    """Make prompts that ask for a text in a scene."""
    barred = [prompt.text for prompt in TASKS["ocr"](exclude, print)] if exclude else []
    split = "test" if test else "train"
    _write(out, ocr_prompts.generate(count, split=split, seed=seed, exclude=barred), "group")


def _ratio(text: str) -> dict[str, float]:
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            raise DataError(f"--ratio {part!r}: write name=share, e.g. counting=5") from None
    return shares


def _write(out: Path, rows: Sequence[Mapping[str, Any]], category: str) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = out.with_name(f".{out.name}.new")
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(out)
    except OSError as error:
        raise DataError(f"{out}: {error.strerror}") from error
    different = len({row["prompt"] for row in rows})
    typer.echo(f"{out}: {len(rows):,} prompts, {different:,} different")
    for name, count in Counter(row[category] for row in rows).most_common():
        typer.echo(f"  {name:14} {count:>7,}")
