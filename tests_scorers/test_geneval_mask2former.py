"""The port of Mask2Former against what mmdet itself found with the same checkpoint."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from geneval_tiny import CHECKPOINT, Found, found_by_mmdet, pictures

from reward_server.scorers.geneval import mmdet_instances
from reward_server.scorers.geneval.mask2former import Mask2FormerSegmenter
from reward_server.scorers.geneval.segmenter import Instances


@pytest.fixture(scope="module")
def loaded() -> Mask2FormerSegmenter:
    return made()


def made(**options: str) -> Mask2FormerSegmenter:
    segmenter = Mask2FormerSegmenter(CHECKPOINT, **options)  # pyright: ignore[reportArgumentType]
    segmenter.load("cpu")
    return segmenter


def assert_same(ours: Instances, theirs: Found | Instances, score: float = 1e-5) -> None:
    mine, other = np.argsort(-ours.scores), np.argsort(-theirs.scores)
    assert np.abs(ours.scores[mine] - theirs.scores[other]).max() < score
    assert np.array_equal(ours.labels[mine], theirs.labels[other])
    assert np.array_equal(ours.boxes[mine], theirs.boxes[other])
    assert np.array_equal(ours.masks[mine], theirs.masks[other])


def assert_close(ours: Instances, theirs: Found) -> None:
    """The same instances, as far as two kinds of CPU agree.

    What is stored was computed with AVX-512, where all is equal but for 1.6e-7 in the scores. With
    AVX2 sums are added in another order, of which thresholded attention masks make 6e-5 in the
    scores and single pixels of masks; scores that are nearly equal then change places.
    """
    left = list(range(len(ours.labels)))
    for label, score, mask in zip(theirs.labels, theirs.scores, theirs.masks, strict=True):
        found = [
            i
            for i in left
            if ours.labels[i] == label
            and abs(ours.scores[i] - score) < 2e-4
            and (ours.masks[i] != mask).mean() < 2e-3
        ]
        assert found, f"no instance of class {label} with score {score}"
        left.remove(min(found, key=lambda i: float((ours.masks[i] != mask).mean())))
    assert not left


@pytest.mark.parametrize("pipeline", ["mmdet2", "mmdet3"])
def test_finds_what_mmdet_finds(pipeline: str) -> None:
    segmenter = made(pipeline=pipeline)
    for index, picture in enumerate(pictures()):
        theirs = found_by_mmdet(index, pipeline)
        assert len(theirs.labels) == 100
        assert 0.1 < theirs.masks.mean() < 0.9  # the random network does not see all or nothing
        assert_close(segmenter.segment([picture])[0], theirs)


def test_a_batch_is_its_pictures_one_by_one(loaded: Mask2FormerSegmenter) -> None:
    first, second, _ = pictures()
    # Two share a forward, the other has a forward of its own.
    batch = [first, np.ascontiguousarray(second), np.ascontiguousarray(first[::-1])]
    together = loaded.segment(batch)
    for picture, found in zip(batch, together, strict=True):
        assert_same(loaded.segment([picture])[0], found)


def test_channels_matter_and_the_published_quirk_is_a_swap(loaded: Mask2FormerSegmenter) -> None:
    picture = pictures()[2]
    swapped = np.ascontiguousarray(picture[..., ::-1])
    plain, quirk = loaded.segment([picture])[0], made(channel_order="flowgrpo")
    assert_same(quirk.segment([swapped])[0], plain)
    assert np.abs(quirk.segment([picture])[0].scores - plain.scores).max() > 1e-4


def test_half_precision_stays_close(loaded: Mask2FormerSegmenter) -> None:
    pixels = torch.randn(1, 3, 160, 192, generator=torch.Generator().manual_seed(0))
    classes, masks = loaded.forward(pixels)
    half = made(dtype="bfloat16")
    assert half.facts()["detector_dtype"] == "torch.bfloat16"
    classes_half, masks_half = half.forward(pixels)
    # Relative to the spread; the masks' signs decide, and attention masks are thresholded, so a
    # rounding may let a query look at one more place.
    assert (classes_half - classes).abs().max() < 0.05 * (classes.max() - classes.min())
    assert (classes_half - classes).abs().mean() < 0.01 * (classes.max() - classes.min())
    assert ((masks_half > 0) == (masks > 0)).float().mean() > 0.97


def test_low_probabilities_can_be_left_out(loaded: Mask2FormerSegmenter) -> None:
    picture = pictures()[2]
    every, some = loaded.segment([picture])[0], loaded.segment([picture], 0.12)[0]
    assert 0 < len(some.scores) < 100
    high = np.sort(every.scores[every.scores > 0.12])
    assert np.allclose(high, np.sort(some.scores[some.scores > 0.12]), atol=1e-6)
    assert len(loaded.segment([picture], 1.1)[0].labels) == 0


def test_one_pixel_and_no_pictures(loaded: Mask2FormerSegmenter) -> None:
    found = loaded.segment([np.full((1, 1, 3), 7, np.uint8)])[0]
    assert found.masks.shape == (100, 1, 1)
    assert loaded.segment([]) == []


def test_boxes_hold_their_masks_and_nothing_less() -> None:
    masks = torch.zeros(4, 6, 9, dtype=torch.bool)
    masks[0, 2:4, 3:8] = True
    masks[1, 5, 8] = True
    masks[2] = True
    expected = [[3, 2, 8, 4], [8, 5, 9, 6], [0, 0, 9, 6], [0, 0, 0, 0]]
    assert mmdet_instances.boxes_of(masks).tolist() == expected


@pytest.mark.skipif(importlib.util.find_spec("mmdet") is None, reason="mmdet is not installed")
@pytest.mark.filterwarnings("default")  # mmcv and mmengine warn while they are imported
def test_the_mmdet_segmenter_finds_what_mmdet_finds(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
    import make_mask2former_golden as script  # pyright: ignore[reportMissingImports]

    script.stub_compiled_operators()
    from reward_server.scorers.geneval.mmdet_segmenter import MmdetSegmenter

    script.configuration(tiny=True).dump(str(tmp_path / "tiny.py"))
    segmenter = MmdetSegmenter(CHECKPOINT, config=tmp_path / "tiny.py")
    segmenter.load("cpu")
    for index, found in enumerate(segmenter.segment(pictures())):
        assert_same(found, found_by_mmdet(index, "mmdet3"))
