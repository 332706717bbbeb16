"""The pictures that an audit starts from: a folder with prompts, or what a run has kept."""

from __future__ import annotations

import base64
import importlib.util
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from reward_client import codec
from reward_client.errors import InvalidArgument
from reward_client.images import Encoding, Image, UInt8Image, sniff
from reward_client.types import Item, SpecKind

MOST_PER_PROMPT = 8
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".qoi")
_FILE_KEYS = ("file_name", "image")


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture and what was asked for.

    Attributes:
        id: its name; unique.
        prompt: the text it was made from.
        pixels: uint8 RGB (H, W, 3).
        spec: as in `reward_client.Item`.
        spec_kind: likewise.
        is_lossy: whether it was stored in a lossy encoding.
    """

    id: str
    prompt: str
    pixels: UInt8Image
    spec: Mapping[str, Any] | None = None
    spec_kind: SpecKind | None = None
    is_lossy: bool = False

    @property
    def wanted(self) -> str:
        """The words that somebody would write onto the picture to please a scorer."""
        target = (self.spec or {}).get("target")
        return target if isinstance(target, str) else self.prompt

    def about(self, other: Picture) -> Picture:
        """The same pixels, said to show what `other` was asked for."""
        return replace(self, prompt=other.prompt, spec=other.spec, spec_kind=other.spec_kind)

    def item(self, pixels: UInt8Image, number: int) -> Item:
        """What is sent to a scorer, with other pixels."""
        image = Image.from_array(pixels, copy=False)
        return Item(f"{number}:{self.id}", self.prompt, (image,), (), self.spec, self.spec_kind)


def from_folder(folder: Path, prompts: Path | None) -> tuple[list[Picture], list[str]]:
    """Pictures of a folder, and notes for the user.

    `prompts` is a JSONL file with a row per picture: `file_name` (relative to the folder),
    `prompt`, and what GenEval (`tag`, `include`) or OCR (`target`) need. Without it, the folder has
    `metadata.jsonl` of that form, or the layout of GenEval's generation.

    Raises:
        InvalidArgument: nothing there, a row without prompt or picture, a picture that cannot be
            read.
    """
    if not folder.is_dir():
        raise InvalidArgument(f"--images {folder}: no such folder")
    beside = folder / "metadata.jsonl"
    rows = sorted(folder.glob("*/metadata.jsonl"))
    if prompts is None and not beside.is_file() and rows:
        found = []
        for row_file in rows:
            (row,) = _rows(row_file)[:1] or [{}]
            found += [
                _read(file, str(file.relative_to(folder)), row, str(row_file))
                for file in sorted(row_file.parent.glob("samples/*.*"))
            ]
        return _some(found, folder), []
    source = prompts or beside
    if not source.is_file():
        raise InvalidArgument(
            f"{source}: no such file; it holds a row per picture, such as"
            ' {"file_name": "0001.png", "prompt": "a red star"}'
        )
    found, missing, named = [], [], set()
    for number, row in enumerate(_rows(source), start=1):
        name = next((row[key] for key in _FILE_KEYS if isinstance(row.get(key), str)), None)
        if name is None:
            raise InvalidArgument(f"{source}, line {number}: no file_name says which picture it is")
        if not (folder / name).is_file():
            missing.append((number, name))
            continue
        named.add((folder / name).resolve())
        found.append(_read(folder / name, name, row, f"{source}, line {number}"))
    if missing:
        number, name = missing[0]
        raise InvalidArgument(
            f"{source}: {len(missing)} of {len(missing) + len(found)} rows name pictures that"
            f" {folder} does not have, first line {number}: {name}"
        )
    others = [f for f in folder.rglob("*") if f.suffix.lower() in _ENDINGS]
    left = sum(f.resolve() not in named for f in others)
    notes = [f"{left} pictures of {folder} are named by no row of {source}"] if left else []
    return _some(found, folder), notes


def from_run(run_dir: Path, prompts: Path | None) -> tuple[list[Picture], list[str]]:
    """The newest pictures that a run of flow-train has kept, and notes for the user.

    Those of its recorder (`record/*.tar`), else the groups that its report shows. What GenEval or
    OCR need is recorded; for groups it is looked up by prompt in `prompts`, else in the run's file.

    Raises:
        InvalidArgument: the run has kept neither.
    """
    if recorded := _recorded(run_dir):
        lossy = sum(picture.is_lossy for picture in recorded)
        return recorded, [f"{lossy} recorded pictures of {run_dir} are lossy"] if lossy else []
    files = sorted((run_dir / "groups").glob("epoch_*.json"))
    if not files:
        raise InvalidArgument(
            f"--run {run_dir}: it has kept no pictures; runs keep them with record.images, or a"
            " few every logging.groups_every_epochs epochs"
        )
    source = prompts or _prompts_of(run_dir)
    by_prompt = {str(row.get("prompt")): row for row in _rows(source)} if source else {}
    found = []
    for file in files[-2:]:
        for number, group in enumerate(json.loads(file.read_text(encoding="utf-8"))["groups"]):
            row = by_prompt.get(group["prompt"], {}) | {"prompt": group["prompt"]}
            for place, shown in enumerate(group["shown"]):
                data = base64.b64decode(shown["picture"].partition("base64,")[2])
                name = f"{file.stem}/{number}/{place}"
                found.append(_picture(Image(data, sniff(data)), name, row, str(file)))
    notes = []
    if lossy := sum(picture.is_lossy for picture in found):
        notes.append(f"{lossy} of {len(found)} pictures of {run_dir} are lossy small copies")
    return _some(found, run_dir), notes


def _recorded(run_dir: Path) -> list[Picture]:
    """The still pictures of the newest recorded epoch, in the format of docs/guides/record.md."""
    shards = sorted((run_dir / "record").glob("epoch_*_rank_*.tar"))
    newest = [file for file in shards if file.name[:12] == shards[-1].name[:12]]
    found = []
    for shard in newest:
        with tarfile.open(shard) as tar:
            content = {one.name: tar.extractfile(one) for one in tar if one.isfile()}
            for name, stream in content.items():
                picture = content.get(f"{name.removesuffix('.json')}.webp")
                if not name.endswith(".json") or stream is None or picture is None:
                    continue
                row = json.loads(stream.read())
                pixels = codec.decode(Image(picture.read(), Encoding.WEBP))
                spec = json.loads(row["spec"]) if row["spec"] else None
                found.append(
                    Picture(
                        *(row["key"], row["prompt"], pixels, spec, row["spec_kind"]),
                        is_lossy=row["encoding"] != "lossless",
                    )
                )
    return found


def thinned(pictures: Iterable[Picture], most: int) -> list[Picture]:
    """At most `most` pictures in a fixed order: whole prompts, evenly chosen.

    Of a prompt with more than `MOST_PER_PROMPT` pictures, so many are taken.
    """
    groups: dict[str, list[Picture]] = {}
    for picture in sorted(pictures, key=lambda one: (one.prompt, one.id)):
        groups.setdefault(picture.prompt, []).append(picture)
    kept = [_evenly(group, MOST_PER_PROMPT) for group in groups.values()]
    size = max(map(len, kept))
    return [picture for group in _evenly(kept, max(2, most // size)) for picture in group]


def _evenly(things: Sequence[Any], most: int) -> list[Any]:
    count = min(len(things), most)
    places = np.linspace(0, len(things) - 1, count).round().astype(int)
    return [things[place] for place in places]


def _some(found: list[Picture], where: Path) -> list[Picture]:
    if not found:
        raise InvalidArgument(f"{where}: no pictures")
    return found


def _rows(file: Path) -> list[dict[str, Any]]:
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise InvalidArgument(f"{file}, line {number}: not a JSON object")
        rows.append(row)
    return rows


def _read(file: Path, name: str, row: Mapping[str, Any], where: str) -> Picture:
    return _picture(Image.from_file(file), name, row, where)


def _picture(image: Image, name: str, row: Mapping[str, Any], where: str) -> Picture:
    prompt = row.get("prompt", row.get("text"))
    if not isinstance(prompt, str):
        raise InvalidArgument(f"{where}: no prompt for {name}")
    try:
        pixels = codec.decode(image)
    except InvalidArgument as error:
        raise InvalidArgument(f"{name}: {error.message}") from error
    kind: SpecKind | None = "geneval" if "include" in row else "ocr" if "target" in row else None
    spec = {"target": row["target"]} if kind == "ocr" else dict(row) if kind else None
    return Picture(name, prompt, pixels, spec, kind, codec.is_lossy(image))


def _prompts_of(run_dir: Path) -> Path | None:
    """The prompt file that a run trained on, if it is here."""
    try:
        settings = json.loads((run_dir / "resolved.json").read_text(encoding="utf-8"))["settings"]
        path = str(settings["task"]["train"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if path.startswith("@mini/"):
        found = importlib.util.find_spec("miniature")
        places = list(found.submodule_search_locations or ()) if found else []
        path = f"{places[0]}/{path.removeprefix('@mini/')}" if places else ""
    return Path(path) if path.endswith(".jsonl") and Path(path).is_file() else None
