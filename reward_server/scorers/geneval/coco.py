"""GenEval's vocabulary: the 80 COCO classes under the benchmark's names, and its ten colours."""

from __future__ import annotations

from pathlib import Path

# Order matters: index = the network's label (COCO's order), and arg-max index of a colour.
CLASSES: tuple[str, ...] = tuple(
    Path(__file__).with_name("object_names.txt").read_text(encoding="utf-8").splitlines()
)
COLORS: tuple[str, ...] = (
    "red",
    "orange",
    "yellow",
    "green",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "white",
)
