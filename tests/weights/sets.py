"""Small weight sets for tests, and a reporter that remembers."""

from __future__ import annotations

from dataclasses import dataclass, field

from file_server import FileServer, Served

from reward_server.weights.catalog import WeightFile, WeightSet
from reward_server.weights.sources import Sources

QUICK = Sources(attempts=4, wait_s=0.01)
BIG = bytes(range(256)) * 3000  # 768,000 bytes: several chunks
SMALL = b'{"hidden_size": 8}\n'


@dataclass
class Report:
    lines: list[str] = field(default_factory=list)
    moves: list[tuple[str, int, int | None]] = field(default_factory=list)

    def say(self, line: str) -> None:
        self.lines.append(line)

    def progress(self, what: str, done_bytes: int, total_bytes: int | None) -> None:
        self.moves.append((what, done_bytes, total_bytes))

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


def weight_set(*files: WeightFile, name: str = "tiny") -> WeightSet:
    return WeightSet(name, ("brightness",), files, "MIT", 0.001)


def served_set(server: FileServer, sha256: str = "", **files: Served) -> WeightSet:
    """A set called tiny whose files are served: `model=` as model.pt, `config=` as sub/config.json.

    `sha256` is what the catalogue publishes for the model.
    """
    paths = {"model": "model.pt", "config": "sub/config.json"}
    for key, served in files.items():
        server.files[f"/{paths[key]}"] = served
    return weight_set(
        *(
            WeightFile(paths[key], server.url(f"/{paths[key]}"), sha256 if key == "model" else "")
            for key in files
        )
    )
