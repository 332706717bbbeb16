"""Reducers by hand and as bounds; the tree against `summarise`; intervals of whole statistics."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.evaluation.statistics import summarise
from trainer.suites import reduce, tree
from trainer.suites.reduce import Answer, Cell
from trainer.suites.tree import Rule, plant

HALVES = st.sampled_from([0.0, 0.25, 0.5, 1.0])


def answers(*values: float, parents: dict[int, list[int]] | None = None) -> list[Answer]:
    under = parents or {}
    return [
        Answer(str(n), v, v, tuple(map(str, under.get(n, []))), said="")
        for n, v in enumerate(values)
    ]


def low(cell: Cell) -> float:
    return cell.low / cell.count


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (reduce.mean(answers(1, 0, 0.5)), 0.5),
        (reduce.gmean(answers(0.25, 1)), 0.5),
        (reduce.gmean(answers(0, 1)), 0.0),
        (reduce.gmean(answers(0, 1), floor=0.01), 0.1),
        (reduce.product(answers(0.5, 0.5)), 0.25),
        # Question 2 hangs on 1, which hangs on 0, which is No: once looks at what was answered.
        (reduce.deps_once(answers(0, 1, 1, parents={1: [0], 2: [1]})), 1 / 3),
        (reduce.deps_ordered(answers(0, 1, 1, parents={1: [0], 2: [1]})), 0.0),
        # In another order, DPG's rule sees the parent as it was answered.
        (reduce.deps_ordered(answers(1, 1, 0, parents={0: [1], 1: [2]})), 1 / 3),
        (reduce.deps_once(answers(1, 1, parents={1: [0]})), 1.0),
        (reduce.ratio([Answer("a", 1, 1, weight=3), Answer("b", 0, 0)]), 0.75),
        (reduce.weights([Answer("a", 1, 1, weight=3), Answer("b", 0, 0)]), 0.75),
        (
            reduce.min_sqrt(
                [
                    Answer("a", 0.9, 0.9, group="SC"),
                    Answer("b", 0.25, 0.25, group="SC"),
                    Answer("c", 1, 1, group="PQ"),
                ]
            ),
            0.5,
        ),
    ],
)
def test_reducers_by_hand(found: Cell, expected: float) -> None:
    assert low(found) == pytest.approx(expected)
    assert found.low == found.high


@settings(max_examples=40)
@given(st.lists(st.tuples(HALVES, HALVES, HALVES), min_size=1, max_size=6), st.data())
def test_bounds_of_a_value_hold_it_whatever_is_not_known(
    triples: list[tuple[float, float, float]], data: st.DataObject
) -> None:
    triples = [tuple(sorted(one)) for one in triples]  # pyright: ignore[reportAssignmentType]
    parents = {n: [data.draw(st.integers(0, n - 1))] for n in range(1, len(triples))}
    exact = answers(*(one[1] for one in triples), parents=parents)
    bounded = [replace(one, low=t[0], high=t[2]) for one, t in zip(exact, triples, strict=True)]
    for function in (*reduce.REDUCERS.values(), reduce.gmean):
        true, found = function(exact), function(bounded)
        assert found.low - 1e-12 <= true.low <= found.high + 1e-12
        assert found.count == true.count


def test_oneig_text_is_its_formula() -> None:
    found = reduce.edits([Answer("t", target="['STOP here']", said="STOP her")])
    assert found["edits"] == Cell(1, 1)
    assert (found["exact"].low, found["words"].low, found["words"].count) == (0, 1, 2)
    none = reduce.edits([Answer("t", target="a b")])  # nobody answered: anything may be
    one = plant([[none]], [0], {0: ""}, pooled=True)
    ends = tree.totals(one, Rule("oneig_text", pooled=True), np.ones((1, 1)))
    assert [float(end[0]) for end in ends] == [0.0, 1.0]
    half = plant([[found], [found]], [0, 1], {0: "", 1: ""}, pooled=True)
    row = tree.summary(half, Rule("oneig_text", pooled=True))
    assert row["mean"] == pytest.approx(1 - 1 * (1 - 0) * (1 - 0.5) / 100)


def planted(scores: Sequence[float], groups: Sequence[str]) -> tree.Tree:
    images = [[{group: Cell(s, s)}] for s, group in zip(scores, groups, strict=True)]
    return plant(images, range(len(scores)), dict(enumerate(groups)), pooled=False)


def test_the_mean_of_groups_and_its_interval_are_those_of_evaluations() -> None:
    rng = np.random.default_rng(0)
    scores, groups = rng.random(60).tolist(), ["a"] * 45 + ["b"] * 15
    row = tree.summary(planted(scores, groups), Rule("groups"))
    other = summarise(scores, range(60), groups)
    assert row["mean"] == pytest.approx(other["mean"])
    assert (row["low"], row["high"]) == pytest.approx((other["low"], other["high"]), abs=0.01)
    assert row["groups"]["b"]["mean"] == pytest.approx(other["categories"]["b"]["mean"])
    assert "upper" not in row


def test_weights_that_miss_a_group_give_no_number() -> None:
    one = planted([1.0, 0.0], ["a", "b"])
    assert tree.summary(one, Rule("weights", {"a": 0.75, "b": 0.25}))["mean"] == 0.75
    assert tree.summary(one, Rule("weights", {"a": 0.5, "c": 0.5}))["mean"] is None


def test_images_of_a_prompt_are_averaged_and_of_a_ratio_pooled() -> None:
    cells = [{"g": Cell(1, 1, 2)}, {"g": Cell(9, 9, 10)}]
    for pooled, count, expected in ((False, 6.0, 5.0 / 6.0), (True, 12.0, 10.0 / 12.0)):
        found = plant([cells], [0], {0: ""}, pooled=pooled)
        assert found.count[0, 0] == count
        assert tree.summary(found, Rule(pooled=pooled))["mean"] == pytest.approx(expected)
    # Images that differ in length: the mean of the ratios is another number.
    two = plant(
        [[{"g": Cell(1, 1, 1)}], [{"g": Cell(0, 0, 9)}]], [0, 1], {0: "", 1: ""}, pooled=True
    )
    assert tree.summary(two, Rule(pooled=True))["mean"] == pytest.approx(0.1)


def test_the_gap_is_drawn_by_scene() -> None:
    """What a scene loses is the same in all wordings here, so that nothing is left to chance."""
    rng = np.random.default_rng(1)
    images, units = [], []
    for scene in range(30):
        own = float(rng.random())
        for kind in ("original", "bare", "turned"):
            images.append([{kind: Cell(*[own - 0.25 * (kind != "original")] * 2)}])
            units.append(scene)
    found = plant(images, units, dict.fromkeys(range(30), ""), pooled=False)
    row = tree.summary(found, Rule("gap"))
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((0.25,) * 3)
    assert row["groups"]["original"]["high"] > row["groups"]["original"]["low"] + 0.05


def test_differences_are_paired() -> None:
    rng = np.random.default_rng(2)
    scores = rng.random(40)
    one, other = (planted((scores + shift).tolist(), ["a"] * 40) for shift in (0.0, 0.125))
    row = tree.difference(one, other, Rule())
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((0.125,) * 3)
    with pytest.raises(ValueError, match="not the same prompts"):
        tree.difference(one, planted([1.0], ["a"]), Rule())


def test_a_difference_is_of_prompts_that_both_have_scores_for() -> None:
    def of(*scores: float | None) -> tree.Tree:
        cells = [[{} if score is None else {"a": Cell(score, score)}] for score in scores]
        return plant(cells, range(len(scores)), dict.fromkeys(range(len(scores)), ""), pooled=False)

    row = tree.difference(of(0.0, 0.5, 0.5), of(None, 0.75, 0.75), Rule())
    assert (row["mean"], row["n"]) == (0.25, 2)


def test_a_draw_without_a_score_is_no_number() -> None:
    """Of two prompts one has no score: a draw of that one alone has no difference."""
    one, other = (
        plant([[{"a": Cell(score, score)}], [{}]], [0, 1], {0: "", 1: ""}, pooled=False)
        for score in (0.25, 0.75)
    )
    row = tree.difference(one, other, Rule())
    assert (row["mean"], row["low"], row["high"]) == (0.5, 0.5, 0.5)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Geometric means of two answers: the statistic of GenEval 2, 95 % of 80 intervals."""
    rng = np.random.default_rng(3)
    held = 0

    truth = (2 / 3) ** 2  # the mean of sqrt(u v)
    for _ in range(80):
        cells = [[{"all": reduce.gmean(answers(*rng.random(2)))}] for _ in range(40)]
        found = plant(cells, range(40), dict.fromkeys(range(40), ""), pooled=False)
        row = tree.summary(found, Rule(), resamples=150)
        held += row["low"] <= truth <= row["high"]
    assert 69 <= held <= 80
