"""The published prompt sets: which files, from where, and what they must be."""

import hashlib
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

CATALOG = Path(__file__).parent / "official.toml"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class OfficialFile:
    """One file of a set, with what proves that it is the one.

    Attributes:
        path: below the folder of the data.
        url: where it is published.
        bytes: its size, or 0 where that is not known.
        sha256: of its content, or empty; then there is a `git_blob`.
        git_blob: git's name of the content.
    """

    path: str
    url: str
    bytes: int = 0
    sha256: str = ""
    git_blob: str = ""

    def is_at(self, path: Path) -> bool:
        """Whether a file on disk is this one.

        Raises:
            OSError: it cannot be read.
        """
        known = hashlib.sha256()
        if not self.sha256:
            known = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                known.update(chunk)
        return known.hexdigest() == (self.sha256 or self.git_blob)

    @property
    def checksum(self) -> str:
        """The checksum with its kind, for messages."""
        return f"sha256 {self.sha256}" if self.sha256 else f"git blob {self.git_blob}"


@dataclass(frozen=True, slots=True)
class OfficialSet:
    """Files that are fetched together.

    Attributes:
        name: what it is called on the command line.
        what: one line for people.
        files: its files; none where there is no checksum to hold them to.
        licence: of the files, and of what `further` brings.
        further: what is left to do by hand, commands with `{root}` for the folder of the data.
    """

    name: str
    what: str
    files: tuple[OfficialFile, ...]
    licence: str = ""
    further: str = ""


@cache
def catalog() -> dict[str, OfficialSet]:
    """The shipped catalogue, by name."""
    tables = tomllib.loads(CATALOG.read_text(encoding="utf-8"))
    return {
        name: OfficialSet(
            name=name,
            what=table["what"],
            files=tuple(OfficialFile(**file) for file in table.get("files", [])),
            licence=table["licence"],
            further=table.get("further", ""),
        )
        for name, table in tables.items()
    }


def names_with(path: Path) -> list[str]:
    """The sets with a file that ends like this path (`geneval/test_metadata.jsonl`)."""
    ending = path.parts[-2:]
    return [
        one.name
        for one in catalog().values()
        if any(Path(file.path).parts == ending for file in one.files)
    ]
