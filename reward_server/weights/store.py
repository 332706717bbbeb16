"""Where weight files lie on this machine, and their digests. Never reaches the network."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from reward_server.weights.catalog import CATALOG

ENV_MODELS_DIR = "REWARD_MODELS_DIR"
_CHUNK_BYTES = 1 << 20


class MissingWeights(FileNotFoundError):
    """Files that a scorer needs are not there; the one-line message says how to get them."""

    def __str__(self) -> str:
        return str(self.args[0])


def models_dir() -> Path:
    """The folder of all weight sets: `REWARD_MODELS_DIR`, else `~/.cache/flow-reward/models`."""
    chosen = os.environ.get(ENV_MODELS_DIR, "")
    return Path(chosen).expanduser() if chosen else Path("~/.cache/flow-reward/models").expanduser()


def require(name: str, weights: str = "", files: Sequence[str] = ()) -> Path:
    """The folder that holds a complete weight set.

    Args:
        name: a key of `CATALOG`.
        weights: the scorer's `weights` option, a folder that holds the files; empty: the set's
            own folder below `models_dir()`.
        files: paths below the folder; default: those of the catalogue.

    Raises:
        MissingWeights: a file is not there; says which and what to do.
    """
    folder = Path(weights).expanduser() if weights else models_dir() / name
    wanted = list(files) or [file.path for file in CATALOG[name].files]
    missing = [path for path in wanted if not (folder / path).is_file()]
    if missing:
        todo = (
            f"check the option weights = {weights!r}"
            if weights
            else f"run `reward-server models pull {name}`"
        )
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise MissingWeights(f"no weights of {name}: {folder / missing[0]}{more} not found; {todo}")
    return folder


def sha256_of(path: Path) -> str:
    """Hex digest of one file; raises OSError."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha.update(chunk)
    return sha.hexdigest()


def digest_of(paths: Iterable[Path]) -> str:
    """Hex digest over names and contents of files, whatever their folder; raises OSError."""
    sha = hashlib.sha256()
    # Sorted with the contents: files of one name in several folders have no other order.
    for name, content in sorted((path.name, sha256_of(path)) for path in paths):
        sha.update(f"{name}={content}\n".encode())
    return sha.hexdigest()
