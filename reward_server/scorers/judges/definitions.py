"""All judges in one table: what is asked, what is sent, how the answer is read, on which scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from reward_server.scorers.base import ItemScore, ScorerSpec, Transform, component, raw
from reward_server.scorers.judges import parsing, prompts
from reward_server.scorers.judges.parsing import Reply, Verdict


@dataclass(frozen=True, slots=True)
class Ask:
    """One question of a judge.

    Attributes:
        text: what follows the pictures; `{prompt}` stands for the caption. Of a judge with
            `templates`: the name of a text there.
        parse: reads an answer; raises `Unreadable`.
        edit_alone: whether it is about the picture alone, without references.
    """

    text: str
    parse: Callable[[Reply], Verdict]
    edit_alone: bool = False


def alone(verdict: Verdict) -> Verdict:
    """The combination of one verdict."""
    return verdict


def vie(scale: float) -> Callable[[Verdict, Verdict], Verdict]:
    """sqrt(SC PQ), each the least of its numbers (VIEScore, arXiv:2312.14867).

    Args:
        scale: the upper end of the numbers asked for; all values here are on 0 to 10.
    """

    def combine(semantics: Verdict, perception: Verdict) -> Verdict:
        sc, pq = (v.raw * 10.0 / scale for v in (semantics, perception))
        numbers = {**semantics.components, **perception.components}
        parts = {name: value * 10.0 / scale for name, value in numbers.items()}
        return Verdict(math.sqrt(sc * pq), {"sc": sc, "pq": pq, **parts})

    return combine


def means(following: Verdict, quality: Verdict) -> Verdict:
    """The mean of two means of two numbers (CodeGoat24/Pref-GRPO's defaults for this judge)."""
    parts = [math.fsum(v.components.values()) / 2.0 for v in (following, quality)]
    named = dict(zip(("following", "quality"), parts, strict=True))
    numbers = {**following.components, **quality.components}
    return Verdict(math.fsum(parts) / 2.0, {**named, **numbers})


@dataclass(frozen=True, slots=True)
class Judge:
    """One judge.

    Attributes:
        version: changes with the definition of the score.
        asks: its questions; none where questions come with each item (`questions`).
        combine: from the verdicts, in the order of `asks`, to that of the item.
        question_is_option: whether the `question` option may replace the text.
        templates: the file in `templates/` that holds the texts, and which the option `template`
            may replace; empty: texts are those of `asks`.
        text_key: field of the item's metadata that names the text in `templates`.
        references: how many an item carries; 0: as the option says.
        label: text before each picture where there are references; {n} is its number from 1.
        text_first: the text stands before the pictures.
        resize_px: the picture is stretched to a square of this side; 0 leaves it as it is.
        resize_to_source: an edit of another size is resized to that of its source.
        max_tokens: length of an answer, where the option does not say.
        top_logprobs: candidates to ask for per token; 0 asks for none.
        transforms: besides `raw`.
        default_transform: a key of `transforms`, or "raw".
    """

    version: str
    asks: tuple[Ask, ...]
    transforms: Mapping[str, Transform]
    default_transform: str
    output_range: tuple[float, float]
    combine: Callable[..., Verdict] = alone
    question_is_option: bool = False
    templates: str = ""
    text_key: str = ""
    references: int = 0
    label: str = ""
    text_first: bool = False
    resize_px: int = 0
    resize_to_source: bool = False
    max_tokens: int = 512
    top_logprobs: int = 0


def fifth(score: ItemScore) -> float:
    """Raw / 5, so that 1 to 5 becomes 0.2 to 1 (flow_grpo)."""
    return score.raw / 5.0


def unit(low: float, high: float) -> Transform:
    """(raw - low) / (high - low), from 0 to 1."""
    return lambda score: (score.raw - low) / (high - low)


def units(low: float, high: float, *names: str) -> dict[str, Transform]:
    """`unit`, and by their names the components in the same way."""

    def of(name: str) -> Transform:
        return lambda score: (score.components[name] - low) / (high - low)

    return {"unit": unit(low, high), **{name: of(name) for name in names}}


PICTURE = "Picture {n}:"
_SEMANTICS = ("success", "consistency")
_PERCEPTION = ("naturalness", "artifact_free")


def _two_pictures(scale: float, first: str, second: str) -> tuple[Ask, Ask]:
    """The questions of VIEScore and of those that followed: about both pictures, and the edit."""
    return (
        Ask(first, parsing.score_list(*_SEMANTICS, high=scale)),
        Ask(second, parsing.score_list(*_PERCEPTION, high=scale), edit_alone=True),
    )


JUDGES: Mapping[str, Judge] = MappingProxyType(
    {
        "unifiedreward": Judge(
            version="1.5",
            asks=(Ask(prompts.UNIFIED, parsing.unified),),
            resize_px=512,
            transforms={"flowgrpo": fifth, "unit": unit(1.0, 5.0)},
            default_transform="flowgrpo",
            output_range=(0.2, 1.0),
        ),
        "unifiedreward2": Judge(
            version="2.0",
            asks=(Ask(prompts.UNIFIED_2, parsing.unified_2),),
            transforms=units(1.0, 5.0, "alignment", "coherence", "style"),
            default_transform="unit",
            output_range=(0.0, 1.0),
        ),
        "qwenvl": Judge(
            version="1",
            asks=(Ask(prompts.QWEN_VL, parsing.score_tag),),
            max_tokens=2048,
            transforms={"flowgrpo": fifth, "unit": unit(1.0, 5.0)},
            default_transform="flowgrpo",
            output_range=(0.2, 1.0),
        ),
        "yes_no": Judge(
            version="1",
            asks=(Ask(prompts.YES_NO, parsing.yes_no),),
            question_is_option=True,
            label=PICTURE,
            max_tokens=1,
            top_logprobs=20,
            transforms={},
            default_transform="raw",
            output_range=(0.0, 1.0),
        ),
        "vqa": Judge(
            version="1",
            asks=(),
            label=PICTURE,
            transforms={"gm": component("gm")},
            default_transform="raw",
            output_range=(0.0, 1.0),
        ),
        "editscore": Judge(
            version="1",
            asks=_two_pictures(25.0, "sc", "pq"),
            combine=vie(25.0),
            templates="editscore",
            references=1,
            transforms=units(0.0, 10.0, "sc", "pq", *_SEMANTICS, *_PERCEPTION),
            default_transform="unit",
            output_range=(0.0, 1.0),
        ),
        "viescore": Judge(
            version="1",
            asks=_two_pictures(10.0, "sc", "pq"),
            combine=vie(10.0),
            templates="viescore",
            references=1,
            resize_to_source=True,
            transforms=units(0.0, 10.0, "sc", "pq", *_SEMANTICS, *_PERCEPTION),
            default_transform="unit",
            output_range=(0.0, 1.0),
        ),
        "unifiedreward_edit": Judge(
            version="1",
            asks=_two_pictures(25.0, "following", "quality"),
            combine=means,
            templates="unifiedreward_edit",
            references=1,
            max_tokens=4096,
            transforms=units(0.0, 25.0, "following", "quality", *_SEMANTICS, *_PERCEPTION),
            default_transform="unit",
            output_range=(0.0, 1.0),
        ),
        "imgedit": Judge(
            version="1",
            asks=(Ask("", parsing.grades("following", "naturalness", "integrity", high=5)),),
            templates="imgedit",
            text_key="edit_type",
            references=1,
            text_first=True,
            transforms=units(1.0, 5.0, "following", "naturalness", "integrity"),
            default_transform="unit",
            output_range=(0.0, 1.0),
        ),
        "edit_r1": Judge(
            version="1",
            asks=(Ask("score", parsing.digits),),
            templates="edit_r1",
            references=1,
            max_tokens=1,
            top_logprobs=20,
            transforms={},
            default_transform="raw",
            output_range=(0.0, 1.0),
        ),
    }
)


def spec_of(name: str, question: str = "", references: int = 0) -> ScorerSpec:
    """The static description of a judge; with `question`, of one that asks something else."""
    judge = JUDGES[name]
    texts = [question] if question else [ask.text for ask in judge.asks]
    # The texts in `templates` ask about the instruction, which `prompts.texts` demands.
    asks_caption = bool(judge.templates) or any(map(prompts.asks_caption, texts))
    per_item = not judge.asks or judge.text_key
    return ScorerSpec(
        name=name,
        version=judge.version,
        inputs=(
            "image",
            *(("prompt",) if asks_caption else ()),
            *(("spec.metadata",) if per_item else ()),
            *(("references",) if references or judge.references else ()),
        ),
        transforms={**judge.transforms, "raw": raw},
        default_transform=judge.default_transform,
        output_range=judge.output_range,
    )
