"""GenEval's rules: reference numbers, named cases, properties."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reward_client import GenEvalObject, GenEvalSpec
from reward_client import geneval_spec as spec
from reward_server.scorers.geneval import rules
from reward_server.scorers.geneval.detector import Detection

GOLDEN = Path(os.environ.get("CONFORMANCE_DIR") or Path(__file__).parents[1] / "golden")
# Wall time on a busy machine says nothing about these properties.
UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
CLASSES = ("circle", "square", "star")
COLORS = ("red", "blue", "green")


def _case_objects(case: dict[str, Any]) -> dict[str, list[Detection]]:
    return {
        label: [
            Detection(label, box[4], (box[0], box[1], box[2], box[3]), color)
            for box, color in zip(boxes, case["colors"][label], strict=True)
        ]
        for label, boxes in case["detections"].items()
    }


@pytest.mark.parametrize("case", json.loads((GOLDEN / "geneval_scoring.json").read_text()))
def test_agrees_with_the_reference_implementation(case: dict[str, Any]) -> None:
    objects = _case_objects(case)
    names = {c["class"] for k in ("include", "exclude") for c in case["metadata"].get(k, [])}
    colors = {c["color"] for c in case["metadata"]["include"] if "color" in c}
    task = spec.parse(case["metadata"], sorted(names), sorted(colors))
    verdict = rules.judge(task, objects)
    assert verdict.official is case["correct"]
    assert verdict.strict is case["strict_correct"]
    assert verdict.flowgrpo == case["score"]
    assert verdict.official is (not verdict.reasons)
    assert verdict.strict is (not verdict.strict_reasons)


def _at(label: str, x: float, y: float = 50, color: str = "red", score: float = 0.95) -> Detection:
    return Detection(label, score, (x - 5, y - 5, x + 5, y + 5), color)


def asked(
    tag: str, include: Sequence[GenEvalObject], exclude: Sequence[GenEvalObject] = ()
) -> GenEvalSpec:
    return GenEvalSpec(include, exclude, tag)


def _judge(task: GenEvalSpec, *found: Detection) -> rules.Verdict:
    return rules.judge(task, rules.select(found, task.tag))


LEFT = asked(
    "position", (GenEvalObject("circle", 1), GenEvalObject("star", 1, None, ("left of", 0)))
)


@pytest.mark.parametrize(
    ("task", "found", "official", "strict", "graded"),
    [
        (LEFT, [_at("star", 10), _at("circle", 50)], True, True, (1.0, 1.0)),
        # The published reward forgets to withhold the last term: 0.75 for a wrong position.
        (LEFT, [_at("star", 90), _at("circle", 50)], False, False, (0.75, 2 / 3)),
        (LEFT, [_at("star", 90)], False, False, (1 / 3, 1 / 3)),
        (LEFT, [_at("circle", 90)], False, False, (1 / 3, 1 / 3)),
        (LEFT, [], False, False, (0.0, 0.0)),
        *[
            (asked("single_object", (GenEvalObject("star", 1),)), [_at("star", 20 * k)] * n, *out)
            for k, (n, *out) in enumerate(
                [
                    (0, False, False, (0.0, 0.0)),
                    (1, True, True, (1.0, 1.0)),
                    (2, True, False, (0.0, 0.0)),
                    (3, True, False, (-1.0, 0.0)),
                    (16, True, False, (-14.0, 0.0)),
                    (20, True, False, (-14.0, 0.0)),
                ]
            )
        ],
        *[
            (
                asked("counting", (GenEvalObject("star", 3),), (GenEvalObject("star", 4),)),
                [_at("star", 9)] * n,
                *o,
            )
            for n, *o in [
                (0, False, False, (0.0, 0.0)),
                (2, False, False, (2 / 3, 2 / 3)),
                (3, True, True, (1.0, 1.0)),
                (4, False, False, (2 / 3, 2 / 3)),
                (7, False, False, (-1 / 3, 0.0)),
            ]
        ],
        *[
            (asked("colors", (GenEvalObject("star", 1, "red"),)), found, *out)
            for found, *out in [
                ([_at("star", 9)], True, True, (1.0, 1.0)),
                ([_at("star", 9, color="blue")], False, False, (0.5, 0.5)),
                ([_at("circle", 9)], False, False, (0.0, 0.0)),
                # A second star: official looks at the best one only.
                (
                    [_at("star", 9), _at("star", 40, color="blue", score=0.5)],
                    True,
                    False,
                    (0, 0.25),
                ),
            ]
        ],
    ],
)
def test_named_cases(
    task: GenEvalSpec,
    found: list[Detection],
    official: bool,
    strict: bool,
    graded: tuple[float, float],
) -> None:
    verdict = _judge(task, *found)
    assert (verdict.official, verdict.strict) == (official, strict)
    assert (verdict.flowgrpo, verdict.soft) == pytest.approx(graded)


def test_reasons_name_every_failed_clause() -> None:
    task = asked(
        "color_attr",
        (GenEvalObject("circle", 1, "red"), GenEvalObject("star", 1, "blue")),
        (GenEvalObject("square", 1),),
    )
    verdict = _judge(task, _at("circle", 10, color="green"), _at("square", 50))
    assert verdict.reasons == (
        "expected red circle==1, found 1 green",
        "expected star>=1, found 0",
        "expected square<1, found 1",
    )
    wrong = _judge(LEFT, _at("star", 90), _at("circle", 50))
    assert wrong.reasons == ("expected star left of target, found right of target",)


def test_thresholds_are_the_benchmarks() -> None:
    found = [_at("star", 10 * k, score=s) for k, s in enumerate((0.3, 0.31, 0.9, 0.91))]
    assert len(rules.select(found, "colors")["star"]) == 3
    assert len(rules.select(found, "counting")["star"]) == 1
    many = rules.select([_at("star", k) for k in range(40)], "two_object")
    assert len(many["star"]) == 16


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ((20, 0), {"right of"}),
        ((-20, 3), {"left of"}),
        ((0, -20), {"above"}),
        ((2, 20), {"below"}),
        ((20, 20), {"right of", "below"}),
        ((1.9, 0), set()),  # within a tenth of both extents
        ((0, 0), set()),
    ],
)
def test_relative_position(offset: tuple[float, float], expected: set[str]) -> None:
    b = (40.0, 40.0, 50.0, 50.0)
    a = (40 + offset[0], 40 + offset[1], 50 + offset[0], 50 + offset[1])
    assert rules.relative_position(a, b) == expected


_detections = st.builds(
    lambda label, x, y, size, color, score: Detection(
        label, score, (x - size, y - size, x + size, y + size), color
    ),
    st.sampled_from(CLASSES),
    st.integers(0, 100).map(float),
    st.integers(0, 100).map(float),
    st.integers(1, 20).map(float),
    st.sampled_from(COLORS),
    st.sampled_from((0.2, 0.5, 0.95, 0.99)),
)


def positions(index: int) -> st.SearchStrategy[tuple[str, int]]:
    return st.tuples(st.sampled_from(spec.RELATIONS), st.integers(0, index - 1))


@st.composite
def _tasks(draw: st.DrawFn) -> GenEvalSpec:
    labels = draw(st.lists(st.sampled_from(CLASSES), min_size=1, max_size=3, unique=True))
    include = tuple(
        GenEvalObject(
            label,
            draw(st.integers(1, 3)),
            draw(st.none() | st.sampled_from(COLORS)),
            draw(st.none() | positions(index)) if index else None,
        )
        for index, label in enumerate(labels)
    )
    exclude = draw(
        st.lists(st.builds(GenEvalObject, st.sampled_from(CLASSES), st.integers(1, 4)), max_size=2)
    )
    # A row that demands and excludes the same is refused by `spec.parse`.
    possible = [
        e for e in exclude if not any(c.name == e.name and c.count >= e.count for c in include)
    ]
    return asked(draw(st.sampled_from(spec.TAGS)), include, tuple(possible))


def _excluded(task: GenEvalSpec, objects: rules.Objects) -> bool:
    return any(len(objects.get(c.name, [])) >= c.count for c in task.exclude)


@UNHURRIED
@given(_tasks(), st.lists(_detections, max_size=8), st.randoms())
def test_properties(task: GenEvalSpec, found: list[Detection], random: Any) -> None:
    objects = rules.select(found, task.tag)
    verdict = rules.judge(task, objects)
    assert 0.0 <= verdict.soft <= 1.0
    assert (verdict.soft == 1.0) is (verdict.strict and not _excluded(task, objects))
    assert (verdict.flowgrpo == 1.0) is verdict.strict
    if verdict.strict and not _excluded(task, objects):
        assert verdict.official
    shuffled = list(found)
    random.shuffle(shuffled)
    assert rules.judge(task, rules.select(shuffled, task.tag)) == verdict


@UNHURRIED
@given(_tasks(), st.lists(_detections, max_size=6))
def test_mending_a_count_or_colour_never_lowers_soft(
    task: GenEvalSpec, found: list[Detection]
) -> None:
    objects = rules.select(found, task.tag)
    before = rules.judge_soft(task, objects)
    for clause in task.include:
        present = list(objects.get(clause.name, []))
        if clause.color is not None and present:
            recolored = [Detection(d.label, d.score, d.box, clause.color) for d in present]
            assert rules.judge_soft(task, {**objects, clause.name: recolored}) >= before - 1e-12
        if len(present) > clause.count:
            kept = sorted(present, key=lambda d: d.color != clause.color)[:-1]
            assert rules.judge_soft(task, {**objects, clause.name: kept}) >= before - 1e-12
        if len(present) < clause.count:
            added = [*present, _at(clause.name, 3, 3, clause.color or "red")]
            assert rules.judge_soft(task, {**objects, clause.name: added}) >= before - 1e-12


def test_a_leaning_earns_soft_credit_and_nothing_else() -> None:
    task = asked("colors", (GenEvalObject("star", 1, "red"),))
    box = (10.0, 10.0, 20.0, 20.0)
    scores = {}
    for name, color, leaning in (
        ("clear", "red", None),
        ("nearly", None, ("red", 0.8)),
        ("hardly", None, ("red", 0.1)),
        ("other", None, ("blue", 0.8)),
    ):
        found = [Detection("star", 1.0, box, color, leaning)]
        verdict = rules.judge(task, rules.select(found, "colors"))
        assert (verdict.official, verdict.strict) == ((name == "clear"),) * 2
        assert verdict.flowgrpo == (1.0 if name == "clear" else 0.5)
        scores[name] = verdict.soft
    assert scores == {"clear": 1.0, "nearly": 0.9, "hardly": 0.55, "other": 0.5}


ROW: dict[str, Any] = {
    "tag": "position",
    "prompt": "a photo of a star left of a circle",
    "include": [
        {"class": "circle", "count": 1},
        {"class": "star", "count": 1.0, "color": "red", "position": ["left of", 0.0]},
    ],
}


def test_a_good_row_is_typed() -> None:
    task = spec.parse(ROW, CLASSES, COLORS)
    assert task == asked(
        "position",
        (GenEvalObject("circle", 1), GenEvalObject("star", 1, "red", ("left of", 0))),
        (),
    )


def _with(index: int = 1, named: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    clauses = [dict(c) for c in ROW["include"]]
    clauses[index] = {
        k: v for k, v in (clauses[index] | (named or {}) | changes).items() if v != "DROP"
    }
    return {**ROW, "include": clauses}


@pytest.mark.parametrize(
    ("row", "field", "says"),
    [
        (None, "spec: missing", "spec_kind"),
        ([1], "spec:", "expected an object"),
        ({"include": []}, "spec.tag: missing", "include"),
        ({"tag": "colors"}, "spec.include: missing", "include"),
        ({"tag": "color", "include": []}, "spec.tag", "did you mean 'colors'"),
        ({"tag": "colors", "include": []}, "spec.include: empty", "send"),
        ({"tag": "colors", "include": "star"}, "spec.include", "a list"),
        ({"tag": "colors", "include": ["star"]}, "spec.include[0]", "class and count"),
        ({"tag": "colors", "include": [{"class": "star", "count": 1}] * 33}, "spec.include", "32"),
        (_with(1, {"class": "starr"}), "spec.include[1].class", "did you mean 'star'"),
        (_with(1, {"class": "giraffe"}), "spec.include[1].class", "allowed: circle, square, star"),
        (_with(1, {"class": "DROP"}), "spec.include[1].class: missing", ""),
        (_with(color="rde"), "spec.include[1].color", "did you mean 'red'"),
        (_with(color=3), "spec.include[1].color", "allowed"),
        (_with(count="DROP"), "spec.include[1].count: missing", ""),
        (_with(count=0), "spec.include[1].count", "1 to 64"),
        (_with(count=True), "spec.include[1].count", "1 to 64"),
        (_with(count=1.5), "spec.include[1].count", "1 to 64"),
        (_with(colour="red"), "spec.include[1]: key", "did you mean 'color'"),
        (_with(position=["left", 0]), "spec.include[1].position[0]", "did you mean 'left of'"),
        (_with(position=["left of", 1]), "spec.include[1].position[1]", "possible: 0 to 0"),
        (_with(position=["left of", -1]), "spec.include[1].position[1]", "not an earlier clause"),
        (_with(0, position=["left of", 0]), "spec.include[0].position[1]", "first clause"),
        (_with(position="left of"), "spec.include[1].position", "expected [relation, target]"),
        ({**ROW, "exclude": [{"class": "star", "count": 1}]}, "spec.exclude[0].count", "excluded"),
        (
            {**ROW, "exclude": [{"class": "square", "count": 1, "color": "red"}]},
            "spec.exclude[0]",
            "only class and count",
        ),
    ],
)
def test_bad_rows_name_the_field(row: Any, field: str, says: str) -> None:
    with pytest.raises(spec.SpecError) as caught:
        spec.parse(row, CLASSES, COLORS)
    message = str(caught.value)
    assert message.startswith(field)
    assert says in message
    assert "\n" not in message
