"""The shapes detector: exact on the miniature's own renders, hard to please otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from miniature import prompts, render, scenes
from reward_client.errors import Code
from reward_server.scorers.base import ItemFailure, ItemScore, ScoreInput
from reward_server.scorers.geneval import palette, shapes, shapes_scene, silhouettes
from reward_server.scorers.geneval.scorer import GenEvalScorer

U8 = NDArray[np.uint8]
# Extents of the silhouettes in circumradii: x0, y0, x1, y1 in the order of `scenes.CLASSES`.
BOXES = np.array(
    [[*np.min(c, axis=0), *np.max(c, axis=0)] for c in silhouettes.outlines().values()]
)


@pytest.fixture(scope="module")
def detector() -> shapes.ShapesDetector:
    found = shapes.ShapesDetector()
    found.load("cpu")
    return found


def _rows(per_tag: int, rng: np.random.Generator) -> list[prompts.Row]:
    chosen = []
    for tag in prompts.TAGS:
        rows = list(prompts.all_rows(tag))
        chosen += [rows[i] for i in rng.integers(0, len(rows), per_tag)]
    return chosen


def _decoded_like(image: U8, rng: np.random.Generator) -> U8:
    """What a decoder adds: a blur of 0.5 px and +-6 grey levels."""
    soft = ndimage.gaussian_filter(image.astype(np.float64), (0.5, 0.5, 0))
    return np.clip(soft + rng.uniform(-6, 6, image.shape) + 0.5, 0, 255).astype(np.uint8)


def test_agrees_with_the_renderer_about_shapes_and_colours() -> None:
    assert palette.COLORS == scenes.COLORS
    assert tuple(silhouettes.outlines()) == scenes.CLASSES
    axis = np.linspace(-1.3, 1.3, 200, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    for name, corners in silhouettes.outlines().items():
        ours = silhouettes.polygon_distance(corners, x, y)
        np.testing.assert_allclose(ours, render.SHAPES[name](x, y), atol=5e-4)


@pytest.mark.parametrize("degrade", [False, True], ids=["clean", "blur 0.5 px, noise 6"])
def test_judges_renders_right(degrade: bool) -> None:
    rng = np.random.default_rng(11)
    rows = _rows(100 if degrade else 334, rng)
    images = [render.render(scenes.scene_for(row, rng)) for row in rows]
    if degrade:
        images = [_decoded_like(image, rng) for image in images]
    scorer = GenEvalScorer()
    scorer.load("cpu")
    # Some pictures are asked for something else, so "yes to all" does not pass.
    asked = [rows[(i * 7 + 13) % len(rows)] for i in range(300)]
    outcomes = scorer.score(
        [ScoreInput("", (im,), spec=row) for im, row in zip(images, asked, strict=False)],
        details=False,
    )
    drawn = [ScoreInput("", (im,), spec=row) for im, row in zip(images, rows, strict=True)]
    true_rows = scorer.score(drawn, details=False)
    for name in ("official", "strict"):
        right = [isinstance(o, ItemScore) and o.components[name] == 1 for o in true_rows]
        for tag in prompts.TAGS:
            of_tag = [ok for ok, row in zip(right, rows, strict=True) if row["tag"] == tag]
            assert np.mean(of_tag) >= 0.995, (name, tag)
    wrong = [
        isinstance(o, ItemScore) and o.components["strict"] == 1
        for o, a, b in zip(outcomes, asked, rows, strict=False)
        if not {c["class"] for c in a["include"]} & {c["class"] for c in b["include"]}
    ]
    assert len(wrong) > 50
    assert not any(wrong)


def test_boxes_are_those_of_the_drawn_shapes(detector: shapes.ShapesDetector) -> None:
    rng = np.random.default_rng(5)
    for row in _rows(10, rng):
        scene = scenes.scene_for(row, rng)
        (found,) = detector.detect([render.render(scene)])
        for shape in scene.shapes:
            x0, y0, x1, y1 = BOXES[scenes.CLASSES.index(shape.cls)]
            expected = np.array([x0, y0, x1, y1]) * shape.radius_px
            expected += [shape.x_px, shape.y_px, shape.x_px, shape.y_px]
            assert min(np.abs(np.array(d.box) - expected).max() for d in found) < 0.6


@pytest.mark.parametrize("margin_px", [0.0, 0.05, 0.2, 0.6, 2.0])
@pytest.mark.parametrize("name", scenes.CLASSES)
def test_sees_whole_shapes_beside_the_edge(
    detector: shapes.ShapesDetector, name: str, margin_px: float
) -> None:
    x0, y0, x1, y1 = BOXES[scenes.CLASSES.index(name)]
    near, far = margin_px, 64 - margin_px
    for x, y in ((near - 8 * x0, 32), (far - 8 * x1, 32), (32, near - 8 * y0), (32, far - 8 * y1)):
        found = detector.detect([shapes.drawing(name, "green", float(x), float(y), 8.0)])[0]
        assert (found[0].label, found[0].score > 0.9) == (name, True), (x, y, found)


Messy = Callable[[str, np.random.Generator], U8]


def _place(rng: np.random.Generator) -> tuple[float, float, float]:
    return float(rng.uniform(20, 44)), float(rng.uniform(20, 44)), float(rng.uniform(7.5, 12))


def _paint(alpha: NDArray[np.floating], color: str) -> U8:
    canvas = np.full((64, 64, 3), 228.0)
    canvas += alpha[..., None] * (np.array(palette.COLORS[color]) - canvas)
    return np.clip(canvas + 0.5, 0, 255).astype(np.uint8)


def _cut(share: float) -> Messy:
    def draw(name: str, rng: np.random.Generator) -> U8:
        x, y, r = _place(rng)
        alpha = silhouettes.coverage(name, (64, 64), x, y, r)
        rows, columns = np.indices(alpha.shape)
        angle = rng.uniform(0, 2 * np.pi)
        along = columns * np.cos(angle) + rows * np.sin(angle)
        limit = np.quantile(along[alpha > 0.5], share)
        return _paint(alpha * (along <= limit), "blue")

    return draw


def _ghost(opacity: float) -> Messy:
    def draw(name: str, rng: np.random.Generator) -> U8:
        alpha = silhouettes.coverage(name, (64, 64), *_place(rng))
        return _paint(opacity * alpha, str(rng.choice(list(palette.COLORS))))

    return draw


def _blurred(sigma_px: float) -> Messy:
    def draw(name: str, rng: np.random.Generator) -> U8:
        alpha = silhouettes.coverage(name, (64, 64), *_place(rng))
        return _paint(ndimage.gaussian_filter(alpha, sigma_px), "purple")

    return draw


def _merged(name: str, rng: np.random.Generator) -> U8:
    x, y, r = _place(rng)
    angle = rng.uniform(0, 2 * np.pi)
    other = str(rng.choice(scenes.CLASSES))
    first = silhouettes.coverage(name, (64, 64), x, y, r)
    beside = (x + 1.1 * r * np.cos(angle), y + 1.1 * r * np.sin(angle), r)
    return _paint(np.maximum(first, silhouettes.coverage(other, (64, 64), *beside)), "red")


def _two_coloured(name: str, rng: np.random.Generator) -> U8:
    x, y, r = _place(rng)
    alpha = silhouettes.coverage(name, (64, 64), x, y, r)
    first, second = _paint(alpha, "red"), _paint(alpha, "green")
    return np.where((np.arange(64) > x)[None, :, None], first, second)


def _between_colours(name: str, rng: np.random.Generator) -> U8:
    alpha = silhouettes.coverage(name, (64, 64), *_place(rng))
    mean = _paint(alpha, "blue").astype(np.uint16) + _paint(alpha, "purple")
    return (mean // 2).astype(np.uint8)


def _hollow(name: str, rng: np.random.Generator) -> U8:
    x, y, r = _place(rng)
    inner = silhouettes.coverage("circle", (64, 64), x, y, r * 0.4)
    return _paint(silhouettes.coverage(name, (64, 64), x, y, r) * (1 - inner), "black")


@pytest.mark.parametrize(
    ("draw", "at_most"),
    [
        # A triangle cut parallel to a side is a smaller triangle: a few percent are honest.
        pytest.param(_cut(0.80), 0.06, id="80 % of it"),
        pytest.param(_cut(0.65), 0.06, id="65 % of it"),
        pytest.param(_cut(0.50), 0.06, id="half of it"),
        pytest.param(_ghost(0.65), 0.0, id="ghost"),
        pytest.param(_blurred(2.0), 0.0, id="smeared"),
        pytest.param(_merged, 0.02, id="merged"),
        pytest.param(_two_coloured, 0.02, id="two colours"),
        pytest.param(_hollow, 0.0, id="hollow"),
    ],
)
def test_refuses_messy_objects(
    detector: shapes.ShapesDetector, draw: Messy, at_most: float
) -> None:
    rng = np.random.default_rng(3)
    images = [draw(scenes.CLASSES[k % 6], rng) for k in range(180)]
    accepted = [max((d.score for d in f), default=0.0) > 0.3 for f in detector.detect(images)]
    assert np.mean(accepted) <= at_most


def test_a_colour_between_two_is_no_colour_and_no_reason_to_refuse(
    detector: shapes.ShapesDetector,
) -> None:
    rng = np.random.default_rng(3)
    images = [_between_colours(scenes.CLASSES[k % 6], rng) for k in range(60)]
    for k, found in enumerate(detector.detect(images)):
        assert [(d.label, d.color) for d in found] == [(scenes.CLASSES[k % 6], None)]
        assert found[0].score > 0.9


@pytest.mark.parametrize("degrees", [20, 30, 45])
def test_refuses_tilted_shapes(detector: shapes.ShapesDetector, degrees: float) -> None:
    for name in ("triangle", "star", "cross", "heart"):
        upright = silhouettes.coverage(name, (64, 64), 32, 32, 11)
        tilted = ndimage.rotate(upright, degrees, reshape=False, order=1)
        (found,) = detector.detect([_paint(tilted, "red")])
        assert all(d.score < 0.3 or d.label != name for d in found), (name, degrees)


@pytest.mark.parametrize("size_px", [32, 64, 96, 128, 256])
def test_is_about_scale_free(detector: shapes.ShapesDetector, size_px: int) -> None:
    for name in scenes.CLASSES:
        factor = size_px / 64
        alpha = silhouettes.coverage(
            name, (size_px, size_px), 30 * factor, 34 * factor, 11 * factor
        )
        canvas = np.full((size_px, size_px, 3), 228.0)
        canvas += alpha[..., None] * (np.array(palette.COLORS["red"]) - canvas)
        (found,) = detector.detect([canvas.astype(np.uint8)])
        assert [(d.label, d.color) for d in found if d.score > 0.3] == [(name, "red")]
        middle = (np.array(found[0].box[:2]) + found[0].box[2:]) / 2
        box = BOXES[scenes.CLASSES.index(name)]
        expected = np.array([30, 34]) * factor + 11 * factor * (box[:2] + box[2:]) / 2
        assert np.abs(middle - expected).max() < factor


@pytest.mark.parametrize("value", [0, 90, 255])
def test_empty_pictures_have_no_objects(detector: shapes.ShapesDetector, value: int) -> None:
    assert detector.detect([np.full((64, 64, 3), value, dtype=np.uint8)]) == [[]]
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert all(d.score < 0.3 for d in detector.detect([noise])[0])


def test_batches_change_nothing(detector: shapes.ShapesDetector) -> None:
    rng = np.random.default_rng(8)
    images = [render.render(scenes.scene_for(row, rng)) for row in _rows(8, rng)]
    images.insert(3, np.full((100, 50, 3), 230, dtype=np.uint8))
    together = detector.detect(images)
    for image, found in zip(images, together, strict=True):
        (alone,) = detector.detect([image])
        assert Counter((d.label, d.color) for d in alone) == Counter(
            (d.label, d.color) for d in found
        )
        for a, b in zip(
            sorted(alone, key=lambda d: d.box), sorted(found, key=lambda d: d.box), strict=True
        ):
            assert a.score == pytest.approx(b.score, abs=1e-3)
            assert a.box == pytest.approx(b.box, abs=1e-2)


def test_detect_before_load_says_so() -> None:
    with pytest.raises(RuntimeError, match="before load"):
        shapes.ShapesDetector().detect([np.zeros((64, 64, 3), dtype=np.uint8)])


def test_background_fit_ignores_objects_and_texture() -> None:
    canvas = shapes.drawing("square", "black", 32, 32, 20).astype(np.float32)[None]
    rows, columns = np.indices((64, 64))
    canvas += np.where((rows + columns) % 2, 4, -4)[None, ..., None]
    background, lit = shapes_scene.fit_background(canvas)
    assert lit.all()
    np.testing.assert_allclose(background[0], np.broadcast_to((228, 232, 224), (64, 64, 3)), atol=2)


ROW = {"tag": "colors", "include": [{"class": "heart", "count": 1, "color": "blue"}]}


def test_scorer_isolates_bad_items_and_explains() -> None:
    scorer = GenEvalScorer()
    scorer.load("cpu")
    scorer.self_test()
    image = shapes.drawing("heart", "blue", 32, 32, 10)
    tiny = np.zeros((8, 8, 3), dtype=np.uint8)
    outcomes = scorer.score(
        [
            ScoreInput("a blue heart", (image,)),
            ScoreInput("", (image,), spec=ROW),
            ScoreInput("", (tiny,), spec=ROW),
            ScoreInput("", (image, image), spec=ROW),
            ScoreInput("", (image,), spec={**ROW, "tag": "colour"}),
        ],
        details=True,
    )
    no_spec, good, too_small, two, bad_tag = outcomes
    assert isinstance(good, ItemScore)
    assert good.components == {"official": 1.0, "strict": 1.0, "flowgrpo": 1.0, "soft": 1.0}
    assert all(t(good) == 1.0 for t in scorer.spec.transforms.values())
    assert good.details is not None
    assert good.details["objects"][0]["class"] == "heart"
    assert good.details["reasons"] == []
    for failure, begins in (
        (no_spec, "spec: missing"),
        (too_small, "images[0]"),
        (two, "images"),
        (bad_tag, "spec.tag"),
    ):
        assert isinstance(failure, ItemFailure)
        assert failure.code is Code.INVALID_ARGUMENT
        assert not failure.retryable
        assert failure.message.startswith(begins)
    assert scorer.score([], details=False) == []


def test_unknown_detector_is_refused() -> None:
    with pytest.raises(ValueError, match="known: shapes"):
        GenEvalScorer(detector="yolo")
