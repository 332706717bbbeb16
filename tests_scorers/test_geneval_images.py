"""mmdet's test pipeline in torch: resize, channel order, padding, normalisation."""

from __future__ import annotations

import cv2  # pyright: ignore[reportMissingImports]
import numpy as np
import pytest
import torch
from geneval_tiny import pictures

from reward_server.scorers.geneval import mmdet_images, segmenter
from reward_server.scorers.geneval.mmdet_images import target_size

ODD_SIZES = [
    *[(512, 512), (64, 64), (1024, 1024), (1600, 1600), (333, 517), (1024, 768), (17, 40)],
    *[(1, 1), (3, 700), (700, 3), (1, 90), (800, 800), (801, 799)],
]


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("size", ODD_SIZES)
def test_uint8_resize_is_opencvs_bit_for_bit(size: tuple[int, int]) -> None:
    image = noise(*size)
    height, width = target_size(*size)
    ours = mmdet_images.resize_uint8(torch.from_numpy(image).permute(2, 0, 1), height, width)
    theirs = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(ours.permute(1, 2, 0).numpy(), theirs)


@pytest.mark.parametrize("size", [*ODD_SIZES, (4096, 4096), (1, 4000)])
def test_target_size_is_mmcvs_and_never_nothing(size: tuple[int, int]) -> None:
    height, width = target_size(*size)
    scale = min(1333 / max(size), 800 / min(size))
    assert (height, width) == tuple(max(1, int(side * scale + 0.5)) for side in size)


def by_opencv(rgb: np.ndarray) -> np.ndarray:
    """What mmdet 2.28 does to a file with these pixels, step by step in OpenCV and numpy."""
    bgr = rgb[..., ::-1]  # as cv2.imread gives it
    height, width = target_size(*rgb.shape[:2])
    resized = cv2.resize(np.ascontiguousarray(bgr), (width, height))
    below, right = -height % 32, -width % 32
    grey = (128, 128, 128)
    padded = cv2.copyMakeBorder(resized, 0, below, 0, right, cv2.BORDER_CONSTANT, value=grey)
    seen = cv2.cvtColor(padded.astype(np.float32), cv2.COLOR_BGR2RGB)
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    seen = (seen - mean) / std
    return seen.transpose(2, 0, 1)


@pytest.mark.parametrize("size", [(97, 131), (512, 512), (1, 1)])
def test_official_tensor_is_that_of_mmdet_2(size: tuple[int, int]) -> None:
    image = noise(*size)
    prepared = mmdet_images.prepare([segmenter.as_read(image, "official")], "mmdet2", "cpu")[0]
    assert prepared.pixels.shape[1] % 32 == prepared.pixels.shape[2] % 32 == 0
    assert prepared.original == size
    assert np.abs(prepared.pixels.numpy() - by_opencv(image)).max() < 1e-5


def test_swapped_channels_give_another_tensor_namely_flow_grpos() -> None:
    image = pictures()[0]
    swapped = np.ascontiguousarray(image[..., ::-1])

    def seen(picture: np.ndarray, order: str) -> torch.Tensor:
        return mmdet_images.prepare([segmenter.as_read(picture, order)], "mmdet2", "cpu")[0].pixels

    official = seen(image, "official")
    assert (seen(swapped, "official") - official).abs().max() > 1
    # The published server hands RGB to a detector that takes BGR.
    assert torch.equal(seen(image, "flowgrpo"), seen(swapped, "official"))
    assert torch.equal(seen(swapped, "flowgrpo"), official)


def test_newer_pipeline_pads_after_normalisation_and_does_not_round() -> None:
    image = noise(97, 131)
    old, new = (mmdet_images.prepare([image], p, "cpu")[0] for p in segmenter.PIPELINES)
    height, width = old.content
    assert (height, width) == (new.content[0], new.content[1]) != tuple(old.pixels.shape[1:])
    assert new.pixels[:, :, width:].abs().max() == 0
    grey = (128 - torch.tensor([123.675, 116.28, 103.53])) / torch.tensor([58.395, 57.12, 57.375])
    assert torch.allclose(old.pixels[:, -1, -1], grey)
    inside = (old.pixels - new.pixels)[:, :height, :width].abs().max()
    assert 0 < inside < 1 / 57  # half a grey level, and what OpenCV drops in between


def test_pictures_of_equal_padded_size_share_a_forward_up_to_the_limit() -> None:
    images = [noise(64, 64), noise(64, 80), noise(70, 70), noise(64, 81), noise(64, 64)]
    prepared = mmdet_images.prepare(images, "mmdet2", "cpu")
    assert mmdet_images.groups(prepared, 2) == [[0, 2], [4], [1, 3]]


def test_large_picture_and_read_only_memory_are_taken() -> None:
    image = np.zeros((4096, 4096, 3), dtype=np.uint8)
    image.flags.writeable = False
    prepared = mmdet_images.prepare([image], "mmdet2", "cpu")[0]
    assert prepared.pixels.shape == (3, 800, 800)
