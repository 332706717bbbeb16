"""`goldens.json`: the recorded scores of the golden items, by scorer and digest of its weights.

One file ships beside this module, for weights that ship with the code; the other lies below the
models directory and is written by `reward-server models bless` alone. The second wins.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from reward_server.weights import files, store

SHIPPED = Path(__file__).with_name("goldens.json")


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
    """What is recorded for a scorer and its weights, or None.

    Args:
        name: of the scorer (`spec.name`).
        digest: `weights_digest()`.

    Raises:
        DamagedGoldens: the entry, or the file it would be in, cannot be read.
    """
    for path in (blessed_file(), SHIPPED):
        entry = _read(path).get(name, {}).get(digest)
        if entry is not None:
            return _parsed(entry, f"{path}, entry {name} {digest[:12]}")
    return None


def load(path: Path | None = None) -> dict[str, dict[str, Golden]]:
    """All recorded goldens by scorer and digest of the weights, shipped and blessed.

    Args:
        path: of the blessed ones; default: `blessed_file()`.

    Raises:
        DamagedGoldens: a file or an entry cannot be read.
    """
    merged: dict[str, dict[str, Golden]] = {}
    for source in (SHIPPED, path or blessed_file()):
        for name, by_digest in _read(source).items():
            for digest, entry in by_digest.items():
                where = f"{source}, entry {name} {digest[:12]}"
                merged.setdefault(name, {})[digest] = _parsed(entry, where)
    return merged


def record(name: str, digest: str, golden: Golden) -> None:
    """Write one entry; the others stay as they are, also with concurrent writers.

    Raises:
        DamagedGoldens: the file exists and cannot be read; it is left alone.
        OSError: it cannot be written.
    """
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


def _parsed(entry: Any, where: str) -> Golden:
    try:
        raw = tuple(map(float, entry["raw"]))
        components = {str(k): tuple(map(float, v)) for k, v in entry["components"].items()}
        columns = [raw, *components.values()]
        if not raw or any(len(column) != len(raw) for column in columns):
            raise ValueError("its columns differ in length")
        if not all(math.isfinite(value) for column in columns for value in column):
            raise ValueError("a value is not finite")
        facts = [str(entry.get(key, "")) for key in ("inputs", "fingerprint")]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DamagedGoldens(f"{where} is damaged ({reason}); bless the scorer again") from error
    return Golden(raw, components, *facts)
