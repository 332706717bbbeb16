"""Write what `make bench` measured into the documentation: tables, targets met or missed, a figure.

Run: python -m benchmarks.page            from benchmarks/results/*.json
     python -m benchmarks.page --check    fail where the documents differ from the results

Between `<!-- NAME -->` and `<!-- /NAME -->` the documents are written by this file.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from benchmarks.wire.samples import ROOT, Sample, noise, ratios

RESULTS = ROOT / "benchmarks" / "results"
FIGURE = ROOT / "docs" / "images" / "wire.svg"
DOCUMENTS = (ROOT / "docs" / "operate" / "performance.md", ROOT / "benchmarks" / "RESULTS.md")
NAMES = {
    "peer": "peer",
    "echo": "echo",
    "grpc raw": "gRPC, raw pixels",
    "grpc qoi": "gRPC, QOI",
    "grpc jpeg": "gRPC, JPEG",
    "http raw": "HTTP, raw pixels",
    "shared memory": "shared memory (same host)",
    "gateway raw": "raw pixels through a gateway",
}
BAR_PX, ROW_PX, LEFT_PX, PANEL_PX = 200, 24, 176, 250

Wire = Mapping[str, Mapping[str, Sequence[Sample]]]


def main() -> None:
    """Write the documents, or compare them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail on differences")
    check = parser.parse_args().check
    for file, text in rendered().items():
        if not file.exists() or file.read_text("utf-8") != text:
            if check:
                raise SystemExit(f"{file.name} differs from the results: python -m benchmarks.page")
            file.write_text(text, encoding="utf-8")


def rendered() -> dict[Path, str]:
    """Each document as the results say it."""
    wire_head, wire = read_wire()
    overhead = json.loads((RESULTS / "overhead.json").read_text("utf-8"))
    blocks = {
        "wire": f"{said(wire_head)}\n\n{rates(wire)}",
        "targets": targets(wire),
        "wire-rows": f"{said(wire_head)}\n\n{rows(wire)}",
        "overhead": f"{overheads(overhead['found'])}\n\n{said(overhead['head'])}",
    }
    texts = {file: file.read_text("utf-8") for file in DOCUMENTS}
    for name, block in blocks.items():
        area = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        for file, text in texts.items():
            texts[file] = area.sub(lambda m, b=block: f"{m[1]}\n{b}\n\n{m[2]}", text)
    return texts | {FIGURE: figure(wire)}


def read_wire() -> tuple[dict[str, Any], Wire]:
    """What stands in results/wire.json."""
    stored = json.loads((RESULTS / "wire.json").read_text("utf-8"))
    return stored["head"], {
        shape: {way: [Sample(**one) for one in samples] for way, samples in ways.items()}
        for shape, ways in stored["found"].items()
    }


def said(head: Mapping[str, Any]) -> str:
    """Where numbers come from, in a sentence."""
    return (
        f"`OMP_NUM_THREADS=1 {head['command']}`, commit {head['commit']}, {head['machine']}, load"
        f" {head['load']} with the benchmark's own."
    )


def median(samples: Sequence[Sample], name: str) -> float:
    """Of one field, over rounds."""
    return statistics.median(getattr(sample, name) or 0.0 for sample in samples)


def pair(values: Sequence[float]) -> str:
    """A median with its noise."""
    return f"{statistics.median(values):.2f} ±{noise(values):.2f}"


def table(head: str, lines: Sequence[Sequence[str]]) -> str:
    """In Markdown; `head` has its cells separated by `|`."""
    rule = "|" + "---|" * (head.count("|") + 1)
    return "\n".join([f"| {head} |", rule, *(f"| {' | '.join(line)} |" for line in lines)])


def rates(wire: Wire) -> str:
    """Images per second of every way, and how far the default way is from the floor."""
    lines = [
        [
            NAMES[way],
            *(f"{median(wire[shape][way], 'images_per_s'):.0f}" for shape in wire),
            *(f"{100 * of_floor(wire[shape], way):.0f} %" for shape in wire),
        ]
        for way in NAMES
        if way != "grpc qoi"
    ]
    shapes = [shape.replace("x", " × ") for shape in wire]
    heads = ["images/s", *shapes, *(f"{shape}, of the echo" for shape in shapes)]
    return table(" | ".join(heads), lines)


def of_floor(ways: Mapping[str, Sequence[Sample]], way: str) -> float:
    """Rate as a share of the echo's."""
    return statistics.median(ratios(ways[way], ways["echo"], cpu=False))


def rows(wire: Wire) -> str:
    """Everything measured, a line per shape and way."""
    lines = []
    for shape, ways in wire.items():
        for way, samples in ways.items():
            batch, wait = median(samples, "mean_batch"), median(samples, "p99_over_wait_ms")
            ours = batch > 0
            lines.append(
                [
                    shape.replace("x", " × "),
                    NAMES[way],
                    f"{median(samples, 'images_per_s'):.0f}",
                    f"{median(samples, 'client_ms'):.2f}",
                    f"{median(samples, 'server_ms'):.2f}",
                    f"{batch:.1f}" if ours else "",
                    pair(ratios(samples, ways["peer"], cpu=False)),
                    pair(ratios(samples, ways["peer"], cpu=True)),
                    pair(ratios(samples, ways["echo"], cpu=False)),
                    f"{wait:.1f}" if ours else "",
                ]
            )
    heads = (
        "clients × images | way | images/s | client CPU ms | servers CPU ms | mean batch"
        " | rate / peer | CPU peer / way | rate / echo | p99 in queue over `max_wait`, ms"
    )
    return table(heads, lines)


def targets(wire: Wire) -> str:
    """What was aimed at, what was measured, and whether that is enough."""

    def over(way: str, base: str, *, cpu: bool = False) -> list[list[float]]:
        return [ratios(wire[s][way], wire[s][base], cpu=cpu) for s in wire]

    single = wire["64x1"]["grpc raw"]
    gateway = [
        [1 / value for value in values] for values in over("gateway raw", "grpc raw", cpu=True)
    ]
    waits = [median(wire[s]["grpc raw"], "p99_over_wait_ms") for s in wire]
    aims = [
        ("gRPC raw / echo, rate", "≥ 0.85", over("grpc raw", "echo"), lambda v: v >= 0.85),
        ("gRPC JPEG / peer, rate", "≥ 1.5", over("grpc jpeg", "peer"), lambda v: v >= 1.5),
        ("shared memory / peer, rate", "≥ 3", over("shared memory", "peer"), lambda v: v >= 3),
        ("gateway / direct, CPU", "≤ 1.3", gateway, lambda v: v <= 1.3),
    ]
    lines: list[list[str]] = []
    for what, aim, values, met in aims:
        cells = [pair(v) + (" ✓" if met(statistics.median(v)) else "") for v in values]
        lines.append([what, aim, *cells])
    lines.append(
        ["p99 in queue over `max_wait`, raw, ms", "≤ 5"]
        + [f"{wait:.1f}" + (" ✓" if wait <= 5 else "") for wait in waits]
    )
    batch = median(single, "mean_batch")
    lines.append(["mean batch of single images, raw", "≥ 16", "", f"{batch:.1f}", ""])
    return table(" | ".join(["", "target", *(s.replace("x", " × ") for s in wire)]), lines)


def overheads(found: Mapping[str, Any]) -> str:
    """Speed behind the service, replicas, time in the queue, memory."""
    speed = [b / a for a, b in zip(found["speed"]["alone"], found["speed"]["behind"], strict=True)]
    one = statistics.median(found["replicas"]["1"])
    lines: list[list[str]] = [
        ["speed behind the service / of the scorer alone", "≥ 0.95", pair(speed)]
    ]
    for count, values in found["replicas"].items():
        if count != "1":
            linear = [value / (int(count) * one) for value in values]
            lines.append([f"{count} replicas / {count} × one", "≥ 0.95", pair(linear)])
    for rate, waits in found["queue"].items():
        what = f"p99 in queue over `max_wait`, {rate} raw images/s, ms"
        lines.append([what, "≤ 5", f"{statistics.median(waits):.1f} ({max(waits):.1f} at most)"])
    slope, error = (
        found["memory"][k] / 1024 for k in ("bytes_per_1000_requests", "standard_error")
    )
    count = found["memory"]["points"][-1][0]
    what = f"memory of the server, KiB per 1000 requests, over {count:,} requests"
    lines.append([what, "flat", f"{slope:.2f} ±{error:.2f}"])
    return table(" | target | measured", lines)


def figure(wire: Wire) -> str:
    """A panel of bars per shape, the echo's rate as a line through all of them."""
    shown = [way for way in NAMES if way not in ("echo", "grpc qoi")]
    parts, height = [], 58 + ROW_PX * len(shown)
    for way, y in zip(shown, range(50, height, ROW_PX), strict=False):
        parts.append(
            f'<text x="{LEFT_PX - 8}" y="{y + 13}" class="name">{escape(NAMES[way])}</text>'
        )
    for panel, shape in enumerate(wire):
        left = LEFT_PX + panel * PANEL_PX
        rate = {way: median(samples, "images_per_s") for way, samples in wire[shape].items()}
        scale = BAR_PX / max(rate.values())
        title = "{} clients × {}".format(*shape.split("x"))
        parts.append(f'<text x="{left}" y="20" class="title">{title}</text>')
        for way, y in zip(shown, range(50, height, ROW_PX), strict=False):
            width = rate[way] * scale
            at, style = (left + 6, "value") if width > 36 else (left + width + 5, "beside")
            kind, tall = "peer" if way == "peer" else "ours", ROW_PX - 7
            parts.append(
                f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{tall}" class="{kind}"/>'
                f'<text x="{at:.1f}" y="{y + 13}" class="{style}">{rate[way]:.0f}</text>'
            )
        x = left + rate["echo"] * scale
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="42" y2="{height - 8}" class="floor"/>'
            f'<text x="{x:.1f}" y="38" class="floor-name">echo {rate["echo"]:.0f}</text>'
        )
    width = LEFT_PX + PANEL_PX * len(wire)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img"'
        ' aria-label="Images per second of every way, by clients and images per request">'
        f"<style>{STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


STYLE = """
text { font: 12px system-ui, sans-serif; fill: #333 }
.title { font-weight: 600 } .name { text-anchor: end } .value { fill: #fff; font-weight: 600 }
.ours { fill: #00796b } .peer { fill: #8a5a44 }
.floor { stroke: #c2410c; stroke-dasharray: 4 3 } .floor-name { text-anchor: middle; fill: #c2410c }
@media (prefers-color-scheme: dark) {
  text { fill: #ddd } .value { fill: #fff } .floor { stroke: #fb923c } .floor-name { fill: #fb923c }
}
"""

if __name__ == "__main__":
    main()
