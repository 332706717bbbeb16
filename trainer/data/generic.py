"""Any prompts: rows of `{"prompt"}`, optionally `"group"`, `"spec"` and `"spec_kind"`."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from trainer.data.files import rows, text_field, unique
from trainer.errors import DataError
from trainer.types import Prompt, SpecKind


def load(path: Path, say: Callable[[str], None] = print) -> list[Prompt]:
    """Read prompts with whatever specification they carry.

    Raises:
        DataError: a malformed row, naming file and line.
    """
    prompts = []
    for place, row in rows(path):
        spec, kind = row.get("spec"), row.get("spec_kind")
        if spec is not None and not isinstance(spec, dict):
            raise DataError(f'{place}: "spec" must be an object')
        if spec is not None and kind is None:
            kind = "metadata"
        if kind not in (None, *get_args(SpecKind)):
            raise DataError(f'{place}: "spec_kind" must be one of {", ".join(get_args(SpecKind))}')
        group = row.get("group", row.get("tag", ""))
        if not isinstance(group, str):
            raise DataError(f'{place}: "group" must be a text')
        text = text_field(place, row, "prompt")
        prompts.append((place, Prompt(text=text, spec=spec, spec_kind=kind, group=group)))
    return unique(path, prompts)


def load_texts(path: Path, say: Callable[[str], None] = print) -> list[Prompt]:
    """Read only the texts (and categories) of any prompt file, for scorers that look at pixels.

    Raises:
        DataError: a malformed row, naming file and line.
    """
    prompts = []
    for place, row in rows(path):
        group = row.get("group", row.get("tag", ""))
        text = text_field(place, row, "prompt")
        prompts.append((place, Prompt(text=text, group=group if isinstance(group, str) else "")))
    return unique(path, prompts)
