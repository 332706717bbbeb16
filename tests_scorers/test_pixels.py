"""Preparation of pictures against the libraries whose numbers it promises."""

from __future__ import annotations

import numpy as np
import preference_cases as cases
import pytest
import torch

from reward_server.scorers import pixels
from reward_server.scorers.pixels import Preparation

SHAPES = [(64, 64), (1, 1), (37, 53), (32, 33), (33, 32), (35, 32), (301, 512), (5, 40), (512, 301)]
REFERENCES = {
    "pillow_floor": cases.hf_pixels,
    "pillow_round": cases.reward_pixels,
    "bilinear": cases.fork_pixels,
    "letterbox": cases.hps_pixels,
    "letterbox_aliased": lambda pictures: cases.hps_pixels(pictures, antialias=False),
    "whole": lambda pictures: cases.whole_pixels(pictures, cases.SIZE_PX, cases.MEAN, cases.STD),
}


def pictures() -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in SHAPES]


@pytest.mark.parametrize("name", sorted(pixels.PREPARATIONS))
def test_equals_the_reference(name: str) -> None:
    found = pixels.normalised(Preparation(name, cases.SIZE_PX).batch(pictures()))
    assert found.shape == (len(SHAPES), 3, cases.SIZE_PX, cases.SIZE_PX)
    torch.testing.assert_close(found, REFERENCES[name](pictures()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(pixels.PREPARATIONS))
def test_threads_change_nothing(name: str) -> None:
    preparation = Preparation(name, cases.SIZE_PX)
    assert torch.equal(preparation.batch(pictures()), preparation.batch(pictures(), threads=3))


def test_bicubic_overshoot_of_floats_is_kept() -> None:
    edge = np.zeros((64, 64, 3), dtype=np.uint8)
    edge[:, 32:] = 255
    floats = Preparation("letterbox", 48).batch([edge])
    assert floats.min() < -0.001  # as torchvision leaves it; Pillow clips
    assert floats.max() > 1.001


def test_a_strip_that_would_vanish_keeps_one_pixel() -> None:
    strip = np.full((1, 64, 3), 255, dtype=np.uint8)
    box = Preparation("letterbox", 28).batch([strip])[0]
    assert box.sum(dim=(0, 2)).nonzero().flatten().tolist() == [13]


def test_only_extreme_shapes_are_refused() -> None:
    assert pixels.aspect_problem(np.zeros((1, 64, 3), np.uint8), "images[0]") is None
    failure = pixels.aspect_problem(np.zeros((1, 65, 3), np.uint8), "images[0]")
    assert failure is not None
    assert failure.message.startswith("images[0]: 65x1 px")
