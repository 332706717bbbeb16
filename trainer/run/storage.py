"""Atomic writes; errors of the disk as `StorageError`."""

import errno
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from trainer.errors import StorageError

CHUNK_BYTES = 1 << 22
HINTS = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.EROFS: "make it writable",
    errno.EACCES: "make it writable",
}


@contextmanager
def storing(what: str) -> Iterator[None]:
    """Turn an `OSError` into a `StorageError` of one line that names `what` was written."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # Safetensors writes by itself and has only words for what the system said.
        said = re.search(r"os error (\d+)", str(error))
        number = error.errno if isinstance(error, OSError) else said and int(said[1])
        reason = os.strerror(number) if number else str(error)
        hint = HINTS.get(number or 0, "see to the disk")
        raise StorageError(
            f"cannot write {what}: {reason}; what was saved before is whole: {hint}, and the same "
            "command continues"
        ) from error


def replace_file(path: Path, text: str) -> None:
    """Write a text file that is either the old or the new one, never half of it."""
    temporary = path.with_name(f".{path.name}.writing")
    with temporary.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def digest(path: Path) -> str:
    """SHA-256 of a file, which need not fit into the memory."""
    found = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(CHUNK_BYTES):
            found.update(chunk)
    return found.hexdigest()
