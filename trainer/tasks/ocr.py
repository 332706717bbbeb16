"""Prompts that ask for a text: rows of `{"prompt", "target"}`, optionally `"group"`."""

from pathlib import Path

from trainer.tasks.files import rows, text_field, unique
from trainer.types import Prompt


def load(path: Path) -> list[Prompt]:
    """Read a file of OCR rows.

    Raises:
        DataError: a malformed row, naming file and line.
    """
    prompts = []
    for place, row in rows(path):
        prompt = Prompt(
            text=text_field(place, row, "prompt"),
            spec={"target": text_field(place, row, "target")},
            spec_kind="ocr",
            group=text_field(place, row, "group") if "group" in row else "text",
        )
        prompts.append((place, prompt))
    return unique(path, prompts)
