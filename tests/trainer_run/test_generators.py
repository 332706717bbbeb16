"""The prompt generators: grammar, mixture, disjointness, determinism."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from prompt_sets import geneval as geneval_prompts
from prompt_sets import ocr as ocr_prompts
from prompt_sets.geneval import COLORS, OBJECTS, RATIO, SIZES, row_of, scene
from reward_server.scorers.geneval import coco
from tests.trainer_run.test_cli import call
from trainer.data import TASKS, check_overlap
from trainer.data.files import folded
from trainer.errors import DataError

# Rows as the benchmark itself words them.
WORDED = [
    ("single_object", "a photo of an elephant"),
    ("two_object", "a photo of an umbrella and a bench"),
    ("counting", "a photo of four benchs"),
    ("counting", "a photo of two wine glasses"),
    ("counting", "a photo of three skises"),
    ("colors", "a photo of an orange handbag"),
    ("position", "a photo of a cow right of a laptop"),
    ("color_attr", "a photo of a pink handbag and a black scissors"),
]


def test_the_objects_are_the_ones_that_the_scorer_knows() -> None:
    names = Path(coco.__file__).parent / "object_names.txt"
    assert list(OBJECTS) == names.read_text(encoding="utf-8").splitlines()
    assert (len(OBJECTS), len(COLORS)) == (80, 10)


@pytest.mark.parametrize(("tag", "prompt"), WORDED)
def test_the_wording_is_the_benchmarks(tag: str, prompt: str) -> None:
    if tag == "color_attr":
        painted = [name for name in OBJECTS if name != "person"]
        first, second = painted.index("handbag"), painted.index("scissors")
        a, b = COLORS.index("pink"), COLORS.index("black")
        index = (first * 78 + second - (second > first)) * 90 + a * 9 + b - (b > a)
        assert row_of(tag, index)["prompt"] == prompt
        return
    assert prompt in {row_of(tag, index)["prompt"] for index in range(SIZES[tag])}


@pytest.mark.parametrize("tag", [tag for tag in SIZES if tag != "color_attr"])
def test_every_prompt_of_a_category_is_another(tag: str) -> None:
    rows = [row_of(tag, index) for index in range(SIZES[tag])]
    assert len({row["prompt"] for row in rows}) == len(rows)


def test_positions_name_the_moved_object_second() -> None:
    row = row_of("position", 4 * (79 * OBJECTS.index("cow") + OBJECTS.index("laptop") - 1) + 1)
    assert row == {
        "tag": "position",
        "include": [
            {"class": "laptop", "count": 1},
            {"class": "cow", "count": 1, "position": ["right of", 0]},
        ],
        "prompt": "a photo of a cow right of a laptop",
    }


def test_counting_excludes_one_more() -> None:
    row = row_of("counting", 3 * OBJECTS.index("wine glass"))
    assert row["include"] == [{"class": "wine glass", "count": 2}]
    assert row["exclude"] == [{"class": "wine glass", "count": 3}]


@hypothesis_settings(deadline=None, max_examples=20)
@given(count=st.integers(1, 200), seed=st.integers(0, 9))
def test_the_mixture_is_exact_and_people_have_no_colour(count: int, seed: int) -> None:
    rows = geneval_prompts.generate(count, seed=seed)
    assert len(rows) == count
    seen = Counter(row["tag"] for row in rows)
    for tag, share in RATIO.items():
        assert abs(seen[tag] - count * share / sum(RATIO.values())) < 1
    for row in rows:
        classes = [clause["class"] for clause in row["include"]]
        assert len(set(classes)) == len(classes)
        assert not any(c["class"] == "person" and "color" in c for c in row["include"])


def test_seeds_decide_and_nothing_else_does() -> None:
    once, again = geneval_prompts.generate(300, seed=3), geneval_prompts.generate(300, seed=3)
    assert once == again
    assert once != geneval_prompts.generate(300, seed=4)
    # Pinned: the same prompts on every machine and version.
    assert [row["prompt"] for row in geneval_prompts.generate(3)] == [
        "a photo of three bottles",
        "a photo of a boat left of a skateboard",
        "a photo of a brown pizza and a red skis",
    ]


def test_nothing_of_the_test_prompts_comes_again_in_any_words(tmp_path: Path) -> None:
    test = [row_of(tag, index) for tag in SIZES for index in range(0, SIZES[tag], SIZES[tag] // 40)]
    rows = geneval_prompts.generate(17 * 300, seed=1, exclude=test)
    barred = {scene(row) for row in test}
    assert not [row for row in rows if scene(row) in barred]
    assert not {folded(row["prompt"]) for row in rows} & {folded(row["prompt"]) for row in test}
    counting = Counter(row["prompt"] for row in rows if row["tag"] == "counting")
    assert max(counting.values()) - min(counting.values()) <= 1  # repeated equally often


def test_a_scene_is_the_same_in_other_words() -> None:
    def position(moved: str, relation: str, fixed: str) -> dict[str, Any]:
        rows = (row_of("position", index) for index in range(SIZES["position"]))
        return next(row for row in rows if row["prompt"].endswith(f"{moved} {relation} {fixed}"))

    left, right = position("a dog", "left of", "a cat"), position("a cat", "right of", "a dog")
    assert scene(left) == scene(right)
    assert scene(left) != scene(position("a cat", "left of", "a dog"))
    above, below = position("a dog", "above", "a cat"), position("a cat", "below", "a dog")
    assert scene(above) == scene(below) != scene(left)


@pytest.mark.parametrize(
    ("ratio", "message"),
    [({"countin": 1}, "no category 'countin'"), ({"counting": 0}, "positive share")],
)
def test_a_ratio_that_means_nothing_is_refused(ratio: dict[str, float], message: str) -> None:
    with pytest.raises(DataError, match=message):
        geneval_prompts.generate(10, ratio=ratio)


def test_a_category_that_is_excluded_altogether_is_refused() -> None:
    every = [row_of("single_object", index) for index in range(80)]
    with pytest.raises(DataError, match="no prompt of category single_object is left"):
        geneval_prompts.generate(10, ratio={"single_object": 1}, exclude=every)


def test_ocr_prompts_quote_their_target_once_and_differ() -> None:
    rows = ocr_prompts.generate(600)
    assert len({folded(row["prompt"]) for row in rows}) == 600
    for row in rows:
        assert row["prompt"].count(f'"{row["target"]}"') == 1
        assert row["prompt"].count('"') == 2
    scenes = Counter(row["group"] for row in rows)
    assert set(scenes.values()) == {50}


def test_no_text_of_an_ocr_test_prompt_is_trained_on() -> None:
    train, test = ocr_prompts.generate(1500, seed=5), ocr_prompts.generate(150, split="test")
    trained = {folded(row["target"]) for row in train}
    assert not [row for row in test if folded(row["target"]) in trained]
    assert ocr_prompts.generate(20, seed=1) != ocr_prompts.generate(20, seed=2)


def test_more_ocr_prompts_than_there_are_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    few = ocr_prompts.Words({"details": ("",), "words": ("apple", "pear", "fig")}, SCENES)
    monkeypatch.setattr(ocr_prompts, "words", lambda: few)
    with pytest.raises(DataError, match="hardly more than"):
        ocr_prompts.generate(100)


SCENES = (("shop", ("word",), ('A sign "{text}"',)),)


def test_the_commands_write_files_that_the_tasks_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    test = tmp_path / "test.jsonl"
    shown = ["data", "geneval", "--count", "60", "--seed", "7", "--out", str(test)]
    assert call(monkeypatch, *shown) == 0
    assert "60 prompts" in capsys.readouterr().out
    train = tmp_path / "new" / "train.jsonl"
    more = ["--count", "400", "--out", str(train), "--exclude", str(test)]
    assert call(monkeypatch, "data", "geneval", *more, "--ratio", "counting=1,colors=3") == 0
    rows = [json.loads(line) for line in train.read_text(encoding="utf-8").splitlines()]
    assert Counter(row["tag"] for row in rows) == {"counting": 100, "colors": 300}
    assert not check_overlap(TASKS["geneval"](train, print), TASKS["geneval"](test, print))
    words = tmp_path / "ocr.jsonl"
    assert call(monkeypatch, "data", "ocr", "--count", "24", "--test", "--out", str(words)) == 0
    assert len(TASKS["ocr"](words, print)) == 24
    assert call(monkeypatch, "data", "geneval", "--out", str(train), "--ratio", "counting") == 2
    assert "write name=share" in capsys.readouterr().err
    assert call(monkeypatch, "data", "pull", "genevla") == 2
    assert "did you mean 'geneval'" in capsys.readouterr().err
