"""The command `reward-server audit`: pictures and a scorer in, a result, a table and a page out."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from reward_client._client import RewardClient
from reward_client.errors import InvalidArgument
from reward_client.types import ScorerInfo, ScorerSelector
from reward_server.audit import drawings
from reward_server.audit import pictures as reading
from reward_server.audit.checks import Plan, wanted
from reward_server.audit.compare import compared
from reward_server.audit.expected import Thresholds
from reward_server.audit.page import page
from reward_server.audit.pictures import Picture
from reward_server.audit.run import FORMAT, audit
from reward_server.audit.statistics import LEAST_PER_PROMPT, Row
from reward_server.audit.subject import Ask, Source
from reward_server.audit.transforms import BATTERIES, CHECKS, TRANSFORMS
from reward_server.audit.watched import Watched
from reward_server.commands.scoring import list_infos, note, serving_here
from reward_server.commands.tables import output_console
from reward_server.config import Config

RESULT, PAGE = "audit.json", "audit.html"
_NEEDED = ("image", "prompt", "spec.geneval", "spec.ocr")
COLORS = {
    "fail": "red",
    "warn": "yellow",
    "intended": "cyan",
    "pass": "green",
    "none": "dim",
}


@contextlib.contextmanager
def source_here(config: Config, output: str) -> Iterator[Source]:
    """The only scorer of a config, in workers of this process; raises RewardError."""
    ((name, section),) = config.scorers.items()
    note(f"starting {name} ...")
    with serving_here(config, 4096) as ((info,), score):
        transform = _transform(info, output)
        selector = ScorerSelector(name, transform=transform)
        yield source_of(
            info,
            section.scorer or name,
            output,
            lambda items: score([selector], items, False).results[name],
        )


@contextlib.contextmanager
def source_at(url: str, name: str, output: str) -> Iterator[Source]:
    """A scorer of a running server; raises RewardError."""
    infos = {info.name: info for info in list_infos(url)}
    if name not in infos:
        raise InvalidArgument(f"{url} has no scorer {name!r}; it has {', '.join(infos)}")
    with RewardClient.from_env(url=url) as client:
        selector = ScorerSelector(name, transform=_transform(infos[name], output))
        yield source_of(
            infos[name],
            name,
            output,
            lambda items: client.score(items, [selector]).results[name],
        )


def plan_of(checks: Sequence[str], settings: Sequence[str], search_budget: int, seed: int) -> Plan:
    """What was asked for; raises InvalidArgument."""
    known = [*CHECKS, *(name for names in CHECKS.values() for name in names)]
    if unknown := [name for name in checks if name not in known]:
        raise InvalidArgument(f"--checks: no {unknown[0]!r}; there are {', '.join(known)}")
    try:
        thresholds = Thresholds().changed(settings)
    except ValueError as error:
        raise InvalidArgument(str(error)) from error
    return Plan(tuple(checks) or BATTERIES, thresholds, search_budget, seed)


def pictures_of(images: Path | None, prompts: Path | None, run: Path | None) -> list[Picture]:
    """The pictures that the user names, none if none are named; raises InvalidArgument."""
    if images is not None:
        found, notes = reading.from_folder(images, prompts)
    elif run is not None:
        found, notes = reading.from_run(run, prompts)
    elif prompts is not None:
        raise InvalidArgument("--prompts says what --images or --run show: name one of them")
    else:
        return []
    for text in notes:
        note(text)
    return found


def chosen_of(found: Sequence[Picture], source: Source, most: int) -> list[Picture]:
    """What is audited with: some of the user's pictures, or drawings that suit the scorer."""
    notes: list[str] = []
    drawn = drawings.words if "spec.ocr" in source.info.inputs else drawings.shapes
    found = found or drawn()
    chosen = reading.thinned(found, most)
    if len(chosen) < len(found):
        notes.append(f"{len(chosen)} of {len(found)} pictures are used; --max-images takes more")
    counts: dict[str, int] = {}
    for picture in chosen:
        counts[picture.prompt] = counts.get(picture.prompt, 0) + 1
    if min(counts.values()) < LEAST_PER_PROMPT:
        notes.append(
            f"some prompts have fewer than {LEAST_PER_PROMPT} pictures: group statistics are absent"
        )
    for text in notes:
        note(text)
    return chosen


def run_audit(source: Source, chosen: Sequence[Picture], plan: Plan, out: Path) -> Row:
    """Audit, write `audit.json` and `audit.html`, print the table; returns the result."""
    out.mkdir(parents=True, exist_ok=True)
    names = [name for battery in BATTERIES for name in wanted(plan, battery)]
    changes = 3 + sum(len(one.levels) for one in TRANSFORMS if one.name in names)
    tries = plan.search_budget if "search" in names else 0
    note(f"{len(names)} checks of {len(chosen)} pictures: {changes * len(chosen) + tries} scores")
    result = audit(source, chosen, plan, Watched(source.scorer), lambda text: note(f"{text} ..."))
    (out / RESULT).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / PAGE).write_text(page(result, chosen), encoding="utf-8")
    show(result)
    for name in (RESULT, PAGE):
        note(f"wrote {out / name}")
    return result


def show(result: Row) -> None:
    """Print the verdict and what was found, passed checks only as a count."""
    scorer, counts, signal = result["scorer"], result["counts"], result["signal"]
    table = Table(title=f"{scorer['name']} ({scorer['output']})", title_justify="left")
    for name in ("verdict", "battery", "check", "finding"):
        table.add_column(name, overflow="fold")
    table.add_column("noticed by", overflow="fold")
    table.add_row(_colored(signal["verdict"]), "signal", "", signal["why"], "")
    for row in result["checks"]:
        if row["verdict"] not in ("pass", "none"):
            cells = (row["battery"], row["name"], row["why"], _noticed(row))
            table.add_row(_colored(row["verdict"]), *cells)
    out = output_console()
    out.print(table)
    images = result["pictures"]
    out.print(
        f"{counts['fail']} failed, {counts['warn']} warnings, {counts['intended']} intended,"
        f" {counts['pass']} passed, {counts['none']} not judged;"
        f" {images['images']} images of {images['prompts']} prompts, {result['calls']} scored",
        highlight=False,
    )


def compare(before: Path, after: Path) -> int:
    """Print how two results differ; returns 1 if a check has become worse, else 0."""
    differences, rows = compared(*(read_result(path) for path in (before, after)))
    out = output_console()
    for text in differences:
        out.print(f"not alike: {text}", highlight=False, soft_wrap=True)
    table = Table(title=f"{before} -> {after}", title_justify="left")
    for name in ("battery", "check", "before", "after", "measured", "before", "after"):
        table.add_column(name, overflow="fold")
    for row in rows:
        verdicts = [_colored(verdict) for verdict in row.verdicts]
        numbers = ["-" if value is None else f"{value:.3g}" for value in row.values]
        table.add_row(row.battery, row.name, *verdicts, row.measured, *numbers)
    out.print(table if rows else "no check differs")
    return int(any(row.is_worse for row in rows))


def read_result(path: Path) -> Row:
    """A file that `run_audit` wrote; raises InvalidArgument, OSError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidArgument(f"{path} is not JSON: {error}") from error
    known = found.get("format") if isinstance(found, dict) else None
    if known != FORMAT:
        raise InvalidArgument(f"{path}: format {known!r}; this version reads {FORMAT}")
    return found


def _colored(verdict: str) -> Text:
    return Text(verdict, COLORS[verdict])


def _noticed(row: Row) -> str:
    if "watched" not in row or row["verdict"] not in ("fail", "warn", "intended"):
        return ""
    return ", ".join(one["name"] for one in row["watched"] if one["caught"]) or "none"


def source_of(info: ScorerInfo, scorer: str, output: str, ask: Ask) -> Source:
    """A scorer that can be audited; raises InvalidArgument for others."""
    if info.state == "FAILED":
        raise InvalidArgument(f"{info.name} does not start: {info.last_error}")
    unmet = [name for name in info.inputs if name not in _NEEDED]
    if unmet:
        raise InvalidArgument(
            f"{info.name} needs {', '.join(unmet)}, which an audit has not got: it scores one"
            " image and its prompt"
        )
    return Source(info, scorer, output or info.default_transform, ask)


def _transform(info: ScorerInfo, output: str) -> str:
    return output if output in info.transforms else ""
