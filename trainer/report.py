"""`report.html` of a run: one file without external assets, made from what the run wrote down.

Works on unfinished runs too: the newest evaluation then stands for the result.
"""

import base64
import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image as PilImage
from rich.table import Table

from trainer.charts import Axes, Series, area_chart, line_chart, moving_average
from trainer.errors import ConfigError
from trainer.grids import cut, load_png
from trainer.metrics import read
from trainer.run_state import RESOLVED, RESULT

TEMPLATES = Path(__file__).parent / "templates"
TOLERANCE = 0.10  # of the base: how far a watched reward may move
SHOWN_EVALUATIONS = 7
LARGEST_PX = 160


@dataclass(frozen=True, slots=True)
class RunData:
    """All that a report is made from.

    Attributes:
        run_dir: folder of the run.
        settings: dumped settings.
        versions: package versions.
        scorers: fingerprints.
        result: `result.json`, or None while the run goes on.
        epochs: the training rows.
        evaluations: the evaluation rows; the first is the base.
    """

    run_dir: Path
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    scorers: Mapping[str, str]
    result: Mapping[str, Any] | None
    epochs: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Mapping[str, Any]]

    @property
    def base(self) -> Mapping[str, Any]:
        """The evaluation of the untrained model."""
        return self.evaluations[0]

    @property
    def after(self) -> Mapping[str, Any]:
        """The newest evaluation."""
        return self.evaluations[-1]

    @property
    def headline(self) -> str:
        """Name of the first measured term."""
        return next(iter(self.base["metrics"]))


def load_run(run_dir: Path) -> RunData:
    """Read a run's folder.

    Raises:
        ConfigError: it holds no run, or nothing has been evaluated yet.
    """
    try:
        resolved = json.loads((run_dir / RESOLVED).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{run_dir} holds no run (there is no {RESOLVED})") from None
    rows = read(run_dir)
    evaluations = [row for row in rows if row["kind"] == "eval"]
    if not evaluations:
        raise ConfigError(f"{run_dir} has no evaluation yet")
    result = run_dir / RESULT
    return RunData(
        run_dir=run_dir,
        settings=resolved["settings"],
        versions=resolved["versions"],
        scorers=resolved["scorers"],
        result=json.loads(result.read_text(encoding="utf-8")) if result.is_file() else None,
        epochs=[row for row in rows if row["kind"] == "train"],
        evaluations=evaluations,
    )


def write_report(run_dir: Path) -> Path:
    """Write `report.html` into a run's folder and return its path.

    Raises:
        ConfigError: see `load_run`.
    """
    run = load_run(run_dir)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    html = environment.get_template("report.html").render(
        title=run_dir.name,
        run=run,
        finished=run.result is not None,
        headline=comparison(run.headline, run.base["metrics"], run.after["metrics"]),
        categories=categories(run),
        others=[
            comparison(name, run.base["metrics"], run.after["metrics"])
            for name in list(run.base["metrics"])[1:]
        ],
        watch=watched(run),
        verdict=verdict(run),
        facts=facts(run),
        samples=samples(run),
        charts=charts(run),
        sections=run.settings,
        loading=loading(run),
        command=f"flow-train report {shlex.quote(str(run_dir))}",
        pct=percent,
        num=number,
    )
    path = run_dir / "report.html"
    temporary = run_dir / ".report.html.writing"
    temporary.write_text(html, encoding="utf-8")
    temporary.replace(path)
    return path


def before_after(run_dir: Path) -> Table:
    """The before/after table for the console.

    Raises:
        ConfigError: see `load_run`.
    """
    run = load_run(run_dir)
    table = Table(title=f"{run_dir.name}: held-out prompts, {run.after['images']} images")
    for name in ("", "base", "trained", "change"):
        table.add_column(name, justify="left" if not name else "right")
    for row in categories(run):
        table.add_row(row["name"], _interval(row["before"]), _interval(row["after"]), row["text"])
    table.add_section()
    whole = comparison(run.headline, run.base["metrics"], run.after["metrics"])
    cells = (_interval(whole["before"]), _interval(whole["after"]), whole["text"])
    table.add_row(f"[bold]{run.headline} (mean of categories)[/]", *cells)
    table.add_section()
    for row in watched(run):
        table.add_row(
            f"watched: {row['name']}",
            number(row["before"]["mean"]),
            number(row["after"]["mean"]),
            percent(row["relative"]),
        )
    return table


def comparison(
    name: str, before: Mapping[str, Any], after: Mapping[str, Any], category: str = ""
) -> dict[str, Any]:
    """One line of the before/after table.

    Returns:
        `name`, `before` and `after` (mean, low, high, n), `change`, `relative` (to the absolute
        base), `clear` (the intervals do not touch) and `text`.
    """
    empty = {"mean": None, "low": None, "high": None, "n": 0}
    first, second = before[name], after.get(name, empty)
    if category:
        first = first["categories"][category]
        second = second.get("categories", {}).get(category, empty)
    change = relative = None
    clear = False
    if first["mean"] is not None and second["mean"] is not None:
        change = second["mean"] - first["mean"]
        relative = change / abs(first["mean"]) if abs(first["mean"]) > 1e-9 else None
        clear = second["low"] > first["high"] or second["high"] < first["low"]
    return {
        "name": category or name,
        "before": first,
        "after": second,
        "change": change,
        "relative": relative,
        "clear": clear,
        "text": "-" if change is None else f"{change:+.3f}",
    }


def categories(run: RunData) -> list[dict[str, Any]]:
    """Before and after of the headline, by category."""
    names = run.base["metrics"][run.headline]["categories"]
    return [
        comparison(run.headline, run.base["metrics"], run.after["metrics"], name) for name in names
    ]


def watched(run: RunData) -> list[dict[str, Any]]:
    """Before and after of what is watched but not trained on.

    `state` is `steady`, `fell`, `rose` or `unknown` (the base is zero or nothing was scored).
    """
    after = dict(run.after["watch"])
    for row in reversed(run.evaluations):
        # Evaluations with one image per prompt have no diversity.
        for name, value in row["watch"].items():
            after.setdefault(name, value)
    out = []
    for name in run.base["watch"]:
        line = comparison(name, run.base["watch"], after)
        relative = line["relative"]
        line["state"] = (
            "unknown"
            if relative is None
            else "fell"
            if relative < -TOLERANCE
            else "rose"
            if relative > TOLERANCE
            else "steady"
        )
        out.append(line)
    return out


def verdict(run: RunData) -> dict[str, str]:
    """The reward-hacking monitor in plain words: `kind` (good, warn, none) and `text`."""
    rows = [row for row in watched(run) if row["state"] != "unknown"]
    if not rows:
        return {
            "kind": "none",
            "text": "Nothing is watched beside the trained reward, so reward hacking would not be "
            "seen here. Name scorers in rewards.watch.",
        }
    fell = [row for row in rows if row["state"] == "fell"]
    rose = [row for row in rows if row["state"] == "rose"]
    gain = comparison(run.headline, run.base["metrics"], run.after["metrics"])["change"] or 0.0
    if fell:
        names = " and ".join(f"{row['name']} fell by {-row['relative']:.0%}" for row in fell)
        text = (
            f"{names} against the base while {run.headline} changed by {gain:+.3f}. This is how "
            "reward hacking looks: compare the samples. A larger loss.kl_beta, a smaller optim.lr "
            "or an earlier checkpoint are the usual remedies."
        )
        return {"kind": "warn", "text": text}
    tail = ""
    if rose:
        names = " and ".join(f"{row['name']} ({percent(row['relative'])})" for row in rose)
        tail = f" Above it: {names}."
    return {
        "kind": "good",
        "text": f"None of the {len(rows)} watched rewards fell by more than {TOLERANCE:.0%} of "
        f"the base while {run.headline} changed by {gain:+.3f}: no sign of reward hacking.{tail}",
    }


def facts(run: RunData) -> list[tuple[str, str]]:
    """The numbers in the cards at the top."""
    images = sum(row["images"] for row in run.epochs)
    failed = sum(row["failed"] for row in run.epochs) + sum(r["failed"] for r in run.evaluations)
    minutes = run.epochs[-1]["train_minutes"] if run.epochs else 0.0
    deviations = [
        row["first_ratio_deviation"]
        for row in run.epochs
        if row.get("first_ratio_deviation") is not None
    ]
    exact = "exactly 1" if not any(deviations) else f"off by up to {max(deviations):.1e}"
    return [
        ("training time", f"{minutes:.1f} min"),
        ("epochs", f"{len(run.epochs)}"),
        ("optimiser updates", f"{run.epochs[-1]['updates'] if run.epochs else 0}"),
        ("images trained on", f"{images:,}"),
        ("images without a score", f"{failed}"),
        ("first ratio of every epoch", exact if deviations else "-"),
    ]


def samples(run: RunData) -> dict[str, Any]:
    """The shown prompts through training: `heads` and one row of images per prompt."""
    rows = [row for row in run.evaluations if row.get("samples")]
    rows = [row for row in rows if (run.run_dir / row["samples"]).is_file()]
    if len(rows) > SHOWN_EVALUATIONS:
        last = len(rows) - 1
        picked = {round(i * last / (SHOWN_EVALUATIONS - 1)) for i in range(SHOWN_EVALUATIONS)}
        rows = [rows[index] for index in sorted(picked)]
    if not rows:
        return {"heads": [], "rows": []}
    side = int(run.settings["sampling"]["resolution_px"])
    columns = [cut(load_png(run.run_dir / row["samples"]), side) for row in rows]
    heads = [
        {
            "title": "base" if row["epoch"] == 0 else f"epoch {row['epoch']}",
            "minutes": f"{row['train_minutes']:.1f} min",
        }
        for row in rows
    ]
    pictures = [
        {"prompt": prompt, "images": [_data_url(column[index]) for column in columns]}
        for index, prompt in enumerate(rows[0]["shown"])
    ]
    return {"heads": heads, "rows": pictures}


def charts(run: RunData) -> list[dict[str, str]]:
    """All curves: title, note and SVG."""
    rows, evals = run.epochs, run.evaluations
    x = [row["epoch"] for row in rows]
    at = [row["epoch"] for row in evals]
    out: list[tuple[str, str, str]] = []
    whole = [row["metrics"][run.headline] for row in evals]
    line = Series(
        "mean of categories",
        at,
        [v["mean"] for v in whole],
        [v["low"] for v in whole],
        [v["high"] for v in whole],
    )
    note = "Held-out prompts, fixed seeds, EMA weights; the band is the 95 % interval."
    out.append((f"{run.headline} on held-out prompts", note, line_chart([line])))
    names = list(whole[0]["categories"])
    if len(names) > 1:
        lines = [
            Series(
                name,
                at,
                [v["categories"].get(name, {}).get("mean") for v in whole],
                color=index % 6 + 1,
            )
            for index, name in enumerate(names)
        ]
        out.append((f"{run.headline} by category", "The same images.", line_chart(lines)))
    if rows:
        for name in rows[0]["reward"]:
            values = [row["reward"][name] for row in rows]
            out.append(
                (
                    f"Training reward: {name}",
                    "Mean of each epoch and of the last ten.",
                    line_chart(
                        [
                            Series(name, x, values, faint=True),
                            Series("mean of ten epochs", x, moving_average(values, 10)),
                        ]
                    ),
                )
            )
    relative = _relative_watch(run, at)
    if relative:
        out.append(
            (
                "Watched rewards, change against the base",
                f"Never trained on. The band is ±{TOLERANCE:.0%}.",
                line_chart(relative, Axes(band=(-100 * TOLERANCE, 100 * TOLERANCE), unit="%")),
            )
        )
    if rows:
        out += _policy_charts(rows, x)
    return [{"title": t, "note": n, "svg": s} for t, n, s in out if s]


def _relative_watch(run: RunData, at: Sequence[float]) -> list[Series]:
    lines = []
    for index, (name, first) in enumerate(run.base["watch"].items()):
        base = first["mean"]
        if base is None or abs(base) < 1e-9:
            continue
        means = [row["watch"].get(name, {}).get("mean") for row in run.evaluations]
        change = [None if m is None else 100 * (m - base) / abs(base) for m in means]
        lines.append(Series(name, at, change, color=index % 6 + 1))
    return lines


def _policy_charts(
    rows: Sequence[Mapping[str, Any]], x: Sequence[float]
) -> list[tuple[str, str, str]]:
    def of(name: str) -> list[float | None]:
        return [row["policy"].get(name) for row in rows]

    def smooth(name: str, label: str, color: int = 1) -> list[Series]:
        values = of(name)
        return [
            Series(label, x, values, faint=True, color=color),
            Series(label, x, moving_average(values, 10), color=color),
        ]

    times = [
        Series(label, x, [row["seconds"][key] for row in rows], color=color)
        for label, key, color in (
            ("rollout", "rollout", 1),
            ("waiting for scores", "score_wait", 2),
            ("update", "train", 3),
        )
    ]
    groups = [row["advantage"]["zero_std_groups"] for row in rows]
    return [
        (
            "KL to the base model",
            "In the form that the loss uses.",
            line_chart(smooth("kl", "KL"), Axes(y_min=0)),
        ),
        (
            "Clipped ratios",
            "Share of samples outside the clip range.",
            line_chart(
                [*smooth("clip_frac_low", "below", 1), *smooth("clip_frac_high", "above", 2)],
                Axes(y_min=0),
            ),
        ),
        (
            "Gradient norm",
            "Before clipping.",
            line_chart(smooth("grad_norm", "norm"), Axes(y_min=0)),
        ),
        (
            "Groups without a signal",
            "Share of prompts whose images all scored alike.",
            line_chart(
                [
                    Series("", x, groups, faint=True),
                    Series("share of groups", x, moving_average(groups, 10)),
                ],
                Axes(y_min=0, y_max=1),
            ),
        ),
        ("Seconds per epoch", "Where the time goes.", area_chart(times)),
    ]


def loading(run: RunData) -> str:
    """Python code that draws with the result in plain diffusers."""
    model, sampling = run.settings["model"], run.settings["sampling"]
    base = model["path"].replace("@mini/", "trainer/mini/")
    folder = run.run_dir / "model"
    scale = sampling["eval_guidance_scale"]
    scale = sampling["guidance_scale"] if scale is None else scale
    lines = ["import torch", "from diffusers import StableDiffusion3Pipeline", ""]
    if model["finetune"] == "lora":
        lines += [
            f'pipe = StableDiffusion3Pipeline.from_pretrained("{base}", torch_dtype=torch.float32)',
            f'pipe.load_lora_weights("{folder}")',
        ]
    else:
        lines[1] = "from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline"
        lines += [
            f'transformer = SD3Transformer2DModel.from_pretrained("{folder}/transformer")',
            "pipe = StableDiffusion3Pipeline.from_pretrained(",
            f'    "{base}", transformer=transformer, torch_dtype=torch.float32',
            ")",
        ]
    prompt = (run.base.get("shown") or ["a photo of a star"])[0]
    lines += [
        "image = pipe(",
        f"    {json.dumps(prompt)},",
        f"    height={sampling['resolution_px']}, width={sampling['resolution_px']},",
        f"    num_inference_steps={sampling['eval_num_steps']}, guidance_scale={scale:g},",
        f"    max_sequence_length={model['max_sequence_length']},",
        ").images[0]",
    ]
    return "\n".join(lines)


def percent(value: float | None) -> str:
    """A change as a signed percentage."""
    return "-" if value is None else f"{100 * value:+.1f} %"


def number(value: float | None) -> str:
    """Three decimals, or a dash."""
    return "-" if value is None else f"{value:.3f}"


def _interval(row: Mapping[str, Any]) -> str:
    if row["mean"] is None:
        return "-"
    return f"{row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f})"


def _data_url(pixels: Any) -> str:
    image = PilImage.fromarray(pixels)
    kind, options = "PNG", {"optimize": True}
    if max(image.size) > LARGEST_PX:
        image.thumbnail((LARGEST_PX, LARGEST_PX))
        kind, options = "JPEG", {"quality": 88}
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    text = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{kind.lower()};base64,{text}"
