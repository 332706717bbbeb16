"""Two benchmarks side by side: paired differences with intervals, or why there are none."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.box import HORIZONTALS
from rich.markup import escape
from rich.table import Table

from trainer.errors import ConfigError
from trainer.report.compare import unpaired
from trainer.run.log import read_json
from trainer.suites.manifest import FORMAT, Measure
from trainer.suites.page import span
from trainer.suites.result import as_tree, rule_of
from trainer.suites.tree import difference

Row = Mapping[str, Any]


def compare(places: Sequence[Path], *, force: bool) -> Table:
    """The differences of the second benchmark to the first, suite by suite.

    Raises:
        ConfigError: not two benchmarks of this format, no suite in common, or, without `force`,
            suites that do not compare.
    """
    if len(places) != 2:
        raise ConfigError(
            "name two files, e.g. flow-train compare a/benchmark.json b/benchmark.json"
        )
    one, other = (read(place) for place in places)
    names = [name for name in one["suites"] if name in other["suites"]]
    if not names:
        lists = " and ".join(", ".join(found["suites"]) or "none" for found in (one, other))
        raise ConfigError(f"these benchmarks have no suite in common: {lists}")
    notes = [
        f"{name}: {note}"
        for name in names
        for note in unlike(one["suites"][name], other["suites"][name])
    ]
    if notes and not force:
        raise ConfigError(f"{'; '.join(notes)}; --force compares them all the same")
    drawn = [
        f"{name}: drawn with {note}"
        for name in names
        for note in _drawn(one["suites"][name], other["suites"][name])
    ]
    table = Table(box=HORIZONTALS, padding=0, caption="\n".join(map(escape, notes + drawn)) or None)
    heads = [escape(found["model"]["title"]) for found in (one, other)]
    for head in ("", *heads, "difference"):
        table.add_column(head, justify="right" if head else "left", overflow="fold")
    for name in names:
        for cells in _rows(name, one["suites"][name], other["suites"][name]):
            table.add_row(*map(escape, cells))
        table.add_section()
    return table


def read(place: Path) -> Row:
    """A `benchmark.json`; ConfigError if it is none, or of another format."""
    try:
        found = read_json(place)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{place} is no benchmark: {error}") from None
    if not isinstance(found, dict) or "suites" not in found:
        raise ConfigError(f"{place} is no benchmark.json of flow-train benchmark")
    if found.get("format") != FORMAT:
        raise ConfigError(
            f"{place} is of format {found.get('format')}, this version reads {FORMAT}"
        )
    return found


def unlike(one: Row, other: Row) -> Iterator[str]:
    """Why the numbers of a suite do not compare."""
    if one["manifest_sha256"] != other["manifest_sha256"]:
        before, after = (row["manifest"]["version"] for row in (one, other))
        yield f"the manifests differ (versions {before} and {after})"
    if one["prompts_sha256"] != other["prompts_sha256"]:
        yield "the prompts differ"
    elif one["prompts"] != other["prompts"]:
        yield f"{one['prompts']} prompts here, {other['prompts']} there"
    for scorer, prints in one["scorers"].items():
        if other["scorers"].get(scorer, prints) != prints:
            yield f"{scorer} was another build"
    if one["judge"] != other["judge"]:
        yield "the judge, its words or its decoding differ"


def _drawn(one: Row, other: Row) -> list[str]:
    """What two suites were drawn with, where it differs; not the models, which are compared."""
    a, b = (
        {**row["made_from"]["sampling"], "seed": row["made_from"]["seed"]} for row in (one, other)
    )
    return [f"{name} {a[name]} and {b[name]}" for name in a if a[name] != b[name]]


def _rows(name: str, one: Row, other: Row) -> Iterator[list[str]]:
    for measure, before in one["measures"].items():
        after = other["measures"].get(measure)
        if after is None:
            continue
        table = next(m for m in other["manifest"]["measures"] if m["name"] == measure)
        yield [f"{name}: {measure}", span(before), span(after), _difference(table, before, after)]


def _difference(table: Row, before: Row, after: Row) -> str:
    if before["mean"] is None or after["mean"] is None:
        return "-"
    rule = rule_of(Measure.model_validate(table))
    kind = "paired"
    try:
        row = difference(as_tree(before["tree"]), as_tree(after["tree"]), rule)
    except ValueError:
        kind, row = "unpaired", unpaired(before, after)
    if row["mean"] is None:
        return "-"
    return f"{row['mean']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}) {kind}"
