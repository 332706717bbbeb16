"""Prompt files by task: a loader each, and a line in `TASKS`."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from reward_client.geneval_spec import SpecError, parse
from reward_client.ocr_target import AmbiguousTargetError, TargetError, target_of
from trainer.data.files import rows, text_field, unique
from trainer.data.references import read_references
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
    return unique(path, [(place, _geneval(place, row)) for place, row in rows(path)])


def _geneval(place: str, row: Mapping[str, Any]) -> Prompt:
    text = text_field(place, row, "prompt")
    try:
        task = parse(row, None, None, None)
    except SpecError as error:
        raise DataError(f"{place}: {str(error).removeprefix('spec.')}") from None
    return Prompt(text=text, spec=task.row(), spec_kind="geneval", group=task.tag)


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
    return unique(path, [(place, _prompt(place, row)) for place, row in rows(path)])


def _prompt(place: str, row: Mapping[str, Any]) -> Prompt:
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
    return Prompt(text=text, spec=spec, spec_kind=kind, group=group)


def load_edit(path: Path, say: Say = print) -> list[Prompt]:
    """Read prompts that change pictures: rows of `{"prompt", "references": [file, ...]}`.

    Optionally with `"negative"` and what `load_jsonl` reads. Files are relative to the folder of
    `path`. What other projects write is read as well: `"images"` or `"image"` instead of
    references, and rows of GenEval (with `"include"`), which are specifications themselves.
    """
    found = [(place, row, _names(place, row)) for place, row in rows(path)]
    for place, _, names in found:
        if len(names) != len(found[0][2]):
            raise DataError(
                f'{place}: {len(names)} "references", but {len(found[0][2])} at {found[0][0]}: all '
                "rows of a file have as many"
            )
    named = [
        (path.parent / name, f"{place}: references[{number}]")
        for place, _, names in found
        for number, name in enumerate(names)
    ]
    pictures = read_references(named)
    prompts = []
    for place, row, names in found:
        prompt = _geneval(place, row) if "include" in row else _prompt(place, row)
        negative = row.get("negative")
        if not isinstance(negative, str | None):
            raise DataError(f'{place}: "negative" must be a text')
        references = tuple(pictures[path.parent / name] for name in names)
        prompts.append((place, replace(prompt, references=references, negative=negative)))
    return unique(path, prompts)


def _names(place: str, row: Mapping[str, Any]) -> list[str]:
    names = row.get("references", row.get("images", row.get("image")))
    names = [names] if isinstance(names, str) else names
    if not names or not isinstance(names, list) or not all(isinstance(n, str) and n for n in names):
        raise DataError(
            f'{place}: "references" must be a list of picture files, e.g. ["images/0001.png"]'
        )
    return names


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
    "edit": load_edit,
}
