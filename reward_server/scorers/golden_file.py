"""`goldens.json`: the recorded scores of the golden items, by scorer and digest of its weights.

It lies below the models directory and is written by `reward-server models bless` alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from reward_server.weights import files, store


class DamagedGoldens(files.WeightsError):
    """A file of goldens cannot be read; the one-line message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Golden:
    """Scores of the golden items, in order.

    Attributes:
        raw: N raw scores.
        components: N values per component.
        inputs: digest of the items themselves; empty where it was not recorded.
        fingerprint: of the scorer that computed the scores; empty where it was not recorded.
    """

    raw: tuple[float, ...]
    components: Mapping[str, tuple[float, ...]]
    inputs: str = ""
    fingerprint: str = ""


def blessed_file() -> Path:
    """Where `models bless` writes."""
    return store.models_dir() / "goldens.json"


def expected(name: str, digest: str) -> Golden | None:
    """What is recorded for a scorer and its `weights_digest()`, or None; raises DamagedGoldens."""
    entry = _read(blessed_file()).get(name, {}).get(digest)
    return None if entry is None else _parsed(entry, name, digest)


def load() -> dict[str, dict[str, Golden]]:
    """All recorded goldens by scorer and digest of the weights; raises DamagedGoldens."""
    return {
        name: {digest: _parsed(entry, name, digest) for digest, entry in by_digest.items()}
        for name, by_digest in _read(blessed_file()).items()
    }


def record(name: str, digest: str, golden: Golden) -> None:
    """Write one entry beside the others, also with concurrent writers; raises DamagedGoldens."""
    path = blessed_file()
    with files.locked(path.with_name(f".{path.name}.lock")):
        tables = _read(path)
        tables.setdefault(name, {})[digest] = asdict(golden)
        files.write_json(path, tables)


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DamagedGoldens(f"{path} cannot be read ({error}); {_REMEDY}") from error
    if not isinstance(tables, dict) or not all(isinstance(t, dict) for t in tables.values()):
        raise DamagedGoldens(f"{path} is not a table of tables; {_REMEDY}")
    return tables


_REMEDY = "move it away and run `reward-server models bless` for each scorer again"


def _parsed(entry: Any, name: str, digest: str) -> Golden:
    try:
        golden = msgspec.convert(entry, Golden)
        columns = [golden.raw, *golden.components.values()]
        if not golden.raw or any(len(column) != len(golden.raw) for column in columns):
            raise ValueError("its columns differ in length")
        if not all(math.isfinite(value) for column in columns for value in column):
            raise ValueError("a value is not finite")
    except (msgspec.ValidationError, ValueError) as error:
        where = f"{blessed_file()}, entry {name} {digest[:12]}"
        raise DamagedGoldens(f"{where} is damaged ({error}); bless the scorer again") from error
    return golden
