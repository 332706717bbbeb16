"""Run the paper's ablations on the miniature and draw the figures of docs/explain/experiments.md.

make serve                                                    # in another terminal
REWARD_URL=grpc://127.0.0.1:50051 python scripts/experiments.py run --out runs/experiments
python scripts/experiments.py report --out runs/experiments --docs docs

Every run differs from the reference in the settings that its name says and in nothing else: same
seed, same prompts in the same order, same evaluation. A run that is there already is not repeated,
and one that was interrupted goes on.

What is trained is a small size of the picture as a JPEG (DDPO's compressibility): a dense
reward that the policy gradient follows within minutes. GenEval accuracy, which nobody asks for,
shows what it costs. GenEval as the reward is too sparse for so few images
(docs/explain/miniature.md).
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer
from contact_sheet import labelled

from trainer.report.svg import Axes, Series, line_document, moving_average

PRESET = "mini_geneval"
REFERENCE = "reference"
SMOOTHING_EPOCHS = 4
SAMPLES = "experiment_samples.png"
LAST_EPOCHS = 8
# Between the base's pictures (1.29 kB) and empty ones (0.86 kB).
HALFWAY_KB = 1.08
# One epoch is 96 images; an evaluation is one image of each held-out prompt.
COMMON = (
    "run.epochs=32",
    "optim.lr=1e-4",
    'rewards.train=[{scorer="jpeg",transform="incompressibility",weight=-1.0}]',
    "run.max_minutes=0",
    "run.seed=0",
    "batch.prompts_per_epoch=8",
    "batch.images_per_prompt=12",
    "batch.rollout_batch_size=48",
    "eval.every_epochs=0",
    "eval.every_minutes=0",
    "eval.images_per_prompt=1",
    "logging.tensorboard=false",
)


@dataclass(frozen=True, slots=True)
class Study:
    """One question.

    Attributes:
        title: what the figure is called.
        variants: settings by the name of the run; `REFERENCE` is shown beside them in each study.
    """

    title: str
    variants: Mapping[str, tuple[str, ...]]


STUDIES: dict[str, Study] = {
    "kl": Study(
        "KL to the base (reference: 0.04)",
        {
            "KL off": ("loss.kl_beta=0",),
            "KL 1": ("loss.kl_beta=1",),
            "KL 10": ("loss.kl_beta=10",),
        },
    ),
    "group_size": Study(
        "Group size at 96 images per epoch (reference: 12)",
        {
            "G = 4": ("batch.prompts_per_epoch=24", "batch.images_per_prompt=4"),
            "G = 24": ("batch.prompts_per_epoch=4", "batch.images_per_prompt=24"),
        },
    ),
    "noise": Study(
        "Noise level (reference: a = 0.7)",
        {"a = 0.1": ("sampling.noise_level=0.1",), "a = 1.4": ("sampling.noise_level=1.4",)},
    ),
    "steps": Study(
        "Training steps (reference: T = 10)",
        {
            "T = 40": (
                "sampling.num_steps=40",
                "sampling.window_size=12",
                "sampling.window_end=20",
            ),
            "T = 5": ("sampling.num_steps=5", "sampling.window_size=2", "sampling.window_end=3"),
        },
    ),
    "window": Study(
        "Stochastic window (reference: 3 of the first 5 steps)",
        {
            "all 9 steps": ("sampling.window_size=0", "sampling.window_end=0"),
            "1 step": ("sampling.window_size=1",),
        },
    ),
    "transition": Study(
        "Kind of the stochastic steps (reference: flow_sde)",
        {
            "cps a = 0.8": (
                "sampling.sde=cps",
                "sampling.noise_level=0.8",
                # Its log-ratio is smaller by 2 std^2: the official code clips at 1e-5 for it.
                "loss.clip_low=1e-4",
                "loss.clip_high=1e-4",
            ),
            "dance a = 0.7": ("sampling.sde=dance",),
        },
    ),
    "loss": Study(
        "Loss (reference: grpo)",
        {
            "grpo_guard": (
                "loss.algorithm=grpo_guard",
                "loss.clip_low=2e-4",
                "loss.clip_high=2e-4",
            ),
            "nft": (
                "loss.algorithm=nft",
                "sampling.sde=ode",
                "sampling.window_size=0",
                "sampling.window_end=0",
                "loss.kl_beta=0.12",
                "batch.optimizer_steps_per_epoch=1",
            ),
        },
    ),
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


def slug(name: str) -> str:
    """A folder name of a variant's name."""
    return "".join(c if c.isalnum() or c == "." else "_" for c in name.lower())


def variants() -> dict[str, tuple[str, ...]]:
    """Every run by name, the reference first."""
    found: dict[str, tuple[str, ...]] = {REFERENCE: ()}
    for study in STUDIES.values():
        found.update(study.variants)
    return found


@app.command()
def run(
    out: Out = Path("runs/experiments"),
    only: Annotated[list[str] | None, typer.Option(help="studies; all by default")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="for every run")] = None,
) -> None:
    """Do the runs that are not there yet, one after the other."""
    chosen: dict[str, tuple[str, ...]] = {REFERENCE: ()}
    for name, study in STUDIES.items():
        if not only or name in only:
            chosen |= study.variants
    for name, settings in chosen.items():
        options = [*COMMON, *settings, *(overrides or ()), f"run.out_dir={out / slug(name)}"]
        command = [sys.executable, "-m", "trainer", "train", PRESET]
        for option in options:
            command += ["--set", option]
        typer.echo(f"== {name}: {' '.join(settings) or 'the reference'}")
        if subprocess.run(command, check=False).returncode:
            raise typer.Exit(1)


@app.command()
def report(
    out: Out = Path("runs/experiments"),
    docs: Annotated[Path, typer.Option(help="folder with images/")] = Path("docs"),
) -> None:
    """Draw one figure per study and print the tables."""
    done = [name for name in variants() if (out / slug(name) / "result.json").is_file()]
    runs = {name: read(out / slug(name)) for name in done}
    for key, study in STUDIES.items():
        names = [name for name in (REFERENCE, *study.variants) if name in runs]
        if len(names) < 2:
            continue
        path = docs / "images" / f"experiment_{key}.svg"
        path.write_text(figure({name: runs[name] for name in names}), encoding="utf-8")
        typer.echo(f"\n### {study.title}\n\n![{study.title}](images/{path.name})\n")
        typer.echo(table({name: runs[name] for name in names}))
    shown = [name for name in (REFERENCE, *STUDIES["kl"].variants) if name in runs]
    first = _evaluation(runs[REFERENCE], "base")
    finals = [
        (name, out / slug(name) / _evaluation(runs[name], "final")["samples"]) for name in shown
    ]
    sheets = [("base", out / slug(REFERENCE) / first["samples"]), *finals]
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
