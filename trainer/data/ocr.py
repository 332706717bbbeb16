"""Prompts that ask for a text: rows of `{"prompt", "target"}`, optionally `"group"`.

Without a target, and in .txt files, it is the first text in double quotes, as in flow_grpo's data.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainer.data.files import rows, text_field, unique
from trainer.errors import DataError
from trainer.types import Prompt

_QUOTED = re.compile(r'"([^"]+)"|\u201c([^\u201d]+)\u201d')


def load(path: Path) -> list[Prompt]:
    """Read a file of OCR prompts.

    Raises:
        DataError: a malformed row, or one without a text to look for, naming file and line.
    """
    prompts = []
    for place, row in rows(path):
        prompt = Prompt(
            text=text_field(place, row, "prompt"),
            spec={"target": _target(place, row)},
            spec_kind="ocr",
            group=text_field(place, row, "group") if "group" in row else "text",
        )
        prompts.append((place, prompt))
    return unique(path, prompts)


def _target(place: str, row: Mapping[str, Any]) -> str:
    if "target" in row:
        return text_field(place, row, "target")
    found = _QUOTED.search(text_field(place, row, "prompt"))
    target = (found[1] or found[2]).strip() if found else ""
    if not target:
        raise DataError(
            f'{place}: no text to look for; quote it in the prompt (a sign "STOP") or add "target"'
        )
    return target
