"""Questions that travel with an item, and how their answers become numbers, for the judge `vqa`.

An item's metadata is `{"kind": "questions", "questions": [{"id", "text", ...}, ...]}`. How an
answer is read (`read`) decides what else a question states:

    probability  the probability of the first token being one of `expect`, each form with and
                 without a space before it (the default). Beyond the candidates that the endpoint
                 shows nothing is known, so there is a lower and an upper bound (Soft-TIFA,
                 arXiv:2512.16853, sums over the whole vocabulary)
    yes_no       1 for an answer that is Yes, 0 for No
    score        the number after "Score:", 0 or 1 (WISE_Verified)
    verdicts     a list of 0 and 1 in a <score> tag, one per entry of `parts` (UniGenBench)
    transcript   the share of the words of `target` that the answer has (LongText-Bench: a bag of
                 words, so that further text costs nothing)

`parents` (ids without which a question counts as answered No), `group` and `weight` are for who
reduces the answers; they are checked and change nothing here.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from reward_server.scorers.judges import parsing
from reward_server.scorers.judges.parsing import Reply, Unreadable

MAX_QUESTIONS = 256
MAX_TOKENS = 8192
_KNOWN = frozenset({"id", "text", "read", "expect", "parts", "target", "max_tokens", "parents"})
_KNOWN_ITEM = frozenset({"kind", "questions", "system", "text_first"})
_SCORE = re.compile(r"\*{0,2}Score\*{0,2}\s*:\s*([01])\b", re.IGNORECASE)
_VERDICTS = re.compile(r"<score>(.*?)</score>", re.DOTALL)
# X-Omni-Team/X-Omni, textbench/summary_scores.py (Apache-2.0): what else is in a text is no word.
_NO_WORD = re.compile(r"[^\u4e00-\u9fa5a-zA-Z0-9\sàâäéèêëîïôöùûüçÀÂÄÉÈÊËÎÏÔÖÙÛÜÇ]")
_CHINESE = re.compile(r"[\u4e00-\u9fa5]")


@dataclass(frozen=True, slots=True)
class Question:
    """One question about a picture; see the top of the file."""

    id: str
    text: str
    read: str = "probability"
    expect: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    target: str = ""
    max_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """All that is asked about one item; `text_first` puts the text before the picture."""

    questions: tuple[Question, ...]
    system: str = ""
    text_first: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What a question, or one of its parts, was found to be worth: bounds in [0, 1]."""

    id: str
    low: float
    high: float
    said: str
    candidates: Sequence[tuple[str, float]] = field(default=())  # with log-probabilities


def asked_of(spec: Mapping[str, Any] | None) -> Asked:
    """The questions in an item's metadata; raises ValueError, whose message names the place."""
    if spec is None or spec.get("kind") != "questions":
        raise ValueError('expected metadata {"kind": "questions", "questions": [...]}')
    _check_keys(spec, _KNOWN_ITEM, "")
    rows = spec.get("questions")
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_QUESTIONS:
        raise ValueError(f"questions: expected a list of 1 to {MAX_QUESTIONS}")
    found = tuple(_question(row, f"questions[{place}]") for place, row in enumerate(rows))
    ids = [name for one in found for name in (one.parts and _part_ids(one)) or (one.id,)]
    if repeated := [name for name, count in Counter(ids).items() if count > 1]:
        raise ValueError(f"questions: two have the id {repeated[0]!r}")
    for place, row in enumerate(rows):
        unknown = [name for name in row.get("parents", ()) if name not in ids]
        if unknown:
            raise ValueError(f"questions[{place}].parents: no question has the id {unknown[0]!r}")
    system = spec.get("system", "")
    if not isinstance(system, str):
        raise ValueError("system: expected text")
    return Asked(found, system, bool(spec.get("text_first", False)))


def _question(row: Any, where: str) -> Question:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: expected an object")
    _check_keys(row, _KNOWN | {"group", "weight"}, f"{where}.")
    for name in ("id", "text"):
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise ValueError(f"{where}.{name}: expected text")
    read = row.get("read", "probability")
    if read not in READERS:
        raise ValueError(f"{where}.read: unknown {read!r}; one of {', '.join(READERS)}")
    tokens = row.get("max_tokens", 0)
    if not isinstance(tokens, int) or not 0 <= tokens <= MAX_TOKENS:
        raise ValueError(f"{where}.max_tokens: expected 0 to {MAX_TOKENS}")
    one = Question(
        row["id"],
        row["text"],
        read,
        _texts(row, "expect", where),
        _texts(row, "parts", where),
        str(row.get("target", "")),
        tokens or READERS[read].max_tokens,
    )
    needed = READERS[read].needs
    if needed and not getattr(one, needed):
        raise ValueError(f"{where}.{needed}: {read} needs it")
    if read == "transcript" and not _words(one.target, bool(_CHINESE.search(one.target))):
        raise ValueError(f"{where}.target: there is no word in it")
    return one


def _texts(row: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    values = row.get(name, ())
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) and v for v in values):
        raise ValueError(f"{where}.{name}: expected a list of texts")
    return tuple(values)


def _check_keys(row: Mapping[str, Any], known: frozenset[str], where: str) -> None:
    if unknown := [key for key in row if key not in known]:
        raise ValueError(f"{where}{unknown[0]}: unknown; known are {', '.join(sorted(known))}")


def _part_ids(question: Question) -> tuple[str, ...]:
    return tuple(f"{question.id}.{place}" for place in range(len(question.parts)))


def read(question: Question, reply: Reply) -> list[Answer]:
    """The answer to a question, or one per part; raises Unreadable."""
    pairs = READERS[question.read].values(question, reply)
    ids = _part_ids(question) or (question.id,)
    candidates = reply.first_token
    return [
        Answer(name, low, high, reply.text, candidates)
        for name, (low, high) in zip(ids, pairs, strict=True)
    ]


Bounds = tuple[float, float]


def _known(value: float) -> Bounds:
    """The bounds of what is known exactly."""
    return value, value


def _probability(question: Question, reply: Reply) -> list[Bounds]:
    found = [(_spaced(token), p) for token, p in parsing.probabilities(reply)]
    forms = {form for text in question.expect for form in (text, f" {text}")}
    low = sum(p for token, p in found if token in forms)
    unseen = len(forms - {token for token, _ in found})
    # What is not shown is at most as likely as the last that is, and all of it what is left.
    rest = max(0.0, 1.0 - sum(p for _, p in found))
    high = low + min(rest, unseen * min(p for _, p in found))
    return [(min(low, 1.0), min(high, 1.0))]


def _yes_no(question: Question, reply: Reply) -> list[Bounds]:
    said = reply.text.strip().strip(".!'\"").lower()
    if said not in ("yes", "no"):
        raise Unreadable("neither Yes nor No")
    return [_known(float(said == "yes"))]


def _score(question: Question, reply: Reply) -> list[Bounds]:
    found = set(_SCORE.findall(parsing.whole(reply)))
    if len(found) != 1:
        raise Unreadable(f"{len(found)} different values of 'Score:' instead of one, 0 or 1")
    return [_known(float(found.pop()))]


def _verdicts(question: Question, reply: Reply) -> list[Bounds]:
    lists = _VERDICTS.findall(parsing.whole(reply))
    try:
        values = json.loads(lists[-1]) if lists else None
    except ValueError:
        values = None
    if not isinstance(values, list) or any(value not in (0, 1) for value in values):
        raise Unreadable("no list of 0 and 1 in <score>")
    if len(values) != len(question.parts):
        raise Unreadable(f"{len(values)} verdicts about {len(question.parts)} points")
    return [_known(float(value)) for value in values]


def _transcript(question: Question, reply: Reply) -> list[Bounds]:
    chinese = bool(_CHINESE.search(question.target))
    target, found = (_words(text, chinese) for text in (question.target, reply.text))
    matched = (Counter(target) & Counter(found)).total()
    return [_known(matched / len(target))]


def _words(text: str, chinese: bool) -> list[str]:
    """Words in lower case; of Chinese text, characters."""
    kept = _NO_WORD.sub("", text)
    return list("".join(kept.split())) if chinese else kept.lower().split()


def _spaced(token: str) -> str:
    """A token as text: some endpoints give the tokenizer's mark instead of a space."""
    return f" {token[1:]}" if token[:1] in ("\u2581", "\u0120") else token


@dataclass(frozen=True, slots=True)
class _Reader:
    values: Callable[[Question, Reply], list[Bounds]]
    max_tokens: int
    needs: str = ""
    top_logprobs: int = 0


READERS: Mapping[str, _Reader] = {
    "probability": _Reader(_probability, 1, "expect", top_logprobs=20),
    "yes_no": _Reader(_yes_no, 8),
    "score": _Reader(_score, 512),
    "verdicts": _Reader(_verdicts, 4096, "parts"),
    "transcript": _Reader(_transcript, 1024, "target"),
}
