"""Prompt files by task: a loader each, and a line in `TASKS`."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from reward_client.geneval_spec import SpecError, parse
from reward_client.ocr_target import AmbiguousTargetError, TargetError, target_of
from trainer.data.files import rows, text_field, unique
from trainer.data.references import held_beside, locate, read_references
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


# What other projects call the fields of a row about pictures; the first that a row has counts.
# flow_grpo, Flow-Factory and Edit-R1: image, images. verl-omni: images, negative_prompt.
# UniRL: media. Pref-GRPO: instruction, source_image. GEdit-Bench: input_image_raw, task_type.
SPELLINGS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("prompt", "instruction"),
    "references": ("references", "images", "image", "source_image", "media", "input_image_raw"),
    "negative": ("negative", "negative_prompt"),
    "group": ("group", "tag", "edit_type", "task_type"),
}
# Without a "spec", these are it: of Edit-R1, and of ImgEdit's benchmark.
SPECIFYING = ("requirement", "edit_type")
PICTURE_MARK = re.compile(r"(Picture \d+:\s*)?<image>")


def load_edit(path: Path, say: Say = print) -> list[Prompt]:
    """Read prompts that change pictures: rows of `{"prompt", "references": [file, ...]}`.

    Optionally with `"negative"` and what `load_jsonl` reads. `trainer.data.references.locate` says
    where the files are. What other projects write is read as well: their names of the fields
    (`SPELLINGS`), messages as prompts, and rows of GenEval (with `"include"`), which are
    specifications themselves.

    Raises:
        DataError: a malformed row, or a picture that is not there or cannot be read, naming the
            row and the field.
    """
    drafts: list[tuple[str, Prompt, list[Path]]] = []
    named: list[tuple[Path, str]] = []
    for place, row in rows(path):
        found = [(locate(value, path, field), field) for field, value in _pictures(place, row)]
        drafts.append((place, _edit(place, row), [file for file, _ in found]))
        named += found
        first, _, files = drafts[0]
        if len(found) != len(files):
            raise DataError(
                f'{place}: {len(found)} "references", but {len(files)} at {first}: all rows of a '
                "file have as many; make a file for each number"
            )
    pictures = read_references(named)
    if held := {file for file, _ in named if file.parent == held_beside(path)}:
        say(f"the {len(held)} pictures in {path.name} are now files in {held_beside(path)}")
    return unique(
        path,
        [
            (place, replace(prompt, references=tuple(pictures[file] for file in files)))
            for place, prompt, files in drafts
        ],
    )


def _edit(place: str, row: Mapping[str, Any]) -> Prompt:
    """The prompt of a row about pictures, without these."""
    (name, text), (other, negative) = (_spelled(row, own) for own in ("prompt", "negative"))
    own = {**row, "prompt": text_field(place, {name: _said(text)}, name)}
    _, group = _spelled(row, "group")
    if group is not None:
        own["group"] = group
    if "spec" not in row:
        own["spec"] = {field: row[field] for field in SPECIFYING if field in row} or None
    prompt = _geneval(place, own) if "include" in row else _prompt(place, own)
    negative = _said(negative)
    if not isinstance(negative, str | None):
        raise DataError(f'{place}: "{other}" must be a text')
    return replace(prompt, negative=negative)


def _spelled(row: Mapping[str, Any], own: str) -> tuple[str, Any]:
    """A field under the first of its names that the row has, with that name; else None."""
    return next(((name, row[name]) for name in SPELLINGS[own] if name in row), (own, None))


def _said(value: Any) -> Any:
    """What the user says in messages, without the marks of pictures; anything else as it is."""
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        return value
    said = [each.get("content") for each in value if each.get("role") == "user"]
    if not said or not isinstance(said[-1], str):
        return value
    return PICTURE_MARK.sub("", said[-1]).strip() or None


def _pictures(place: str, row: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The pictures of a row, each with its field for messages."""
    name, found = _spelled(row, "references")
    if found is None and "edit_type" in row:
        name, found = "id", row.get("id")  # ImgEdit's benchmark
    if name == "media" and isinstance(found, list) and all(isinstance(m, dict) for m in found):
        conditions = [m for m in found if m.get("role") == "condition"]
        found = [m.get("uri") for m in conditions if m.get("modality") == "image"]
    if not found:
        raise DataError(
            f'{place}: "{name}" must be a list of picture files, e.g. ["images/0001.png"]'
        )
    if not isinstance(found, list):
        return [(f"{place}: {name}", found)]
    return [(f"{place}: {name}[{number}]", value) for number, value in enumerate(found)]


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
