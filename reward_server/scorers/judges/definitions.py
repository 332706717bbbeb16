"""All judges in one table: what is asked, what is sent, how the answer is read, on which scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from reward_server.scorers.base import ItemScore, ScorerSpec, Transform, component, raw
from reward_server.scorers.judges import parsing, prompts
from reward_server.scorers.judges.parsing import Reply, Verdict


@dataclass(frozen=True, slots=True)
class Judge:
    """One judge.

    Attributes:
        version: changes with the definition of the score.
        question: template of the text after the picture; `{prompt}` stands for the caption.
        question_is_option: whether the `question` option may replace it.
        parse: reads an answer; raises `Unreadable`. None where questions and how their answers are
            read come with each item (`questions`).
        resize_px: the picture is stretched to a square of this side; 0 leaves it as it is.
        max_tokens: length of an answer, where the option does not say.
        top_logprobs: candidates to ask for per token; 0 asks for none.
        transforms: besides `raw`.
        default_transform: a key of `transforms`, or "raw".
    """

    version: str
    question: str
    transforms: Mapping[str, Transform]
    default_transform: str
    output_range: tuple[float, float]
    parse: Callable[[Reply], Verdict] | None = None
    question_is_option: bool = False
    resize_px: int = 0
    max_tokens: int = 512
    top_logprobs: int = 0


def fifth(score: ItemScore) -> float:
    """Raw / 5, so that 1 to 5 becomes 0.2 to 1 (flow_grpo)."""
    return score.raw / 5.0


def unit(score: ItemScore) -> float:
    """(raw - 1) / 4, so that 1 to 5 becomes 0 to 1."""
    return (score.raw - 1.0) / 4.0


def unit_component(name: str) -> Transform:
    """(component - 1) / 4 of one axis."""
    return lambda score: (score.components[name] - 1.0) / 4.0


JUDGES: Mapping[str, Judge] = MappingProxyType(
    {
        "unifiedreward": Judge(
            version="1.5",
            question=prompts.UNIFIED,
            parse=parsing.unified,
            resize_px=512,
            transforms={"flowgrpo": fifth, "unit": unit},
            default_transform="flowgrpo",
            output_range=(0.2, 1.0),
        ),
        "unifiedreward2": Judge(
            version="2.0",
            question=prompts.UNIFIED_2,
            parse=parsing.unified_2,
            transforms={
                "unit": unit,
                "alignment": unit_component("alignment"),
                "coherence": unit_component("coherence"),
                "style": unit_component("style"),
            },
            default_transform="unit",
            output_range=(0.0, 1.0),
        ),
        "qwenvl": Judge(
            version="1",
            question=prompts.QWEN_VL,
            parse=parsing.score_tag,
            max_tokens=2048,
            transforms={"flowgrpo": fifth, "unit": unit},
            default_transform="flowgrpo",
            output_range=(0.2, 1.0),
        ),
        "yes_no": Judge(
            version="1",
            question=prompts.YES_NO,
            question_is_option=True,
            parse=parsing.yes_no,
            max_tokens=1,
            top_logprobs=20,
            transforms={},
            default_transform="raw",
            output_range=(0.0, 1.0),
        ),
        "vqa": Judge(
            version="1",
            question="",
            transforms={"gm": component("gm")},
            default_transform="raw",
            output_range=(0.0, 1.0),
        ),
    }
)


def spec_of(name: str, question: str = "", references: int = 0) -> ScorerSpec:
    """The static description of a judge; with `question`, of one that asks something else."""
    judge = JUDGES[name]
    asks_caption = prompts.CAPTION_FIELD in (question or judge.question)
    return ScorerSpec(
        name=name,
        version=judge.version,
        inputs=(
            "image",
            *(("prompt",) if asks_caption else ()),
            *(("spec.metadata",) if judge.parse is None else ()),
            *(("references",) if references else ()),
        ),
        transforms={**judge.transforms, "raw": raw},
        default_transform=judge.default_transform,
        output_range=judge.output_range,
    )
