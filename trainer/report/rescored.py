"""A run under another reward: a self-contained page, its numbers as JSON, a table."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import HORIZONTALS
from rich.markup import escape
from rich.table import Table

from trainer.evaluation.agreement import Rescored, compare, disagreements
from trainer.images import data_url, load_reference, strip
from trainer.report import data
from trainer.report.charts import SMOOTH, Chart
from trainer.report.svg import Axes, Series, moving_average
from trainer.run.log import write_json
from trainer.run.shards import read_pictures, stored
from trainer.run.storage import replace_file, storing

SHOWN = 12
LARGEST_PX, LARGEST_BYTES = 256, 24_000


def write(it: Rescored, run_dir: Path, page: Path) -> Table:
    """Write the page and, beside it, the numbers with those of every image as JSON.

    Returns the table; StorageError if they cannot be written.
    """
    found = compare(it)
    names = {side: reward_name(found[side]) for side in ("own", "other")}
    marks = [(found["parts_at"], "here they part")] if found["parts_at"] else []
    rows = list(lines(found))
    html = data.environment(html=True).get_template("rescored.html")
    text = html.render(
        title=run_dir.name,
        found=found,
        names=names,
        rows=rows,
        sentence=sentence(found, names),
        charts={"Epoch by epoch": [chart.drawn(marks) for chart in _charts(found, names)]},
        pictures=_pictures(it, run_dir, names),
        num=data.number,
    )
    scores = {name: column.tolist() for name, column in it.scores.items()}
    images = [
        {
            "key": row["key"],
            "scores": {name: column[place] for name, column in scores.items()},
            "advantage": {side: float(values[place]) for side, values in it.advantage.items()},
        }
        for place, row in enumerate(it.rows)
    ]
    with storing(str(page)):
        page.parent.mkdir(parents=True, exist_ok=True)
        replace_file(page, text)
        write_json(page.with_suffix(".json"), {**found, "per_image": images})
    title = f"{run_dir.name}: trained on {names['own']}, compared with {names['other']}"
    table = Table(
        title=escape(title),
        caption=escape(sentence(found, names)),
        box=HORIZONTALS,
        padding=0,
        show_header=False,
    )
    for label, value, _ in rows:
        table.add_row(escape(label), escape(value))
    return table


def reward_name(weights: Mapping[str, float]) -> str:
    if set(weights.values()) == {1.0}:
        return " + ".join(weights)
    return " + ".join(f"{weight:g} × {name}" for name, weight in weights.items())


def lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """What was found: a label, its value, and what it means."""

    def share(row: Mapping[str, Any]) -> str:
        if row["mean"] is None:
            return "-"
        mean, low, high = (f"{100 * row[name]:.0f}" for name in ("mean", "low", "high"))
        return f"{mean} % ({low} to {high})"

    signal, failed = found["signal"], found["failed"]
    yield (
        "images",
        f"{found['images']:,} in {found['groups']:,} groups of {found['prompts']:,} prompts",
        f"{found['left_out_groups']:,} recorded groups were left out."
        if found["left_out_groups"]
        else "All that were recorded.",
    )
    yield (
        "rank correlation within groups",
        data.interval(found["rank_correlation"]),
        "Spearman's, mean of the groups: 1 if both rank the images of a prompt alike, 0 by chance.",
    )
    yield (
        "advantages of another sign",
        share(found["sign_flips"]),
        "Images that one reward would have reinforced and the other suppressed; 50 % by chance.",
    )
    yield (
        "same best image of a group",
        share(found["best_agreement"]),
        "Groups with a signal in both whose best images are the same.",
    )
    yield (
        "groups that gain / lose a signal",
        f"{signal['gained']:,} / {signal['lost']:,} of {found['groups']:,}",
        "Without a signal (all images alike) a group teaches nothing.",
    )
    yield (
        "images without a score",
        f"{failed['own']:,} recorded, {failed['other']:,} of the other",
        "They are in no number above.",
    )


def sentence(found: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Where the two part, in words."""
    start, best, end = (found[name] for name in ("start", "best", "end"))
    if len(found["by_epoch"]) < 2:
        return "One epoch is compared: whether the two part takes more."
    if found["parts_at"]:
        return (
            f"They part at epoch {found['parts_at']}: from there to the end {names['other']} fell "
            f"from {data.number(best['other']['mean'])} to {data.number(end['other']['mean'])}, "
            f"while {names['own']} rose from {data.number(best['own']['mean'])} to "
            f"{data.number(end['own']['mean'])}, both beyond the 95 % intervals."
        )
    moved = [
        f"{names[side]} {data.number(start[side]['mean'])} to {data.number(end[side]['mean'])}"
        for side in ("own", "other")
    ]
    return (
        f"There is no epoch where they surely part: {names['other']} did not fall beyond the 95 % "
        f"intervals while {names['own']} rose. First to last tenth: {', '.join(moved)}."
    )


def _charts(found: Mapping[str, Any], names: Mapping[str, str]) -> Iterator[Chart]:
    rows = found["by_epoch"]
    x = [row["epoch"] for row in rows]
    for key, title, axes, color in (
        ("own", f"{names['own']} (trained on)", Axes(y_label="mean reward"), 1),
        ("other", names["other"], Axes(y_label="mean reward"), 2),
        ("rank_correlation", "Rank correlation", Axes(y_max=1, y_label="Spearman's"), 3),
        (
            "sign_flips",
            "Advantages of another sign",
            Axes(y_min=0, y_label="share of the images"),
            4,
        ),
    ):
        values = [row[key] for row in rows]
        line = Series(names.get(key, title), x, moving_average(values, SMOOTH), color=color)
        faint = Series("", x, values, faint=True, color=color)
        yield Chart(f"rescored_{key}", title, [faint, line], axes)


def _pictures(it: Rescored, run_dir: Path, names: Mapping[str, str]) -> dict[str, list[Any]]:
    """The images about which the two differ most, by who likes them, each with both advantages."""
    there = stored(run_dir)
    chosen = {
        f"{names['own']} liked, {names['other']} would not have": disagreements(
            it, SHOWN, 1, there
        ),
        f"{names['other']} would have liked, {names['own']} did not": disagreements(
            it, SHOWN, -1, there
        ),
    }
    keys = {it.rows[place]["key"] for places in chosen.values() for place in places}
    urls = {
        key: data_url(strip(pixels), limit_px=LARGEST_PX, limit_bytes=LARGEST_BYTES)
        for key, pixels in read_pictures(run_dir, keys)
    }
    return {
        heading: [
            {
                "url": urls[it.rows[place]["key"]],
                "row": it.rows[place],
                "prompt": it.rows[place]["prompt"],
                "sources": _sources(it.rows[place]),
                "sides": {
                    names[side]: (float(it.reward[side][place]), float(it.advantage[side][place]))
                    for side in ("own", "other")
                },
            }
            for place in places
        ]
        for heading, places in chosen.items()
        if places
    }


def _sources(row: Mapping[str, Any]) -> list[str]:
    """What the prompt asks to change, in the size of the image."""
    shown = (
        np.asarray(load_reference(Path(path), (row["width"], row["height"])))
        for path in row["references"] or ()
    )
    return [data_url(each, limit_px=LARGEST_PX, limit_bytes=LARGEST_BYTES) for each in shown]
