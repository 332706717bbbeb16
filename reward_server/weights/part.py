"""A file on its way: `NAME.part` beside its target, hashed as it grows, renamed when whole."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from reward_server.weights import files

_CHUNK_BYTES = 1 << 20


class Part:
    """What has arrived of one file so far; survives the process.

    Attributes:
        size: bytes that have arrived.
        most: the largest `size` ever in this process: what tells progress from running in circles.
        inherited: bytes found on disk, left by an earlier process; 0 after `restart`.
        validator: what the source called this version of the file (ETag or date), or empty.
    """

    def __init__(self, target: Path, source: str) -> None:
        """Take up what an earlier process left, if it came from the same source.

        Args:
            target: where the whole file will be.
            source: URL the bytes come from.

        Raises:
            OSError: the folder cannot be written to.
        """
        self._target = target
        self._path = target.with_name(f"{target.name}.part")
        self._facts = target.with_name(f"{target.name}.part.json")
        self._source = source
        self._sha = hashlib.sha256()
        self.size = self.most = self.inherited = 0
        self.validator = ""
        target.parent.mkdir(parents=True, exist_ok=True)
        facts = self._read_facts()
        if facts is None:
            self.restart("")
            return
        self.validator = facts
        with self._path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                self._sha.update(chunk)
                self.size += len(chunk)
        self.most = self.inherited = self.size

    def restart(self, validator: str) -> None:
        """Begin again with nothing; `validator` names the version that follows."""
        self._path.write_bytes(b"")
        files.write_json(self._facts, {"source": self._source, "validator": validator})
        self._sha = hashlib.sha256()
        self.size = self.inherited = 0
        self.validator = validator

    def append(self, chunk: bytes) -> None:
        """Add bytes at the end."""
        with self._path.open("ab") as file:
            file.write(chunk)
        self._sha.update(chunk)
        self.size += len(chunk)
        self.most = max(self.most, self.size)

    def sha256(self) -> str:
        """Hex digest of what has arrived."""
        return self._sha.hexdigest()

    def finish(self) -> None:
        """Put the file in its place, all at once."""
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        self._path.replace(self._target)
        self._facts.unlink(missing_ok=True)

    def drop(self) -> None:
        """Forget what has arrived."""
        self._path.unlink(missing_ok=True)
        self._facts.unlink(missing_ok=True)

    def _read_facts(self) -> str | None:
        """The validator of a usable left-over, or None."""
        try:
            facts = json.loads(self._facts.read_text(encoding="utf-8"))
            usable = self._path.is_file() and facts["source"] == self._source
            return str(facts["validator"]) if usable else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def size_on_disk(target: Path) -> int:
    """Bytes of a file that have arrived; 0 where nothing has."""
    try:
        return target.with_name(f"{target.name}.part").stat().st_size
    except OSError:
        return 0
