"""From the files of a suite to what is drawn and asked: an adapter per format, a line each."""

import ast
import csv
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prompt_sets.paraphrase import wordings
from trainer.data import TASKS
from trainer.data.files import rows, text_field
from trainer.errors import DataError
from trainer.suites.manifest import File, Manifest
from trainer.suites.reduce import normalised
from trainer.types import Prompt

Say = Callable[[str], None]
NUMBERS = {word: str(number) for number, word in enumerate(
    ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), start=1
)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """One prompt of a suite; `unit` is what is drawn together in the bootstrap, -1: the prompt."""

    prompt: Prompt
    unit: int = -1
    stratum: str = ""

    @property
    def questions(self) -> list[Mapping[str, Any]]:
        """What a judge is asked about it."""
        spec = self.prompt.spec or {}
        return spec["questions"] if spec.get("kind") == "questions" else []


@dataclass(frozen=True, slots=True)
class Source:
    """The files of a suite, in the order of its manifest, and how its judge is asked."""

    files: Sequence[Path]
    manifest: Manifest
    say: Say = field(default=print)

    def ask(self, questions: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
        """The metadata of an item with these questions."""
        judge = self.manifest.judge
        table: dict[str, Any] = {"kind": "questions", "questions": list(questions), **more}
        if judge.system:
            table.setdefault("system", judge.system)
        return table | ({"text_first": True} if judge.text_first else {})

    def worded(self, **values: str) -> str:
        """The judge's template with its fields filled in; braces in values stay braces."""
        text = self.manifest.judge.template
        return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), text)


def load(manifest: Manifest, data: Path, say: Say) -> list[Case]:
    """The cases of a suite whose files are in place.

    Raises:
        DataError: a file is missing, is not the one of the manifest, or is malformed; or there are
            more or fewer prompts.
    """
    files = [_checked(file, data) for file in manifest.prompts.files]
    name = manifest.prompts.adapter
    if name not in ADAPTERS:
        known = ", ".join(ADAPTERS)
        raise DataError(f"{manifest.title}: there is no adapter {name!r}; there are {known}")
    try:
        found = list(ADAPTERS[name](Source(files, manifest, say)))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{files[0]}: not as the adapter {name} expects it: {error!r}") from error
    if len(found) != manifest.prompts.rows:
        raise DataError(
            f"{manifest.title}: {len(found)} prompts instead of {manifest.prompts.rows}; the "
            "manifest is of another version of them"
        )
    return [
        case if case.unit >= 0 else Case(case.prompt, number, case.stratum or case.prompt.group)
        for number, case in enumerate(found)
    ]


def _checked(file: File, data: Path) -> Path:
    place = file.place(data)
    try:
        same = file.official.is_at(place)
    except OSError as error:
        raise DataError(f"{place}: {error.strerror}") from error
    if not same:
        raise DataError(
            f"{place} is not the file of the manifest ({file.official.checksum}): another version "
            "gives numbers that do not compare; move it away, and it is fetched again"
            if file.url
            else f"{place} is not the file of the manifest ({file.official.checksum})"
        )
    return place


def _task(name: str) -> Callable[[Source], Iterator[Case]]:
    def read(source: Source) -> Iterator[Case]:
        for prompt in TASKS[name](source.files[0], source.say):
            yield Case(prompt)

    return read


def _paraphrases(source: Source) -> Iterator[Case]:
    """Every scene of a GenEval file in its own and in other words; the groups are the kinds."""
    for scene, prompt in enumerate(TASKS["geneval"](source.files[0], source.say)):
        row = {"prompt": prompt.text, "include": (prompt.spec or {})["include"]}
        for kind, text in wordings(row).items():
            yield Case(Prompt(text, prompt.spec, "geneval", kind), scene, prompt.group)


def _geneval2(source: Source) -> Iterator[Case]:
    """Rows of `geneval2_data.jsonl`; the groups of the prompts are their numbers of atoms."""
    for place, row in rows(source.files[0]):
        questions = []
        for number, ((text, answer), skill) in enumerate(
            zip(row["vqa_list"], row["skills"], strict=True)
        ):
            forms = [answer, answer.capitalize(), NUMBERS[answer]] if answer in NUMBERS else []
            questions.append(
                {
                    "id": str(number),
                    "text": source.worded(question=text),
                    "expect": forms or [answer, answer.lower()],
                    "group": skill,
                }
            )
        yield _case(source, text_field(place, row, "prompt"), questions, str(row["atom_count"]))


def _wise(source: Source) -> Iterator[Case]:
    """WISE_Verified: the judge's words are those of its own script, the second file."""
    system, template = _wise_words(source.files[1])
    kinds = ((400, "culture"), (520, "time"), (640, "space"), (760, "biology"), (880, "physics"))
    for place, row in rows(source.files[0]):
        number = int(row["prompt_id"])
        group = next((name for last, name in kinds if number <= last), "chemistry")
        text = template.replace("{Prompt}", row["Prompt"]).replace(
            "{Explanation}", row["Explanation"]
        )
        one = {"id": "score", "text": text, "read": "score", "max_tokens": 500}
        spec = source.ask([one], system=system)
        yield Case(Prompt(text_field(place, row, "Prompt"), spec, "metadata", group))


def _wise_words(script: Path) -> tuple[str, str]:
    """The system message and the template in `build_evaluation_messages`, which is not run."""
    found: list[str] = []
    for node in ast.walk(ast.parse(script.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == "build_evaluation_messages":
            pairs = [
                (key.value, value)
                for table in ast.walk(node)
                if isinstance(table, ast.Dict)
                for key, value in zip(table.keys, table.values, strict=True)
                if isinstance(key, ast.Constant)
            ]
            found = [_literal(value) for key, value in pairs if key == "text"]
            found = [text for text in found if text and text != "text"]
    if len(found) != 2:
        raise ValueError("no two texts in build_evaluation_messages")
    return found[0], found[1]


def _literal(node: ast.expr) -> str:
    """A text, with fields such as `{prompt_data['Prompt']}` as `{Prompt}`."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if not isinstance(node, ast.JoinedStr):
        return ""
    parts: list[str] = []
    for part in node.values:
        if isinstance(part, ast.FormattedValue):
            assert isinstance(part.value, ast.Subscript)
            parts.append("{" + ast.literal_eval(part.value.slice) + "}")
        elif isinstance(part, ast.Constant):
            parts.append(str(part.value))
    return "".join(parts)


def _dpg(source: Source) -> Iterator[Case]:
    """Rows of `dpg_bench.csv`, a question each; the official code skips the first one."""
    table: dict[str, list[Mapping[str, str]]] = {}
    for row in _csv(source.files[0]):
        table.setdefault(row["item_id"], []).append(row)
    for rows_of in table.values():
        known = {row["proposition_id"] for row in rows_of}
        questions = [
            {
                "id": row["proposition_id"],
                "text": source.worded(question=row["question_natural_language"]),
                "read": "yes_no",
                "parents": [p.strip() for p in row["dependency"].split(",") if p.strip() in known],
                "group": row["category_broad"],
            }
            for row in rows_of
        ]
        yield _case(source, rows_of[0]["text"], questions)


def _longtext(source: Source) -> Iterator[Case]:
    """Texts in quotes to transcribe; an answer weighs as many words as there are to be read."""
    for place, row in rows(source.files[0]):
        target = " ".join(row["text"])
        yield _transcribed(source, text_field(place, row, "prompt"), target, row["category"])


def _oneig_text(source: Source) -> Iterator[Case]:
    for row in _csv(source.files[0]):
        # The list as Python prints it: its brackets and quotes are no letters.
        target = row["text_content"]
        tokens = 256 if len(target.split()) > 60 else 128
        yield _transcribed(source, row["prompt_en"], target, "", tokens)


def _transcribed(source: Source, text: str, target: str, group: str, tokens: int = 1024) -> Case:
    one = {
        "id": "text",
        "text": source.manifest.judge.template,
        "read": "transcript",
        "target": target,
        "max_tokens": tokens,
        "weight": len(normalised(target).split()),
    }
    return _case(source, text, [one], group)


def _oneig_alignment(source: Source) -> Iterator[Case]:
    """Prompts of `OneIG-Bench.csv`, and questions with parents of a file per category."""
    kinds = dict(zip(source.manifest.prompts.options["categories"], source.files[1:], strict=True))
    asked = {name: json.loads(path.read_text("utf-8")) for name, path in kinds.items()}
    for row in _csv(source.files[0]):
        found = asked.get(row["category"], {}).get(row["id"])
        if found is None:
            continue
        texts, parents = (json.loads(found[name]) for name in ("question", "dependency"))
        questions = [
            {
                "id": number,
                "text": source.worded(question=text),
                "read": "yes_no",
                "parents": [str(parent) for parent in parents.get(number, []) if parent],
            }
            for number, text in texts.items()
        ]
        yield _case(source, row["prompt_en"], questions, row["category"])


def _unigen(source: Source) -> Iterator[Case]:
    """Rows of `test_prompts_en.csv`: one question about all points, with a list as answer."""
    meanings = source.manifest.prompts.options["points"]
    for row in _csv(source.files[0]):
        table = json.loads(row["sub_dims_en"])
        points, said = table["Testpoints"], table["Testpoint Description"]
        text = source.worded(
            prompt=row["prompt_en"],
            testpoint=str(points),
            explanation=_listed("Checkpoints Defination", [(p, meanings[p]) for p in points]),
            test_explanation=_listed("Checkpoints Description", zip(points, said, strict=True)),
        )
        one = {"id": "points", "text": text, "read": "verdicts", "parts": points}
        yield _case(source, row["prompt_en"], [one])


def _listed(title: str, pairs: Any) -> str:
    lines = "".join(f"\n{name}: {text}" for name, text in pairs)
    return f"{title}:\u300c{lines}\n\u300d"


def _case(source: Source, text: str, questions: Sequence[Any], group: str = "") -> Case:
    return Case(Prompt(text, source.ask(questions), "metadata", group))


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


ADAPTERS: Mapping[str, Callable[[Source], Iterator[Case]]] = {
    "geneval": _task("geneval"),
    "ocr": _task("ocr"),
    "texts": _task("texts"),
    "jsonl": _task("jsonl"),
    "edit": _task("edit"),
    "paraphrases": _paraphrases,
    "geneval2": _geneval2,
    "wise_verified": _wise,
    "dpg": _dpg,
    "longtext": _longtext,
    "oneig_alignment": _oneig_alignment,
    "oneig_text": _oneig_text,
    "unigenbench": _unigen,
}
