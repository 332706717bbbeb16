"""Run the paper's ablations on the miniature and draw the figures of docs/explain/experiments.md.

make serve                                                    # in another terminal
REWARD_URL=grpc://127.0.0.1:50051 python scripts/experiments.py run --out runs/experiments
python scripts/experiments.py report --out runs/experiments --docs docs

The arms are those of scripts/arenas/ablations.toml. A run that is there already is not repeated,
and one that was interrupted goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import arena
import typer
from arena import folder_of
from contact_sheet import labelled

from trainer.report.svg import Axes, Series, line_document, moving_average

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE = Path(__file__).parent / "arenas" / "ablations.toml"
REFERENCE = "reference"
SMOOTHING_EPOCHS = 4
SAMPLES = "experiment_samples.png"
LAST_EPOCHS = 8
# Between the base's pictures (1.29 kB) and empty ones (0.86 kB).
HALFWAY_KB = 1.08


def questions() -> dict[str, tuple[str, list[str]]]:
    """By key: the title of every question and its arms, the reference first."""
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    return {
        key: (
            title,
            [REFERENCE, *(n for n, arm in table["arms"].items() if arm.get("question") == key)],
        )
        for key, title in table["questions"].items()
    }


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: its settings and the rows of its metrics."""

    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]

    @property
    def epochs(self) -> list[Mapping[str, Any]]:
        """The rows of training."""
        return [row for row in self.rows if row["kind"] == "train"]


app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
Out = Annotated[Path, typer.Option(help="folder of the runs")]


def folder(out: Path, name: str) -> Path:
    """Where the run of an arm lives."""
    return folder_of(out, name, 0)


@app.command()
def run(
    out: Out = Path("runs/experiments"),
    only: Annotated[list[str] | None, typer.Option(help="questions; all by default")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="for every run")] = None,
) -> None:
    """Do the runs that are not there yet, one after the other (`scripts/arena.py run`)."""
    known = questions()
    if unknown := set(only or ()) - set(known):
        raise typer.BadParameter(f"no question {sorted(unknown)}; there are {', '.join(known)}")
    chosen = dict.fromkeys(arm for key in only or known for arm in known[key][1])
    arena.run(TABLE, out, list(chosen), jobs=1, processes=1, overrides=overrides)


@app.command()
def report(
    out: Out = Path("runs/experiments"),
    docs: Annotated[Path, typer.Option(help="folder with images/")] = Path("docs"),
) -> None:
    """Draw one figure per study and print the tables."""
    asked = questions()
    arms = dict.fromkeys(arm for _, names in asked.values() for arm in names)
    done = [name for name in arms if (folder(out, name) / "result.json").is_file()]
    runs = {name: read(folder(out, name)) for name in done}
    for key, (title, every) in asked.items():
        names = [name for name in every if name in runs]
        if len(names) < 2:
            continue
        path = docs / "images" / f"experiment_{key}.svg"
        path.write_text(figure({name: runs[name] for name in names}), encoding="utf-8")
        typer.echo(f"\n### {title}\n\n![{title}](images/{path.name})\n")
        typer.echo(table({name: runs[name] for name in names}))
    shown = [name for name in asked["kl"][1] if name in runs]
    first = _evaluation(runs[REFERENCE], "base")
    finals = [
        (name, folder(out, name) / _evaluation(runs[name], "final")["samples"]) for name in shown
    ]
    sheets = [("base", folder(out, REFERENCE) / first["samples"]), *finals]
    labelled(sheets, first["shown"]).save(docs / "images" / SAMPLES, optimize=True)


def read(folder: Path) -> Run:
    """What a run has left in its folder."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))["settings"]
    return Run(settings, [json.loads(line) for line in lines])


def reward(row: Mapping[str, Any]) -> float | None:
    """Mean of the first training reward of an epoch."""
    return next(iter(row["reward"].values()))


def figure(runs: Mapping[str, Run]) -> str:
    """An SVG file of the training reward by epoch, smoothed."""
    series = []
    for color, (name, run) in enumerate(runs.items(), start=1):
        smooth = moving_average([reward(row) for row in run.epochs], SMOOTHING_EPOCHS)
        series.append(Series(name, [row["epoch"] for row in run.epochs], smooth, color=color))
    return line_document(series, Axes(x_label=f"epoch (kB as JPEG, mean of {SMOOTHING_EPOCHS})"))


def table(runs: Mapping[str, Run]) -> str:
    """A Markdown table: how fast, how far, at which price.

    Raises:
        IndexError: a run has no epoch or no evaluation yet.
    """
    out = [
        f"| run | {HALFWAY_KB} kB at epoch | kB, held-out | GenEval, held-out | KL "
        "| largest fall of a watched reward | passes per image |",
        "|---|---|---|---|---|---|---|",
    ]
    base = _evaluation(next(iter(runs.values())), "base")
    out.append(f"| base | | {_trained(base)} | {_all_prompts(base):.2f} | | | |")
    for name, run in runs.items():
        final = _evaluation(run, "final")
        cells = [
            name,
            _halfway(run),
            _trained(final),
            f"{_all_prompts(final):.2f}",
            _kl(run),
            _fall(base["watch"], final["watch"]),
            str(passes(run.settings)),
        ]
        out.append("| " + " | ".join(cells) + " |")
    return "\n".join(out)


def passes(settings: Mapping[str, Any]) -> int:
    """Passes of the network per image and epoch, those of updates with their gradient as one."""
    sampling, loss = settings["sampling"], settings["loss"]
    reference = int(loss["kl_beta"] > 0)
    if sampling["sde"] == "ode":  # the policy that sampled is asked as well
        return sampling["num_steps"] + loss["noise_levels"] * (2 + reference)
    trained = sampling["window_size"] or sampling["num_steps"] - 1
    return sampling["num_steps"] + trained * (1 + reference)


def _halfway(run: Run) -> str:
    smooth = moving_average([reward(row) for row in run.epochs], SMOOTHING_EPOCHS)
    places = [place for place, value in enumerate(smooth) if value and value < HALFWAY_KB]
    return str(run.epochs[places[0]]["epoch"]) if places else "not in time"


def _kl(run: Run) -> str:
    found = [row["policy"].get("kl") for row in run.epochs[-LAST_EPOCHS:]]
    kept = [value for value in found if value is not None]
    return f"{fmean(kept):.1e}" if kept else "–"


def _evaluation(run: Run, phase: str) -> Mapping[str, Any]:
    return [row for row in run.rows if row["kind"] == "eval" and row["phase"] == phase][-1]


def _trained(row: Mapping[str, Any]) -> str:
    found = next(iter(row["rewards"].values()))
    return f"{found['mean']:.3f}"


def _all_prompts(row: Mapping[str, Any]) -> float:
    """Share of all images that are right: a category of six prompts sways the mean of six."""
    parts = next(iter(row["metrics"].values()))["categories"].values()
    return sum(part["mean"] * part["n"] for part in parts) / sum(part["n"] for part in parts)


def _fall(base: Mapping[str, Any], final: Mapping[str, Any]) -> str:
    changes = {
        name: final[name]["mean"] / base[name]["mean"] - 1
        for name in base
        if name in final and base[name]["mean"] and final[name]["mean"] is not None
    }
    worst = min(changes, key=lambda name: changes[name])
    return f"{worst} {changes[worst]:+.0%}"


if __name__ == "__main__":
    app()
