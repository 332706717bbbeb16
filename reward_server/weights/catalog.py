"""The weight files of the built-in scorers and their public sources.

`CATALOG` is the only place where a file is announced. A checksum stands here where its publisher
states one; for the others the first download records the checksum that the source itself sends.
"""

from __future__ import annotations

from dataclasses import dataclass

HUB = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file of a set.

    Attributes:
        path: below the folder of the set, with '/' between folders.
        url: public source.
        sha256: hex digest as published; empty where the publisher states none.
    """

    path: str
    url: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class WeightSet:
    """What one scorer (or several that share a network) loads.

    Attributes:
        name: folder below the models directory, and the name on the command line.
        scorers: built-in scorers that need it.
        files: all of them are needed.
        license: as the publisher names it.
        size_gb: of all files together, rounded up (1e9 bytes).
    """

    name: str
    scorers: tuple[str, ...]
    files: tuple[WeightFile, ...]
    license: str
    size_gb: float


def hub_files(repository: str, revision: str, *paths: str) -> tuple[WeightFile, ...]:
    """Files of a model repository on the Hugging Face hub, at one revision."""
    return tuple(WeightFile(p, f"{HUB}/{repository}/resolve/{revision}/{p}") for p in paths)


CATALOG: dict[str, WeightSet] = {}
