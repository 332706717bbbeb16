"""The watched quality scorer sees what the reward does not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from reward_client.errors import Code
from reward_server.audit import drawings
from reward_server.audit.transforms import TRANSFORMS
from reward_server.scorers.base import ItemFailure, ItemScore, ScoreInput
from reward_server.scorers.geneval import shapes
from reward_server.scorers.shapes_quality import ShapesQualityScorer


@pytest.fixture(scope="module")
def scorer() -> ShapesQualityScorer:
    found = ShapesQualityScorer()
    found.load("cpu")
    return found


CLEAN = shapes.drawing("circle", "green", 30, 34, 11)


def test_self_test_passes(scorer: ShapesQualityScorer) -> None:
    scorer.self_test()


@pytest.mark.parametrize("levels", [2.0, 4.0, 8.0])
def test_background_noise_is_in_grey_levels(scorer: ShapesQualityScorer, levels: float) -> None:
    noise = np.random.default_rng(0).normal(0, levels, CLEAN.shape)
    noisy = np.clip(CLEAN + noise + 0.5, 0, 255).astype(np.uint8)
    clean, found = scorer.measure([CLEAN, noisy])
    assert clean["background_noise"] < 0.3
    assert found["background_noise"] == pytest.approx(levels, rel=0.1)
    assert found["background"] < clean["background"]


def test_a_smooth_gradient_is_clean_and_specks_are_not(scorer: ShapesQualityScorer) -> None:
    ramp = np.linspace(-14, 14, 64)[None, :, None]
    tilted = np.clip(CLEAN + ramp, 0, 255).astype(np.uint8)
    specks = CLEAN.copy()
    specks[4:60:9, 4:12:4] = (40, 95, 225)
    smooth, dirty = scorer.measure([tilted, specks])
    assert smooth["background_noise"] < 0.6
    assert dirty["background_noise"] > 2


def test_blur_lowers_sharpness_and_mixed_colours_lower_purity(scorer: ShapesQualityScorer) -> None:
    blurred = ndimage.gaussian_filter(CLEAN.astype(float), (1.2, 1.2, 0)).astype(np.uint8)
    mixed = CLEAN.copy()
    mixed[:, 30:] = shapes.drawing("circle", "purple", 30, 34, 11)[:, 30:]
    clean, soft, mottled = scorer.measure([CLEAN, blurred, mixed])
    assert soft["sharpness"] < 0.6 * clean["sharpness"]
    assert mottled["purity"] < 0.8 * clean["purity"]


def test_pictures_without_shapes_or_light_are_measured_not_failed(
    scorer: ShapesQualityScorer,
) -> None:
    blank, dark = np.full((64, 64, 3), 230, np.uint8), np.zeros((64, 64, 3), np.uint8)
    empty, black, none = scorer.score(
        [ScoreInput("", (blank,)), ScoreInput("", (dark,)), ScoreInput("", ())], details=True
    )
    assert isinstance(empty, ItemScore)
    assert empty.raw == 0.0
    assert empty.components["background"] > 0.99
    assert empty.components["shapes"] == 0
    assert isinstance(black, ItemScore)
    assert black.components["background"] == 0.0
    assert isinstance(none, ItemFailure)
    assert none.code is Code.INVALID_ARGUMENT
    assert all(t(empty) == t(empty) for t in scorer.spec.transforms.values())


def test_thin_strokes_have_no_core_and_are_measured_all_the_same(
    scorer: ShapesQualityScorer,
) -> None:
    heart = drawings.shapes(3)[-6]
    (wall,) = (one for one in TRANSFORMS if one.name == "text_wall")
    (row,) = scorer.measure([wall.apply(heart.pixels, 1, heart.prompt)])
    assert all(np.isfinite(value) for value in row.values())
