"""`checksums.json` in the folder of each weight set, and what state the files are in.

A record holds the checksum that a file had when it was pulled and why that was believed. Files are
hashed again whenever their size or time differs from the record; damage that leaves both alone
is found by `verify`, which always hashes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

import msgspec

from reward_server.weights import files
from reward_server.weights.catalog import WeightFile, WeightSet
from reward_server.weights.store import sha256_of

NAME = "checksums.json"


class DamagedRecords(files.WeightsError):
    """A `checksums.json` cannot be read; the one-line message says which and what to do."""


class Trust(str, Enum):
    """Why a checksum is believed."""

    PUBLISHED = "published"  # the catalogue names it
    SOURCE = "source"  # the source sent it along
    MIRROR = "mirror"  # the mirror's own checksums.json names it
    FIRST_USE = "first use"  # none is stated: this is what came, or lay here, first


class State(str, Enum):
    """How a file, or a whole set, lies on this machine."""

    COMPLETE = "complete"
    PARTIAL = "partial"
    ABSENT = "absent"
    CORRUPTED = "corrupted"
    UNRECORDED = "unrecorded"  # there, and no checksum to compare with
    OUTDATED = "outdated"  # recorded when the catalogue named another source or revision


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one file.

    Attributes:
        sha256: hex digest.
        bytes: size when it was hashed.
        mtime_ns: time of change when it was hashed.
        url: the public source that the catalogue named then, wherever the file came from; a record
            of another source does not count.
        trust: why the checksum is believed.
    """

    sha256: str
    bytes: int
    mtime_ns: int
    url: str
    trust: Trust


def of(path: Path, sha256: str, file: WeightFile, trust: Trust) -> Record:
    """The record of a file that has just been hashed; raises OSError."""
    stat = path.stat()
    return Record(sha256, stat.st_size, stat.st_mtime_ns, file.url, trust)


def read(folder: Path) -> dict[str, Record]:
    """The records of a set's folder by path; empty where there are none; raises DamagedRecords."""
    path = folder / NAME
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise DamagedRecords(
            f"{path} cannot be read ({error}); delete it and pull the set again"
        ) from error


def parse(text: str) -> dict[str, Record]:
    """Read the text of a `checksums.json`; raises ValueError."""
    try:
        return msgspec.json.decode(text, type=dict[str, dict[str, Record]])["files"]
    except (KeyError, msgspec.MsgspecError) as error:
        raise ValueError(f"not a table of checksums: {error}") from error


def write(folder: Path, records: Mapping[str, Record]) -> None:
    """Replace the records of a set's folder; raises OSError."""
    files.write_json(folder / NAME, {"files": {k: asdict(v) for k, v in records.items()}})


def known_checksum(file: WeightFile, record: Record | None) -> str:
    """The checksum that a file must have: published, else recorded, else empty."""
    if file.sha256:
        return file.sha256
    return record.sha256 if record is not None and record.url == file.url else ""


def trust_in(file: WeightFile, record: Record | None) -> Trust:
    """Why `known_checksum` is believed."""
    if file.sha256:
        return Trust.PUBLISHED
    return Trust.FIRST_USE if record is None else record.trust


def file_state(
    folder: Path, file: WeightFile, record: Record | None, *, rehash: bool = False
) -> State:
    """How one file lies in a set's folder; raises OSError."""
    path = folder / file.path
    if not path.is_file():
        return State.ABSENT
    known = known_checksum(file, record)
    if not known:
        return State.UNRECORDED if record is None else State.OUTDATED
    if record is not None and record.sha256 == known and not rehash:
        stat = path.stat()
        if (stat.st_size, stat.st_mtime_ns) == (record.bytes, record.mtime_ns):
            return State.COMPLETE
    return State.COMPLETE if sha256_of(path) == known else State.CORRUPTED


def set_states(folder: Path, weights: WeightSet, *, rehash: bool = False) -> dict[str, State]:
    """The state of every file of a set, by path; raises DamagedRecords or OSError."""
    known = read(folder)
    return {
        file.path: file_state(folder, file, known.get(file.path), rehash=rehash)
        for file in weights.files
    }


def overall(states: Mapping[str, State]) -> State:
    found = set(states.values())
    if found == {State.ABSENT}:
        return State.ABSENT
    if State.CORRUPTED in found:
        return State.CORRUPTED
    if State.ABSENT in found:
        return State.PARTIAL
    return next((s for s in (State.OUTDATED, State.UNRECORDED) if s in found), State.COMPLETE)
