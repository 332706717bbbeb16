"""The commands that ask a running server: `score` and `scorers`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from reward_client import json_mirror
from reward_client.client import RewardClient
from reward_client.errors import InvalidArgument
from reward_client.types import Image, Item, ScoreResponse, SpecKind


def score_files(
    paths: Sequence[Path],
    scorers: Sequence[str],
    prompt: str,
    spec: str,
    url: str,
    *,
    as_json: bool,
) -> None:
    """Score files and print a table, or the response as JSON.

    Raises:
        RewardError: whatever the client raises.
        OSError: a file cannot be read.
    """
    kind, row = _spec(spec)
    items = [
        Item(f"{index}:{path.name}", prompt, (Image.from_file(path),), (), row, kind)
        for index, path in enumerate(paths)
    ]
    with RewardClient(url) as client:
        response = client.score(items, scorers, include_details=as_json)
    if as_json:
        print(json.dumps(json_mirror.response_to_json(response), indent=2))
    else:
        Console().print(_table(paths, response))


def show_scorers(url: str) -> None:
    """Print a table of the scorers.

    Raises:
        RewardError: whatever the client raises.
    """
    with RewardClient(url, attempts=1) as client:
        infos = client.list_scorers()
    table = Table("scorer", "version", "state", "needs", "transforms (* default)", "range")
    for info in infos:
        transforms = [f"{t}*" if t == info.default_transform else t for t in info.transforms]
        low, high = info.output_range
        shown = f"{low:g} .. {high:g}" if info.version else ""
        state = f"{info.state}: {info.last_error}" if info.last_error else info.state
        needs = ", ".join(info.inputs)
        table.add_row(info.name, info.version, state, needs, ", ".join(transforms), shown)
    Console().print(table)


def _table(paths: Sequence[Path], response: ScoreResponse) -> Table:
    table = Table("image", *response.results)
    for index, path in enumerate(paths):
        cells = []
        for result in response.results.values():
            error, value = result.errors.get(index), result.scores[index]
            cells.append(f"{error.code.value}: {error.message}" if error else f"{value:.6g}")
        table.add_row(path.name, *cells)
    return table


def _spec(text: str) -> tuple[SpecKind | None, dict[str, Any] | None]:
    if not text:
        return None, None
    try:
        row = json.loads(text)
    except ValueError as error:
        raise InvalidArgument(f"--spec is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise InvalidArgument(f"--spec must be a JSON object, got {type(row).__name__}")
    if "include" in row:
        return "geneval", row
    return ("ocr", row) if set(row) == {"target"} else ("metadata", row)
