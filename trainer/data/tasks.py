"""Prompt files by task: a loader each, and a line in `TASKS`."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from reward_client.geneval_spec import SpecError, parse, to_row
from reward_client.ocr_target import AmbiguousTargetError, TargetError, target_of
from trainer.data.files import rows, text_field, unique
from trainer.errors import DataError
from trainer.types import Prompt, SpecKind

Say = Callable[[str], None]


def load_geneval(path: Path, say: Say = print) -> list[Prompt]:
    """Read a file of GenEval rows; the category is the tag.

    `{"tag", "include": [{"class", "count", "color", "position"}], "prompt"}`, as in the benchmark
    (github.com/djghosh13/geneval) and in flow_grpo's data set. The scorer knows which classes,
    colours and tags there are (`trainer.run.trial`).

    Raises:
        DataError: a malformed row, naming file and line.
    """
    prompts = []
    for place, row in rows(path):
        text = text_field(place, row, "prompt")
        try:
            task = parse(row, None, None, None)
        except SpecError as error:
            raise DataError(f"{place}: {str(error).removeprefix('spec.')}") from None
        spec = to_row(task)
        prompts.append((place, Prompt(text=text, spec=spec, spec_kind="geneval", group=task.tag)))
    return unique(path, prompts)


def load_ocr(path: Path, say: Say = print) -> list[Prompt]:
    """Read prompts that ask for a text: rows of `{"prompt", "target"}`, optionally `"group"`.

    Without a target, and in .txt files, it is the one text in double quotes, as in flow_grpo's
    data. Rows whose prompt leaves open which text is meant are left out, with a warning.

    Raises:
        DataError: a malformed row, one without a text to look for, or none that is left.
    """
    prompts, left_out = [], []
    for place, row in rows(path):
        text = text_field(place, row, "prompt")
        try:
            target = target_of(text, {"target": row["target"]} if "target" in row else None)
        except AmbiguousTargetError as error:
            left_out.append(f"{place}: {error}")
            continue
        except TargetError as error:
            raise DataError(f"{place}: {error}") from None
        group = text_field(place, row, "group") if "group" in row else "text"
        prompts.append((place, Prompt(text, {"target": target}, "ocr", group)))
    if left_out:
        found = f"{len(left_out)} of {len(left_out) + len(prompts)} rows of {path.name}"
        reason = f"{found} leave open which text to look for, first {left_out[0]}"
        if not prompts:
            raise DataError(f'{reason}; add "target" to the rows')
        say(f'warning: {reason}; they are left out, "target" in the row would say')
    return unique(path, prompts)


def load_jsonl(path: Path, say: Say = print) -> list[Prompt]:
    """Read any prompts: rows of `{"prompt"}`, optionally `"group"`, `"spec"`, `"spec_kind"`."""
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


def load_texts(path: Path, say: Say = print) -> list[Prompt]:
    """Read only the texts (and categories) of any prompt file, for scorers that look at pixels."""
    prompts = []
    for place, row in rows(path):
        group = row.get("group", row.get("tag", ""))
        text = text_field(place, row, "prompt")
        prompts.append((place, Prompt(text=text, group=group if isinstance(group, str) else "")))
    return unique(path, prompts)


TASKS: dict[str, Callable[[Path, Say], list[Prompt]]] = {
    "geneval": load_geneval,
    "ocr": load_ocr,
    "texts": load_texts,
    "jsonl": load_jsonl,
}
