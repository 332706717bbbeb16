"""The commands that ask for scores or scorers: `score`, of a server or here, and `scorers`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import PIL.Image

from reward_client import codec
from reward_client._client import RewardClient
from reward_client.errors import InvalidArgument
from reward_client.images import Image
from reward_client.types import (
    Item,
    ScoreRequest,
    ScoreResponse,
    ScorerInfo,
    ScorerSelector,
    SpecKind,
)
from reward_server.commands.explain import Finding, explained
from reward_server.config import Config
from reward_server.observability.metrics import Metrics
from reward_server.security.access import Caller
from reward_server.service import RewardService

T = TypeVar("T")
ROW = "metadata.jsonl"
_CONNECT_TIMEOUT_S = 1.0
_COUNTS = ("max_items", "max_queue_items")


def files_of(paths: Sequence[Path]) -> list[Path]:
    """Image files, and those in folders in GenEval's layout; raises InvalidArgument."""
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        rows = sorted([*path.glob(ROW), *path.glob(f"*/{ROW}")])
        found = [file for row in rows for file in sorted(row.parent.glob("samples/*.*"))]
        if not found:
            raise InvalidArgument(
                f"{path}: a folder is read as GenEval writes it, NNNNN/{ROW} beside"
                " NNNNN/samples/*.png; this one has none: name image files"
            )
        files += found
    return files


def items_of(
    files: Sequence[Path], prompt: str, spec: str, references: Sequence[Path] = ()
) -> list[Item]:
    """One item per image, with this prompt and spec or GenEval's own; raises InvalidArgument.

    All have the same `references`.
    """
    kind, row = _spec(spec, "--spec")
    sources = tuple(Image.from_file(file) for file in references)
    items = []
    for index, file in enumerate(files):
        beside = file.parent.parent / ROW
        if file.parent.name == "samples" and beside.is_file() and not (prompt or spec):
            own_kind, own = _spec(beside.read_text(encoding="utf-8-sig").strip(), str(beside))
            text, label = str((own or {}).get("prompt", "")), f"{beside.parent.name}/{file.name}"
        else:
            own_kind, own, text, label = kind, row, prompt, file.name
        image = Image.from_file(file)
        items.append(Item(f"{index}:{label}", text, (image,), sources, own, own_kind))
    return items


def is_listening(url: str) -> bool:
    """Whether anything answers at the host and port of a server's URL."""
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        with socket.create_connection((parts.hostname or "", port), _CONNECT_TIMEOUT_S):
            return True
    except (OSError, ValueError):
        return False


def ask_server(items: Sequence[Item], scorers: Sequence[str], url: str) -> ScoreResponse:
    """Score with a running server, details included; raises RewardError."""
    with RewardClient.from_env(url=url) as client:
        return client.score(items, scorers, include_details=True)


def ask_here(items: Sequence[Item], config: Config) -> ScoreResponse:
    """Score with workers of all scorers of a config, started for this; raises RewardError."""
    selectors = tuple(ScorerSelector(name) for name in config.scorers)
    with serving_here(config, len(items)) as (_, score):
        return score(selectors, items, True)


Scored = Callable[[Sequence[ScorerSelector], Sequence[Item], bool], ScoreResponse]


@contextlib.contextmanager
def serving_here(config: Config, most_items: int) -> Iterator[tuple[Sequence[ScorerInfo], Scored]]:
    """Start the workers of all scorers of a config and stop them at the end.

    Gives what the scorers report of themselves, and a function of scorers, at most `most_items`
    items and whether details are wanted, which raises RewardError.
    """
    from reward_server.observability import logs

    # What goes wrong is in the answer; a user wants it once.
    logs.configure("critical", "console")
    # One caller, one request: the limits that share a server out are not for it.
    most = {name: max(getattr(config.server, name), most_items) for name in _COUNTS}
    config = config.model_copy(update={"server": config.server.model_copy(update=most)})
    loop = asyncio.new_event_loop()
    # The workers are looked after between two requests, too.
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def wait(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    service = wait(_started(config))
    try:
        wait(_settled(service))
        yield (
            service.infos(),
            lambda scorers, items, details: wait(
                service.score(
                    ScoreRequest(
                        uuid.uuid4().hex, tuple(scorers), tuple(items), include_details=details
                    ),
                    caller=Caller("here"),
                )
            ),
        )
    finally:
        wait(service.stop())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def list_infos(url: str) -> Sequence[ScorerInfo]:
    with RewardClient.from_env(url=url, attempts=1) as client:
        return client.list_scorers()


def findings(response: ScoreResponse, index: int) -> list[Finding]:
    found = []
    for result in response.results.values():
        error, score = result.errors.get(index), result.scores[index]
        if error is not None or score is None:
            why = f"{error.code.value}: {error.message}" if error else "no answer"
            found.append(Finding(result.name, error=why))
            continue
        components = {
            name: value
            for name, column in result.components.items()
            if (value := column[index]) is not None
        }
        details = result.details[index] if result.details else None
        found.append(Finding(result.name, score, components, details))
    return found


def write_explanations(
    folder: Path, paths: Sequence[Path], items: Sequence[Item], response: ScoreResponse
) -> list[Path]:
    """Write NAME.explained.png for all images that can be decoded; returns what was written."""
    written: list[Path] = []
    for index, (path, item) in enumerate(zip(paths, items, strict=True)):
        try:
            pixels = codec.decode(item.images[0])
        except InvalidArgument:  # its row of the table says so
            continue
        file = folder / f"{path.stem}.explained.png"
        number = 2
        while file in written:  # two pictures of one name, from two folders
            file = folder / f"{path.stem}-{number}.explained.png"
            number += 1
        PIL.Image.fromarray(explained(pixels, findings(response, index))).save(file)
        written.append(file)
    return written


def _spec(text: str, where: str) -> tuple[SpecKind | None, Mapping[str, Any] | None]:
    if not text:
        return None, None
    try:
        row = json.loads(text)
    except ValueError as error:
        raise InvalidArgument(f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise InvalidArgument(f"{where} must be a JSON object, got {type(row).__name__}")
    if "include" in row:
        return "geneval", row
    return ("ocr", row) if set(row) == {"target"} else ("metadata", row)


def note(text: str) -> None:
    print(f"reward-server: {text}", file=sys.stderr)


async def _started(config: Config) -> RewardService:
    service = RewardService(config, Metrics())
    service.start()
    return service


async def _settled(service: RewardService) -> None:
    """Return once no scorer is starting any more."""
    changed = asyncio.Event()
    service.on_change(changed.set)
    while any(info.state == "STARTING" for info in service.infos()):
        await changed.wait()
        changed.clear()
