"""API keys: a TOML file that holds what a key may do, and of the key itself only a hash.

    [keys.trainer]
    sha256 = "9f86..."        # of the key; the key itself is shown once, when it is made
    priority = "TRAIN"        # the highest it may use
    items_per_s = 200.0       # items times scorers asked; 0: no limit
    burst_items = 400         # at once, after a rest; 0: two seconds' worth
    scorers = ["geneval"]     # empty: all

A key is 256 bits from the operating system's generator, so a plain SHA-256 is enough at rest: no
dictionary holds such keys, and guessing 2^256 of them is as hopeless with a fast hash as with a
slow one. A slow hash (scrypt) is for passwords; here it would cost every request tens of
milliseconds and let any caller keep the server busy with wrong keys.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import os
import re
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reward_client.types import Priority
from reward_server.config import ConfigError, tomllib

PREFIX = "frk_"
_KEY_BYTES = 32
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")
_OTHERS_MAY_READ = 0o077


class KeyEntry(BaseModel):
    """One `[keys.NAME]` table."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    priority: Priority = Priority.TRAIN
    items_per_s: float = Field(0.0, ge=0, allow_inf_nan=False)
    burst_items: int = Field(0, ge=0)
    scorers: tuple[Annotated[str, Field(pattern=_NAME.pattern)], ...] = ()

    @property
    def burst(self) -> float:
        """Items that may come at once after a rest; at least one, or none would ever pass."""
        return float(self.burst_items or max(1, math.ceil(2 * self.items_per_s)))


@dataclass(frozen=True)
class KeyRing:
    """All keys of a file at one moment: name -> entry."""

    entries: Mapping[str, KeyEntry]

    def find(self, key: str) -> str | None:
        """The name of a key, or None.

        Every entry is compared, each in constant time, whether or not one has matched: the time
        taken depends on the number of keys alone.
        """
        presented = digest(key).encode()
        found = None
        for name, entry in self.entries.items():
            if hmac.compare_digest(presented, entry.sha256.encode()):
                found = name
        return found


def digest(key: str) -> str:
    """The hash that stands for a key at rest."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def new_key() -> str:
    """A fresh random key, 256 bits, in letters that survive shells, headers and double clicks."""
    return PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def read(path: Path) -> KeyRing:
    """Read a key file.

    Raises:
        ConfigError: it cannot be read or breaks the format; one line, without its hashes.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(
            f"cannot read the key file {path}: {reason} (make one with `reward-server keys create"
            f" NAME --file {path}`)"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    if unknown := sorted(set(tables) - {"keys"}):
        raise ConfigError(f"{path}: unknown table {unknown[0]!r}: only [keys.NAME] is expected")
    keys = tables.get("keys", {})
    if not isinstance(keys, dict):
        raise ConfigError(f"{path}: `keys` must hold tables [keys.NAME]")
    entries = {str(name): _entry(path, str(name), table) for name, table in keys.items()}
    hashes = [entry.sha256 for entry in entries.values()]
    if len(set(hashes)) != len(hashes):
        raise ConfigError(f"{path}: two names share one key: make a key of its own for each")
    return KeyRing(entries)


def write(path: Path, ring: KeyRing) -> None:
    """Write a key file in one step, readable by its owner alone; raises OSError."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("# Hashes of API keys; made by `reward-server keys`. A running server reads\n")
        file.write("# changes within seconds.\n")
        for name, entry in ring.entries.items():
            file.write(f"\n[keys.{_quoted(name)}]\n")
            file.write(f'sha256 = "{entry.sha256}"\n')
            file.write(f'priority = "{entry.priority.value}"\n')
            file.write(f"items_per_s = {entry.items_per_s!r}\n")
            file.write(f"burst_items = {entry.burst_items}\n")
            file.write(f"scorers = [{', '.join(_quoted(scorer) for scorer in entry.scorers)}]\n")
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def name_problem(name: str) -> str | None:
    """Why a name cannot be a key's, or None."""
    if _NAME.fullmatch(name):
        return None
    return f"key name {name!r}: use up to 64 letters, digits, '_', '-' and '.'"


def permission_problem(path: Path) -> str | None:
    """A warning if others on this machine can read the file, or None."""
    if sys.platform == "win32":
        return None
    mode = path.stat().st_mode & 0o777
    if mode & _OTHERS_MAY_READ:
        return f"{path} can be read by others (mode {mode:03o}): chmod 600 {path}"
    return None


def _entry(path: Path, name: str, table: Any) -> KeyEntry:
    if (problem := name_problem(name)) is not None:
        raise ConfigError(f"{path}: {problem}")
    try:
        return KeyEntry.model_validate(table)
    except ValidationError as error:
        # Only the key's name and the field: pydantic's text would quote the hash.
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the table"
        known = ", ".join(KeyEntry.model_fields)
        raise ConfigError(
            f"{path}: keys.{name}: {field}: {first['msg']} (known fields: {known})"
        ) from error


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
