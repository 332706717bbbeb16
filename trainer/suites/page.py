"""A benchmark as people read it: a table for the console, and a self-contained page."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import HORIZONTALS
from rich.markup import escape
from rich.table import Table

from trainer.images import data_url, load_png
from trainer.report.data import environment
from trainer.run.log import figure
from trainer.run.storage import replace_file, storing
from trainer.suites.result import OTHER

PAGE = "benchmark.html"
SHOWN_PICTURES = 16
LARGEST_PX, LARGEST_BYTES = 192, 8_000
Row = Mapping[str, Any]


def number(value: float | None) -> str:
    return "-" if value is None else figure(value)


def span(row: Row) -> str:
    """A mean with its 95 % interval; two where only bounds are known."""
    if row["mean"] is None:
        return "-"
    text = f"{figure(row['mean'])} ({figure(row['low'])} to {figure(row['high'])})"
    return f"{text}, at most {number(row['upper']['mean'])}" if "upper" in row else text


def missing(row: Row) -> str:
    """How many images have no score, and what the number would be in the worst and best case."""
    text = f"{row['unanswered']} of {row['images']}"
    if not row["unanswered"]:
        return text
    if row["worst"] is None:
        return f"{text}; unbounded"
    return f"{text}; {number(row['worst'])} to {number(row['best'])}"


def scale(row: Row) -> tuple[float, float]:
    """The ends of an axis for a measure and its groups, 0 among them."""
    parts = [
        row,
        *row["groups"].values(),
        *(p["upper"] for p in (row, *row["groups"].values()) if "upper" in p),
    ]
    values = [part[name] for part in parts for name in ("low", "high") if part["low"] is not None]
    return min([0.0, *values]), max([0.0, *values])


def published(row: Row) -> str:
    """A published number and its difference to this one, or why there is none."""
    settings = ", ".join(f"{name} {value}" for name, value in row["settings"].items())
    made = f" ({settings})" if settings else ""
    tail = row["differs"] or f"difference {row['difference']:+.3g}"
    return (
        f"{row['model']}: {row['measure']} {row['value']:g}{made}, {row['how']}, {row['source']}: "
        f"{tail}"
    )


def tables(document: Row) -> Iterator[Table]:
    """A table per suite."""
    for name, suite in document["suites"].items():
        label = suite["label"] + (f": {'; '.join(suite['why'])}" if suite["why"] else "")
        title = f"{escape(suite['manifest']['title'])} ({escape(name)}), {suite['prompts']} prompts"
        lines = [label, *(f"{count} x {text}" for text, count in suite["errors"].items())]
        lines += [published(row) for row in suite["published"] if row["differs"] != OTHER]
        table = Table(title=title, box=HORIZONTALS, padding=0, caption=escape("\n".join(lines)))
        for heading in ("", "value (95 % interval)", "without a score"):
            table.add_column(heading, justify="right" if heading else "left", overflow="fold")
        for measure, row in suite["measures"].items():
            table.add_row(escape(measure), span(row), missing(row), style="bold")
            for group, part in row["groups"].items() if len(row["groups"]) > 1 else ():
                table.add_row(f"  {escape(group)}", span(part), "")
            table.add_section()
        yield table


def write_page(document: Row, out: Path) -> Path:
    """Write `benchmark.html` beside the JSON; StorageError if that is not possible."""
    text = (
        environment(html=True)
        .get_template("benchmark.html")
        .render(
            document=document,
            title=document["model"]["title"],
            pictures={name: shown(suite, out) for name, suite in document["suites"].items()},
            span=span,
            num=number,
            missing=missing,
            scale=scale,
            published=published,
        )
    )
    with storing(str(out / PAGE)):
        replace_file(out / PAGE, text)
    return out / PAGE


def shown(suite: Row, out: Path) -> list[dict[str, Any]]:
    """A few pictures of a suite: those without a score first, then evenly from worst to best."""
    measure = suite["manifest"]["measures"][0]
    rows = [row for row in suite["pictures"] if row["sha256"] is not None]
    scored = [(value_of(row, measure), row) for row in rows]
    failed = [(value, row) for value, row in scored if value is None][: SHOWN_PICTURES // 4]
    ranked = sorted((pair for pair in scored if pair[0] is not None), key=lambda pair: pair[0] or 0)
    left = SHOWN_PICTURES - len(failed)
    step = max(1.0, (len(ranked) - 1) / max(1, left - 1))
    picked = dict.fromkeys(round(place * step) for place in range(min(left, len(ranked))))
    ranked = [ranked[place] for place in picked if place < len(ranked)]
    return [
        {
            "text": row["text"],
            "value": value,
            "url": data_url(
                load_png(out / row["file"]), limit_px=LARGEST_PX, limit_bytes=LARGEST_BYTES
            ),
            "said": said(row["scores"].get(measure["scorer"], {})),
        }
        for value, row in [*failed, *ranked]
        if (out / row["file"]).is_file()
    ]


def value_of(row: Row, measure: Row) -> float | None:
    """What the scorer gave a picture; None without a score."""
    found = row["scores"].get(measure["scorer"], {})
    if "score" not in found:
        return None
    return found["components"][measure["component"]] if measure["component"] else found["score"]


def said(found: Row) -> str:
    """Why a picture has its score, in a line."""
    if "error" in found:
        return found["error"]["message"]
    details = found.get("details", {})
    if "answers" in details:
        lines: Sequence[Any] = details["answers"]
        return "; ".join(f"{one['said']} {one['low']:.2f}" for one in lines)
    return "; ".join(details.get("reasons", []))
