"""How scorers are found, and the JPEG scorer."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from reward_client.errors import Code
from reward_server.scorers import SCORERS, jpeg, load_scorer_class
from reward_server.scorers.base import ItemFailure, ItemScore, ScoreInput, Scorer, SelfTestError


@pytest.mark.parametrize("name", sorted(SCORERS))
def test_every_announced_scorer_is_a_scorer(name: str) -> None:
    scorer = load_scorer_class(name)()
    assert isinstance(scorer, Scorer)
    assert scorer.spec.name == name
    assert scorer.spec.default_transform in scorer.spec.transforms
    assert "raw" in scorer.spec.transforms
    low, high = scorer.spec.output_range
    assert low < high


def test_third_parties_name_module_and_class() -> None:
    assert load_scorer_class("reward_server.scorers.jpeg:JpegScorer") is jpeg.JpegScorer


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("genevall", "did you mean 'geneval'"),
        ("nothing_alike", "known are aesthetic, "),
        ("no.such.module:Thing", "no module 'no'"),
        ("reward_server.scorers.jpeg:JpegScore", "did you mean 'JpegScorer'"),
        ("reward_server.scorers.jpeg:QUALITY", "not a Scorer"),
        ("reward_server.scorers.jpeg:", "unknown scorer"),
    ],
)
def test_wrong_names_say_what_to_do(name: str, says: str) -> None:
    with pytest.raises(LookupError, match=says) as caught:
        load_scorer_class(name)
    assert "\n" not in str(caught.value)


def _random_image(height: int = 48, width: int = 40) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_jpeg_is_the_size_pillow_writes() -> None:
    image = _random_image()
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
    scorer = jpeg.JpegScorer()
    scorer.load("cpu")
    (outcome,) = scorer.score([ScoreInput("", (image,))], details=True)
    assert isinstance(outcome, ItemScore)
    assert outcome.raw == len(buffer.getvalue()) / 1000
    assert outcome.details == {"bytes": len(buffer.getvalue()), "quality": 95}
    transforms = scorer.spec.transforms
    assert transforms["incompressibility"](outcome) == outcome.raw
    assert transforms["compressibility"](outcome) == -outcome.raw / 500


def test_jpeg_orders_flat_below_noise_and_isolates_failures() -> None:
    scorer = jpeg.JpegScorer()
    flat = np.full((48, 40, 3), 128, dtype=np.uint8)
    huge = np.zeros((1, 65_501, 3), dtype=np.uint8)
    outcomes = scorer.score(
        [
            ScoreInput("", (flat,)),
            ScoreInput("", ()),
            ScoreInput("", (huge,)),
            ScoreInput("", (_random_image(),)),
        ],
        details=False,
    )
    low, none, too_large, high = outcomes
    assert isinstance(low, ItemScore)
    assert isinstance(high, ItemScore)
    assert low.raw < high.raw
    assert low.details is None
    for failure, field in ((none, "images"), (too_large, "images[0]")):
        assert isinstance(failure, ItemFailure)
        assert failure.code is Code.INVALID_ARGUMENT
        assert failure.message.startswith(field)


def test_jpeg_self_test_passes_and_notices_another_quality(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = jpeg.JpegScorer()
    scorer.self_test()
    monkeypatch.setattr(jpeg, "QUALITY", 75)
    with pytest.raises(SelfTestError, match="jpeg/"):
        scorer.self_test()


def test_jpeg_fingerprint_is_stable_hex() -> None:
    first, second = jpeg.JpegScorer().fingerprint(), jpeg.JpegScorer().fingerprint()
    assert first == second
    assert len(first) == 64
    int(first, 16)
