"""What is drawn is what the row says; what is held out is never drawn."""

import numpy as np
import pytest

from miniature.caption_noise import near_misses
from miniature.data import MIXTURE, SceneStream
from miniature.prompts import (
    RL_WORDS,
    TAGS,
    TEST_COUNTS,
    Row,
    all_rows,
    split,
    split_words,
    word_rows,
)
from miniature.render import SHAPES, coverage, render
from miniature.scenes import CLASSES, COLORS, SIZE_PX, Shape, scene_for

TRAIN, TEST = split()


@pytest.mark.parametrize("tag", TAGS)
def test_scene_shows_its_row(tag: str) -> None:
    rng = np.random.default_rng(0)
    rows = list(all_rows(tag))
    for row in [rows[i] for i in rng.integers(len(rows), size=40)]:
        scene = scene_for(row, rng)
        for clause in row["include"]:
            shapes = [s for s in scene.shapes if s.cls == clause["class"]]
            assert len(shapes) == clause["count"]
            assert not clause.get("color") or {s.color for s in shapes} == {clause["color"]}
        for a in scene.shapes:
            assert a.radius_px + 1 < a.x_px < SIZE_PX - a.radius_px - 1
            assert a.radius_px + 1 < a.y_px < SIZE_PX - a.radius_px - 1
        for i, a in enumerate(scene.shapes):
            for b in scene.shapes[:i]:
                gap = np.hypot(a.x_px - b.x_px, a.y_px - b.y_px) - a.radius_px - b.radius_px
                assert gap > 2


@pytest.mark.parametrize(
    ("relation", "axis", "sign"),
    [("left of", "x_px", -1), ("right of", "x_px", 1), ("above", "y_px", -1), ("below", "y_px", 1)],
)
def test_relations_point_where_they_say(relation: str, axis: str, sign: int) -> None:
    rng = np.random.default_rng(1)
    rows = [r for r in all_rows("position") if r["include"][1]["position"][0] == relation]
    for row in rows[:20]:
        target, mover = scene_for(row, rng).shapes
        assert mover.cls == row["include"][1]["class"]
        assert row["prompt"].startswith(f"a photo of a {mover.cls} {relation} a {target.cls}")
        assert sign * (getattr(mover, axis) - getattr(target, axis)) > 0


def test_train_and_test_are_disjoint_and_cover_all_categories() -> None:
    train, test = {r["prompt"] for r in TRAIN}, {r["prompt"] for r in TEST}
    assert not train & test
    assert len(test) == len(TEST) >= 200
    assert {t: sum(r["tag"] == t for r in TEST) for t in TAGS} == TEST_COUNTS
    pretrained, words_test = ({r["target"] for r in rows} for rows in split_words())
    learnt = {r["target"] for r in word_rows(RL_WORDS)}
    assert min(map(len, (pretrained, words_test, learnt))) >= 16
    assert not pretrained & words_test
    assert not learnt & (pretrained | words_test)


def test_split_does_not_depend_on_the_run() -> None:
    assert split() == (TRAIN, TEST)
    assert TEST[0]["prompt"].startswith("a photo of a ")


def test_pretraining_never_draws_a_held_out_prompt() -> None:
    held_out = {r["prompt"] for r in TEST} | {r["prompt"] for r in split_words()[1]}
    held_out |= {r["prompt"] for r in word_rows(RL_WORDS)}
    stream = SceneStream(seed=3)
    captions = {stream.draw()[1] for _ in range(3000)}
    assert len(captions) > 500
    assert not captions & held_out
    assert sum(MIXTURE.values()) == pytest.approx(1.0)


def test_a_wrong_caption_is_wrong_in_one_attribute_and_shows_a_train_scene() -> None:
    held_out = {r["prompt"] for r in TEST}
    stream = SceneStream(seed=3, mixture={"color_attr": 1.0}, caption_noise=0.3)
    wrong = 0
    for _ in range(2000):
        scene, caption = stream.draw()
        first, second = scene.shapes
        shown = f"a photo of a {first.color} {first.cls} and a {second.color} {second.cls}"
        assert not {shown, caption} & held_out
        differ = sum(a != b for a, b in zip(shown.split(), caption.split(), strict=True))
        assert differ <= 1
        wrong += differ
    assert wrong / 2000 == pytest.approx(0.3, abs=0.04)


def test_numbers_alone_never_show_one_class() -> None:
    words = {2: "two", 3: "three", 4: "four"}
    stream = SceneStream(seed=3, mixture={"number": 1.0}, caption_noise=0.3)
    seen = set()
    for _ in range(300):
        scene, caption = stream.draw()
        assert caption == f"a photo of {words[len(scene.shapes)]}"
        assert len({shape.cls for shape in scene.shapes}) > 1
        seen.add(len(scene.shapes))
    assert seen == set(words)


def test_near_misses_of_every_kind() -> None:
    def of(rows: list[Row], prompt: str) -> set[str]:
        at = [row["prompt"] for row in rows].index(prompt)
        return {row["prompt"] for row in near_misses(rows)[at]}

    counts = of(list(all_rows("counting")), "a photo of three stars")
    assert "a photo of three hearts" in counts
    assert len(counts) == 5  # the classes: numbers are never wrong
    places = of(list(all_rows("position")), "a photo of a star above a heart")
    assert "a photo of a star left of a heart" in places
    assert "a photo of a heart above a star" not in places
    assert len(places) == 3 + 4 + 4
    words = [{"prompt": w, "target": w} for w in ("CAT", "CAN", "CUT", "DOG", "ACT")]
    assert of(words, "CAT") == {"CAN", "CUT"}
    assert of(words, "DOG") == set()


@pytest.mark.parametrize("cls", CLASSES)
def test_shapes_are_anti_aliased_and_centred(cls: str) -> None:
    alpha, _ = coverage(Shape(cls, "red", 32, 32, 14))
    assert alpha.min() == 0
    assert alpha.max() == 1
    assert ((alpha > 0.05) & (alpha < 0.95)).sum() > 8  # soft edges
    # Doubling the radius quadruples the area.
    large, _ = coverage(Shape(cls, "red", 32, 32, 28))
    assert large.sum() / alpha.sum() == pytest.approx(4.0, rel=0.03)


def test_every_pair_of_shapes_is_told_apart() -> None:
    ys, xs = np.mgrid[-1:1:101j, -1:1:101j]
    masks = {name: SHAPES[name](xs, ys) < 0 for name in CLASSES}
    for a in CLASSES:
        for b in CLASSES:
            union = (masks[a] | masks[b]).sum()
            iou = (masks[a] & masks[b]).sum() / union
            assert (iou == 1) == (a == b)
            assert a == b or iou < 0.85


def test_render_paints_the_palette_colour() -> None:
    rng = np.random.default_rng(2)
    for row in [r for r in all_rows("colors") if r["include"][0]["class"] == "square"]:
        scene = scene_for(row, rng)
        shape = scene.shapes[0]
        image = render(scene)
        assert image.shape == (SIZE_PX, SIZE_PX, 3)
        assert image.dtype == np.uint8
        pixel = image[int(shape.y_px), int(shape.x_px)].astype(int)
        assert np.abs(pixel - COLORS[shape.color]).max() <= 1
