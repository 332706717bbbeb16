"""Prompt files by task. A new task is one file here and one line in `TASKS`."""

from collections.abc import Callable
from pathlib import Path

from trainer.data import generic, geneval, ocr
from trainer.data.files import category_probabilities, check_overlap, fingerprint, without
from trainer.types import Prompt

Say = Callable[[str], None]

TASKS: dict[str, Callable[[Path, Say], list[Prompt]]] = {
    "geneval": geneval.load,
    "ocr": ocr.load,
    "texts": generic.load_texts,
    "jsonl": generic.load,
}

__all__ = ["TASKS", "category_probabilities", "check_overlap", "fingerprint", "without"]
