"""From a judge's answer to numbers, strictly: what is not exactly the agreed form is no score.

Elsewhere a missing label is 0.0, "Final Score: 10" is read as 1, and any first three numbers of the
text are taken for the three axes. Here each of these is an `Unreadable` answer. Whatever these
parsers accept, the published ones read as the same number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LOW, HIGH = 1.0, 5.0
# With less probability than this on all answers together, the model did not answer the question.
MIN_MASS = 0.05
# What digits beyond the candidates may change in a score from 0 to 1.
MAX_UNSEEN = 0.01

_UNIFIED = re.compile(r"Final Score:\s*(\S*)")
_AXIS = re.compile(r"(Alignment|Coherence|Style)\s+Score\s*(?:\(1-5\))?\s*:\s*(\S*)", re.IGNORECASE)
_TAG = re.compile(r"<Score>(.*?)</Score>", re.DOTALL)
_NUMBER = re.compile(r"((?:0|[1-9]\d*)(?:\.\d+)?)(?:/5)?[.,;]?", re.ASCII)
_DIGITS = re.compile(r"\d{1,9}", re.ASCII)
_PLAIN = re.compile(r"(?:0|[1-9]\d*)(?:\.\d+)?", re.ASCII)
# The key of a JSON object, or a line of its own; "score" inside a sentence is no answer.
_SCORES = re.compile(
    r"""(?:["']score["']\s*:|^[ \t]*(?:output )?score\s*[:=])\s*(\[[^\[\]]*\]|[^\s,}]+)""",
    re.IGNORECASE | re.MULTILINE,
)
_SPACES = " \t\n\u2581\u0120"


class Unreadable(ValueError):
    """The answer is not of the agreed form; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of an endpoint.

    Attributes:
        text: the message's text; empty where there is none.
        cut: the answer ended at the limit of tokens, not by itself.
        first_token: candidates for the first token with their log-probabilities (natural), as far
            as they were asked for and sent.
    """

    text: str
    cut: bool = False
    first_token: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was read: the primary value, and named further ones."""

    raw: float
    components: Mapping[str, float] = field(default_factory=dict)


def unified(reply: Reply) -> Verdict:
    """UnifiedReward v1.5: the number from 1 to 5 after "Final Score:"; raises Unreadable."""
    found = [_number(token, "Final Score") for token in _UNIFIED.findall(whole(reply))]
    return Verdict(_agreed(found, "Final Score"))


def unified_2(reply: Reply) -> Verdict:
    """UnifiedReward 2.0: the mean of three axes from 1 to 5, and these; raises Unreadable."""
    found: dict[str, list[float]] = {"Alignment": [], "Coherence": [], "Style": []}
    for axis, token in _AXIS.findall(whole(reply)):
        found[axis.capitalize()].append(_number(token, f"{axis} Score"))
    axes = {axis.lower(): _agreed(values, f"{axis} Score") for axis, values in found.items()}
    return Verdict(math.fsum(axes.values()) / len(axes), axes)


def score_tag(reply: Reply) -> Verdict:
    """Qwen-VL scoring: a whole number from 1 to 5 in a Score tag; raises Unreadable."""
    tokens = _TAG.findall(whole(reply))
    for token in tokens:
        if not _DIGITS.fullmatch(token):
            raise Unreadable(f"<Score> holds {token[:40]!r}, not a whole number")
    return Verdict(_agreed([_in_range(float(token), "<Score>") for token in tokens], "<Score>"))


def yes_no(reply: Reply) -> Verdict:
    """P(Yes) / (P(Yes) + P(No)) from the candidates for the first token.

    All spellings count ("Yes", " yes", "YES"): they are one answer, and which of them leads depends
    on the tokenizer. A spelling beyond the candidates counts as 0.

    Raises:
        Unreadable: no log-probabilities, some that are none, or hardly any on Yes and No.
    """
    mass = {"yes": 0.0, "no": 0.0}
    for token, probability in probabilities(reply):
        spelled = token.strip(_SPACES).lower()
        if spelled in mass:
            mass[spelled] += probability
    answered = mass["yes"] + mass["no"]
    if answered < MIN_MASS:
        raise Unreadable(f"Yes and No together have probability {answered:.3g}")
    components = {"p_yes": mass["yes"], "p_no": mass["no"]}
    return Verdict(mass["yes"] / answered, components)


def score_list(*names: str, high: float) -> Callable[[Reply], Verdict]:
    """VIEScore's form: `{"reasoning": ..., "score": [...]}`, a number from 0 to `high` per name.

    The verdict's raw is the least of them. Its parser raises Unreadable.
    """

    def parse(reply: Reply) -> Verdict:
        text = whole(reply).strip()
        found = {"".join(value.split()) for value in _SCORES.findall(text)}
        if not found and text.startswith("[") and text.endswith("]"):
            found = {"".join(text.split())}
        if len(found) != 1:
            what = f"{len(found)} different values of" if found else "no"
            raise Unreadable(f'{what} "score" in the answer')
        said = found.pop()
        tokens = said.removeprefix("[").removesuffix("]").split(",")
        if len(tokens) != len(names):
            raise Unreadable(f'"score" is {said[:60]}: {len(names)} numbers are asked')
        values = [_plain(token, name, high) for token, name in zip(tokens, names, strict=True)]
        return Verdict(min(values), dict(zip(names, values, strict=True)))

    return parse


def grades(*names: str, high: int) -> Callable[[Reply], Verdict]:
    """ImgEdit's form: a line `Label: n` per name, in their order, whole numbers from 1 to `high`.

    The verdict's raw is their mean. Its parser raises Unreadable.
    """

    def parse(reply: Reply) -> Verdict:
        parts = [line.strip().split(": ") for line in whole(reply).splitlines()]
        found = [one[1] for one in parts if len(one) == 2 and _DIGITS.fullmatch(one[1])]
        if len(found) != len(names):
            raise Unreadable(f"{len(found)} lines 'Label: number' where {len(names)} are asked")
        pairs = zip(found, names, strict=True)
        values = [_in_range(float(token), name, 1.0, high) for token, name in pairs]
        return Verdict(math.fsum(values) / len(values), dict(zip(names, values, strict=True)))

    return parse


def digits(reply: Reply) -> Verdict:
    """Edit-R1: sum of p(s) s / 5, where p is the first token's share of the digits s = 0 to 5.

    Digits that are not among the candidates are at most as likely as the last of these. If they
    could move the score by more than `MAX_UNSEEN`, there is none.

    Raises:
        Unreadable: that; no log-probabilities, some that are none, or hardly any on the digits.
    """
    found = probabilities(reply)
    mass = dict.fromkeys("012345", 0.0)
    for token, probability in found:
        if (spelled := token.strip(_SPACES)) in mass:
            mass[spelled] += probability
    total = math.fsum(mass.values())
    first = ", ".join(f"{token[:20]!r} {p:.3g}" for token, p in found[:3])
    if total < MIN_MASS:
        raise Unreadable(f"the digits 0 to 5 together have probability {total:.3g}; first: {first}")
    sum_ = math.fsum(p * int(digit) for digit, p in mass.items())
    value = sum_ / total / 5.0
    seen = {token.strip(_SPACES) for token, _ in found}
    unseen = [int(digit) for digit in mass if digit not in seen]
    rest = max(0.0, 1.0 - math.fsum(p for _, p in found))
    more = min(rest, len(unseen) * min(p for _, p in found))
    off = max((abs((sum_ + more * s) / (total + more) / 5.0 - value) for s in unseen), default=0.0)
    if off > MAX_UNSEEN:
        raise Unreadable(
            f"not among the {len(found)} candidates: {', '.join(map(str, unseen))}, which could"
            f" move the score by {off:.2g}; first: {first}"
        )
    return Verdict(value, {"p_digits": total})


def probabilities(reply: Reply) -> list[tuple[str, float]]:
    """The candidates for the first token with their probabilities.

    Raises:
        Unreadable: there are none, or some that are none.
    """
    if not reply.first_token:
        raise Unreadable("no log-probabilities in the answer; does the endpoint support them?")
    found: list[tuple[str, float]] = []
    for token, logprob in reply.first_token:
        if math.isnan(logprob) or logprob > 1e-3:
            raise Unreadable(f"log-probability {logprob} of {token[:20]!r} is above 0 or no number")
        found.append((token, math.exp(logprob)))
    if (total := sum(p for _, p in found)) > 1.01:
        raise Unreadable(f"the candidates' probabilities add up to {total:.3g}")
    return found


def whole(reply: Reply) -> str:
    """The text of an answer that ended by itself; raises Unreadable."""
    if reply.cut:
        raise Unreadable("the answer was cut at the limit of tokens; raise max_tokens")
    return reply.text


def _number(token: str, label: str) -> float:
    match = _NUMBER.fullmatch(token)
    if match is None:
        raise Unreadable(f"after {label!r} stands {token[:40]!r}, not a number from 1 to 5")
    return _in_range(float(match[1]), label)


def _plain(token: str, label: str, high: float) -> float:
    if not _PLAIN.fullmatch(token):
        raise Unreadable(f"{label!r} is {token[:40]!r}, not a number from 0 to {high:g}")
    return _in_range(float(token), label, 0.0, high)


def _in_range(value: float, label: str, low: float = LOW, high: float = HIGH) -> float:
    if not low <= value <= high:
        raise Unreadable(f"{label!r} is {value:g}, not from {low:g} to {high:g}")
    return value


def _agreed(values: Sequence[float], label: str) -> float:
    if not values:
        raise Unreadable(f"no {label!r} in the answer")
    if len(set(values)) > 1:
        raise Unreadable(f"{len(values)} different values of {label!r}: {values[0]:g}, ...")
    return values[0]


def reply_of(answer: Any) -> Reply:
    """The first choice of an answer; raises Unreadable."""
    try:
        choice = answer["choices"][0]
        text = choice["message"].get("content") or ""
        cut = choice.get("finish_reason") == "length"
        logprobs = choice.get("logprobs")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Unreadable("the answer has no choices[0].message") from error
    if not isinstance(text, str):
        raise Unreadable(f"the answer's content is {type(text).__name__}, not text")
    return Reply(text, cut, _first_token(logprobs))


def _first_token(logprobs: Any) -> tuple[tuple[str, float], ...]:
    if not logprobs:
        return ()
    try:
        content = logprobs["content"]
        candidates = content[0]["top_logprobs"] if content else []
        return tuple((str(c["token"]), float(c["logprob"])) for c in candidates)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise Unreadable("the answer's log-probabilities are malformed") from error
