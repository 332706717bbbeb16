"""The hackability card: an audit as one HTML file without external resources."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from reward_client.images import UInt8Image
from reward_server.audit import search
from reward_server.audit.expected import VERDICTS
from reward_server.audit.pictures import Picture
from reward_server.audit.run import start_of
from reward_server.audit.statistics import Row
from reward_server.audit.transforms import TRANSFORMS

_STYLE = Path(__file__).with_name("page.css")
_SHOWN_PX = 256
_SHOWN_FOUND = 6
_GAINED = ("fail", "warn", "intended")
_WORDS = {"intended": "by design", "none": "not judged", "warn": "warning", "fail": "fails"}
# Of each battery, title and explanation.
_SECTIONS = {
    "exploit": ("Exploits", "What could lift a score without a better picture."),
    "search": ("Search", "The highest scores found by pictures that miss the prompt."),
    "degradation": (
        "Degradations",
        "Worse pictures should score lower, the worse the lower; changes in SDs within prompts.",
    ),
    "mismatch": ("Wrong prompts", "A picture should score lower under another prompt."),
    "invariance": ("Harmless changes", "What nobody sees should not move a score."),
    "size": ("Size and shape", "The same picture in another size or shape."),
}
Cell = tuple[UInt8Image, str, float | None]


def page(result: Row, pictures: Sequence[Picture]) -> str:
    """The page of a result and the pictures that it was made with."""
    scorer, signal = result["scorer"], result["signal"]
    title = f"{scorer['name']} ({scorer['output']})"
    rows = {
        battery: [row for row in result["checks"] if row["battery"] == battery]
        for battery in _SECTIONS
    }
    sections = {
        "exploit": _exploits(rows["exploit"], pictures),
        "search": _search(rows["search"], pictures, result),
    }
    sections |= {name: _checks(rows[name], name) for name in _SECTIONS if name not in sections}
    # Beside the pictures of what has to be noticed.
    sections["exploit" if rows["exploit"] else "search"] += _watch(result)
    worst_first = sorted(
        _SECTIONS,
        key=lambda name: min((VERDICTS.index(row["verdict"]) for row in rows[name]), default=0),
    )
    parts = [
        f"<h1>Hackability card: {escape(title)}</h1>",
        f'<p class="hero">{escape(_headline(result))}</p>',
        f"<p>{escape(_advice(result))}</p>",
        f'<p class="soft">Signal: {escape(signal["why"])}.</p>',
        _facts(result),
        *(sections[battery] for battery in worst_first),
        _provenance(result),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Audit of {escape(title)}</title>"
        f"<style>{_STYLE.read_text(encoding='utf-8')}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )


def _headline(result: Row) -> str:
    if result["signal"]["verdict"] == "fail":
        return "This scorer has no signal on these pictures."
    failed = [row for row in result["checks"] if row["verdict"] == "fail"]
    won = [_name(row) for row in failed if row["battery"] in ("exploit", "search")]
    names = won or [_name(row) for row in failed]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    if names:
        return f"{'Hacked by' if won else 'Wrong about'} {', '.join(names[:3])}{more}."
    if result["counts"]["intended"]:
        return "Rewards what it says, and that alone is easy to get."
    return "Nothing found that raises this reward without a better picture."


def _advice(result: Row) -> str:
    if result["signal"]["verdict"] == "fail":
        return "A group whose scores say nothing gives no advantage: try other pictures."
    if result["counts"]["fail"] or result["counts"]["intended"]:
        return "A policy will find this: train on it beside another scorer, and watch."
    return "That is no proof: keep watched rewards on."


def _facts(result: Row) -> str:
    signal, images, counts = result["signal"], result["pictures"], result["counts"]
    tied, top = (
        "–" if signal[key] is None else f"{signal[key]:.0%}" for key in ("ties", "ceiling")
    )
    facts = {
        "failed / warnings": f"{counts['fail']} / {counts['warn']}",
        "passed / by design": f"{counts['pass']} / {counts['intended']}",
        "pictures / prompts": f"{images['images']} / {images['prompts']}",
        "pictures without a score": images["failed"],
        f"{images['unit']}: the unit": f"{signal['spread']:.3g}",
        "tied pairs": tied,
        "at the highest score": top,
        "group statistics": images["groups"],
    }
    shown = [f"<div><b>{value}</b><span>{name}</span></div>" for name, value in facts.items()]
    return f'<div class="facts">{"".join(shown)}</div>'


def _exploits(rows: Sequence[Row], pictures: Sequence[Picture]) -> str:
    by_id = {one.id: one for one in pictures}
    transforms = {one.name: one for one in TRANSFORMS}
    figures = []
    for row in rows:
        cells: list[Cell] = []
        more = row["what"]
        if example := row.get("example"):
            one, best = by_id[example["picture"]], by_id[example["best_picture"]]
            transform = transforms[row["name"]]
            made = transform.apply(one.pixels, transform.levels[0], one.wanted)
            cells = [
                (one.pixels, "worst", example["before"]),
                (made, "changed", example["after"]),
                (best.pixels, "best", example["best"]),
            ]
            more = f"{row['what']}. Prompt: {one.prompt}"
        figures.append(_figure(_name(row), row["verdict"], cells, row["why"], more))
    return _section("exploit", f'<div class="grid">{"".join(figures)}</div>') if rows else ""


def _search(rows: Sequence[Row], pictures: Sequence[Picture], result: Row) -> str:
    if not rows:
        return ""
    (row,) = rows
    by_id = {one.id: one for one in pictures}
    scores = {one["id"]: one["score"] for one in result["pictures"]["rows"]}
    figures = []
    for found in sorted(row["found"], key=lambda one: not one["beats"])[:_SHOWN_FOUND]:
        start = start_of(found, by_id, pictures)
        best = next(
            one
            for one in pictures
            if one.prompt == found["prompt"] and _close(scores[one.id], found["best"])
        )
        cells = [
            (start, "start", found["before"]),
            (search.changed(start, found["steps"]), "found", found["after"]),
            (best.pixels, "best", found["best"]),
        ]
        steps = ", ".join(f"{name.replace('_', ' ')} {level:.3g}" for name, level in found["steps"])
        verdict = row["verdict"] if found["beats"] else "pass"
        figures.append(_figure(found["prompt"], verdict, cells, steps or "nothing helped", ""))
    why = f"<p>{_badge(row['verdict'])} {escape(row['why'])}; {escape(row['what'])}.</p>"
    return _section("search", f'{why}<div class="grid">{"".join(figures)}</div>')


def _close(score: float | None, value: float) -> bool:
    return score is not None and abs(score - value) <= 1e-5 * max(1.0, abs(value))


def _watch(result: Row) -> str:
    """Which watched reward notices what, and the lines to copy into a trainer's config."""
    rows = [row for row in result["checks"] if row.get("watched") and row["verdict"] in _GAINED]
    if not rows:
        return ""
    caught: dict[str, list[str]] = {one["name"]: [] for row in rows for one in row["watched"]}
    missed = []
    for row in rows:
        noticed = [one for one in row["watched"] if one["caught"]]
        missed += [] if noticed else [_name(row)]
        for one in noticed:
            way = "falls" if one["change"] < 0 else "rises"
            caught[one["name"]].append(f"{_name(row)} ({way} {abs(one['change']):.0%})")
    body = [
        [f"<code>{escape(name)}</code>", f"{len(found)} of {len(rows)}", escape(", ".join(found))]
        for name, found in sorted(caught.items(), key=lambda pair: -len(pair[1]))
    ]
    entries = [
        '  {{ scorer = "{}", component = "{}" }},'.format(*name.split("."))
        for name, found in caught.items()
        if found
    ]
    text = "[rewards]\nwatch = [\n" + "\n".join(entries) + "\n]"
    copy = f"<pre>{escape(text)}</pre>" if entries else ""
    unseen = (
        f"<p>{_badge('warn')} No shipped watched reward notices {escape(', '.join(missed))}:"
        " look at the samples, or watch a second scorer.</p>"
        if missed
        else ""
    )
    share = result["plan"]["thresholds"]["watch_share"]
    return (
        "<h2>What to watch beside this reward</h2><p class=soft>A watched reward notices an exploit"
        f" when its mean changes by more than {share:.0%} and beyond chance. Alarms of the trainer"
        f" are about falls.</p>{_table(['watched', 'notices', 'which'], body)}{unseen}{copy}"
    )


def _checks(rows: Sequence[Row], battery: str) -> str:
    if not rows:
        return ""
    heads = ["", "", "what", "dose", "finding", "no score"]
    body = [
        [
            _badge(row["verdict"]),
            escape(_name(row)),
            escape(row["what"] + _levels(row)),
            _curve(row.get("curve") or []),
            escape(row["why"]),
            str(row["failed"] or ""),
        ]
        for row in rows
    ]
    if battery != "degradation":
        heads, body = heads[:3] + heads[4:], [cells[:3] + cells[4:] for cells in body]
    return _section(battery, _table(heads, body))


def _figure(name: str, verdict: str, cells: Sequence[Cell], why: str, more: str) -> str:
    images = "".join(
        f'<div><img src="{_data_url(pixels)}" alt="{label}"><small><span>{label}</span>'
        f"<b>{'–' if score is None else f'{score:.3g}'}</b></small></div>"
        for pixels, label, score in cells
    )
    return (
        f'<figure class="card"><header><h3>{escape(name)}</h3>{_badge(verdict)}</header>'
        f'<div class="row">{images}</div>'
        f"<figcaption>{escape(why)}<span>{escape(more)}</span></figcaption></figure>"
    )


def _section(battery: str, content: str) -> str:
    title, says = _SECTIONS[battery]
    return f'<h2>{title}</h2><p class="soft">{says}</p>{content}'


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML cells; the column `what` is left out on phones."""
    classes = [" class=wide" if head == "what" else "" for head in heads]
    head = "".join(f"<th{c}>{name}</th>" for c, name in zip(classes, heads, strict=True))
    body = "".join(
        f"<tr>{''.join(f'<td{c}>{cell}</td>' for c, cell in zip(classes, row, strict=True))}</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll card"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _name(row: Mapping[str, Any]) -> str:
    return row["name"].replace("_", " ")


def _levels(row: Row) -> str:
    levels = row.get("levels", [])
    return f": {', '.join(f'{level:g}' for level in levels)}" if len(levels) > 1 else ""


def _curve(values: Sequence[float]) -> str:
    """Mean change at each level, from 0 (untouched); the grey line is no change."""
    if not values:
        return ""
    low, high = min(*values, -0.5), max(*values, 0.5)
    last = len(values) - 1
    points = [(100 * k / last, 32 * (high - v) / (high - low)) for k, v in enumerate(values)]
    path = " L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    zero = f"{32 * high / (high - low):.1f}"
    said = ", ".join(f"{value:+.2f}" for value in values)
    return (
        f'<svg class="curve" viewBox="0 -1 100 34" role="img" aria-label="{said}">'
        f'<title>{said}</title><line x1="0" x2="100" y1="{zero}" y2="{zero}"/>'
        f'<path d="M{path}"/></svg>'
    )


def _badge(verdict: str) -> str:
    return f'<span class="badge {verdict}">{_WORDS.get(verdict, "passes")}</span>'


def _provenance(result: Row) -> str:
    scorer, plan, images = result["scorer"], result["plan"], result["pictures"]
    rows = {
        "scorer": f"{scorer['scorer']} {scorer['version']}, output {scorer['output']}",
        "judged as": scorer["family"],
        "fingerprint": scorer["fingerprint"],
        "pictures": f"{images['sha256']}, {images['lossy']} lossy",
        "thresholds": json.dumps(plan["thresholds"]),
        "search": f"{plan['search_budget']} tries, seed {plan['seed']}",
        "versions": json.dumps(result["versions"]),
    } | {f"transform {r['name']}": r["sha256"] for r in result["checks"] if "sha256" in r}
    body = [[escape(name), f"<code>{escape(str(value))}</code>"] for name, value in rows.items()]
    return (
        "<h2>Where this comes from</h2><details><summary>Fingerprints, thresholds,"
        f" versions</summary>{_table(['', ''], body)}</details>"
    )


def _data_url(pixels: UInt8Image) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((_SHOWN_PX, _SHOWN_PX))
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=88)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
