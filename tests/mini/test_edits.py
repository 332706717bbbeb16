"""An edit changes what its instruction says and nothing else; what is held out is never drawn."""

import json
from pathlib import Path

import numpy as np
import pytest

from miniature.data import DATA_DIR
from miniature.edits import KINDS, Edit, draw_edit, near_miss
from miniature.render import render
from miniature.scenes import CELL_PX, Shape
from reward_server.scorers.base import ItemScore, ScoreInput
from reward_server.scorers.shapes_edit import ShapesEditScorer


def edits(kind: str, count: int, *, held_out: bool = False) -> list[Edit]:
    rng = np.random.default_rng(len(kind))
    return [draw_edit(rng, kind, held_out=held_out) for _ in range(count)]


def _column_row(shape: Shape) -> tuple[int, int]:
    return int(shape.x_px // CELL_PX), int(shape.y_px // CELL_PX)


@pytest.mark.parametrize("kind", KINDS)
def test_the_target_is_the_source_but_for_what_the_instruction_says(kind: str) -> None:
    for edit in edits(kind, 40):
        source, target = edit.source, edit.target
        assert target.background == source.background
        assert set(edit.kept) <= set(source.shapes)
        words = edit.instruction.split()
        changed = [shape for shape in source.shapes if shape not in edit.kept]
        if kind == "add":
            assert not changed
            assert edit.wanted
            assert words == ["add", "a", edit.wanted.color, edit.wanted.cls]
            continue
        (old,) = changed
        assert old.cls in words
        if kind == "remove":
            assert edit.wanted is None
            assert edit.gone == old
            continue
        assert edit.wanted
        if kind == "color":
            assert (edit.wanted.cls, edit.wanted.color) == (old.cls, words[-1]) != old.color
        elif kind == "turn":
            assert (edit.wanted.cls, edit.wanted.color) == (words[-1], old.color)
        else:
            edge = {"left": (0, 0), "right": (0, 3), "top": (1, 0), "bottom": (1, 3)}[words[-1]]
            axis, cell = edge
            before, after = _column_row(old), _column_row(edit.wanted)
            assert after[axis] == cell != before[axis]
            assert after[1 - axis] == before[1 - axis]


def test_drawn_targets_are_exact_and_sources_and_near_misses_are_not() -> None:
    rng = np.random.default_rng(1)
    tasks = [edit for kind in KINDS for edit in edits(kind, 10)]
    scorer = ShapesEditScorer()
    scorer.load("cpu")

    def exact(pictures: list[np.ndarray]) -> list[float]:
        items = [
            ScoreInput(e.instruction, (image,), (render(e.source),), e.spec)
            for e, image in zip(tasks, pictures, strict=True)
        ]
        scores = scorer.score(items, details=False)
        assert all(isinstance(score, ItemScore) for score in scores)
        return [s.components["exact"] for s in scores if isinstance(s, ItemScore)]

    assert exact([render(edit.target) for edit in tasks]) == [1.0] * len(tasks)
    assert exact([render(edit.source) for edit in tasks]) == [0.0] * len(tasks)
    # A miss may hit by chance where it changes the very shape; never most of them.
    assert np.mean(exact([render(near_miss(edit, rng)) for edit in tasks])) < 0.5


def _rows(name: str) -> list[dict[str, object]]:
    path: Path = DATA_DIR / f"edit_{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_test_tasks_are_new_in_instruction_and_in_picture() -> None:
    train, test = _rows("train"), _rows("test")
    seen = {row["prompt"] for row in train}
    for kind in KINDS:
        seen |= {edit.instruction for edit in edits(kind, 60)}
        assert sum(row["group"] == kind for row in test) == 40
        assert sum(row["group"] == kind for row in train) >= 60
    assert not seen & {row["prompt"] for row in test}
    objects = [
        {
            tuple(sorted((shape.cls, shape.color) for shape in edit.source.shapes))
            for edit in edits("remove", 200, held_out=held_out)
        }
        for held_out in (False, True)
    ]
    assert not objects[0] & objects[1]
