"""The colour stage: crops, activation, texts, and one forward for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip  # pyright: ignore[reportMissingImports]
import pytest
import torch
from geneval_tiny import CLIP_SIDE_PX, clip_network, pictures, save_openai_archive
from open_clip.transform import image_transform  # pyright: ignore[reportMissingImports]
from PIL import Image
from torch.nn import functional as F

from reward_server.scorers.geneval import clip_model, coco, crops
from reward_server.scorers.geneval.clip_colors import ColorClassifier

LABELS = ["apple", "computer mouse", "apple", "traffic light", "person"]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_openai_archive(clip_network(), tmp_path_factory.mktemp("clip") / "ViT-L-14.pt")


@pytest.fixture(scope="module")
def classifier(archive: Path) -> ColorClassifier:
    made = ColorClassifier(archive)
    made.load("cpu")
    return made


def instances() -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Picture, mask and box of five objects: odd sizes, a single pixel, long strips."""
    first, second, third = pictures()
    places = [
        (first, (3, 5, 60, 90)),
        (second, (0, 0, 160, 160)),
        (first, (17, 40, 18, 41)),
        (third, (10, 2, 13, 140)),
        (second, (1, 80, 159, 84)),
    ]
    found = []
    for picture, box in places:
        x0, y0, x1, y1 = box
        y, x = np.mgrid[0 : picture.shape[0], 0 : picture.shape[1]]
        mask = (x >= x0) & (x < x1) & (y >= y0) & (y < y1) & ((x + 2 * y) % 7 > 0)
        mask[y0, x0] = mask[y1 - 1, x1 - 1] = True
        found.append((picture, mask, np.array(box, np.float32)))
    return found


def published_crop(picture: np.ndarray, mask: np.ndarray, box: np.ndarray) -> Image.Image:
    """As `ImageCrops` of the benchmark, with Pillow alone."""
    image = Image.fromarray(picture)
    blank = Image.new("RGB", image.size, color="#999")
    composed = Image.composite(image, blank, Image.fromarray(mask))
    return composed.crop(tuple(float(v) for v in box))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("index", range(5))
def test_crops_are_the_benchmarks_pixel_for_pixel(index: int) -> None:
    picture, mask, box = instances()[index]
    ours = crops.cut_out(picture, mask, box)
    theirs = published_crop(picture, mask, box)
    assert np.array_equal(ours, np.asarray(theirs))
    shown = crops.fitted(ours, 224)
    transform = image_transform(224, is_train=False, mean=(0, 0, 0), std=(1, 1, 1))
    expected = (transform(theirs) * 255).round().to(torch.uint8).permute(1, 2, 0)  # pyright: ignore[reportOperatorIssue, reportAttributeAccessIssue]
    assert np.array_equal(shown, expected.numpy())


def test_very_long_strips_keep_their_middle() -> None:
    strip = np.zeros((1, 4096, 3), np.uint8)
    strip[:, 2047:2049] = 250
    shown = crops.fitted(strip, 32)
    assert shown.shape == (32, 32, 3)
    assert shown[:, 15:17].min() > 200
    assert np.array_equal(crops.fitted(strip.transpose(1, 0, 2), 32), shown.transpose(1, 0, 2))


def published_cosines(network: Any, label: str, crop: Image.Image) -> torch.Tensor:
    """The benchmark's formula on one crop: its templates, its order of means and norms, float32."""
    rows = []
    for color in coco.COLORS:
        texts = [
            f"a photo of a {color} {label}",
            f"a photo of a {color}-colored {label}",
            f"a photo of a {color} object",
        ]
        encoded = network.encode_text(open_clip.tokenize(texts, 77))
        mean = F.normalize(encoded, dim=-1).mean(dim=0)
        rows.append(mean / mean.norm())
    transform = image_transform(CLIP_SIDE_PX, is_train=False)
    feature = F.normalize(network.encode_image(transform(crop)[None]), dim=-1)  # pyright: ignore[reportIndexIssue]
    return (feature @ torch.stack(rows).T)[0]


@torch.inference_mode()
def test_agrees_with_the_published_formula_on_the_same_weights(
    archive: Path, classifier: ColorClassifier
) -> None:
    network = clip_network()
    objects = [crops.cut_out(*instance) for instance in instances()]
    half = ColorClassifier(archive, dtype="bfloat16")
    half.load("cpu")
    expected = [
        published_cosines(network, label, published_crop(*instance)).numpy()
        for label, instance in zip(LABELS, instances(), strict=True)
    ]
    scale = np.abs(expected).max()
    for guess, want in zip(classifier.classify(objects, LABELS), expected, strict=True):
        assert np.abs(guess.cosines - want).max() < 1e-4 * scale
        assert guess.color == coco.COLORS[int(want.argmax())]
        shares = torch.tensor(100 * want).softmax(0)
        assert guess.share == pytest.approx(float(shares.max()), rel=1e-2)
    for guess, want in zip(half.classify(objects, LABELS), expected, strict=True):
        # Of unit vectors: the cosines of random towers are small, and bfloat16 rounds the vectors.
        assert 0 < np.abs(guess.cosines - want).max() < 1e-2


def test_all_objects_at_once_are_the_objects_one_by_one(archive: Path) -> None:
    objects = [crops.cut_out(*instance) for instance in instances()]
    small = ColorClassifier(archive, crops_per_forward=2)
    small.load("cpu")
    together = small.classify(objects, LABELS)
    for picture, label, guess in zip(objects, LABELS, together, strict=True):
        alone = small.classify([picture], [label])[0]
        assert alone.color == guess.color
        assert np.abs(alone.cosines - guess.cosines).max() < 1e-6
    assert small.classify([], []) == []


def test_one_forward_serves_all_objects_of_a_batch(classifier: ColorClassifier) -> None:
    sizes: list[int] = []
    assert classifier._clip is not None
    hook = classifier._clip.network.visual.register_forward_pre_hook(
        lambda _, inputs: sizes.append(len(inputs[0]))
    )
    objects = [crops.cut_out(*instance) for instance in instances()]
    classifier.classify(objects * 3, LABELS * 3)
    hook.remove()
    assert sizes == [15]


def test_texts_are_embedded_once_and_cut_off_texts_are_equal(classifier: ColorClassifier) -> None:
    assert classifier._clip is not None
    first = classifier.embeddings(["zebra"])[0]
    assert classifier.embeddings(["dog", "zebra"])[1] is first
    assert first.shape == (10, 32)
    long = "a very, very long sentence about nothing " * 20
    tokens = open_clip.tokenize(["a", long, "a photo of a red apple", "", "🦓 „quoted“"], 77)
    with torch.inference_mode():
        full = classifier._clip.network.encode_text(tokens, normalize=True)
    for part in (tokens, tokens[2:3], tokens[3:4], tokens[[0, 2, 4]]):
        rows = [next(i for i, t in enumerate(tokens) if torch.equal(t, row)) for row in part]
        assert torch.allclose(
            clip_model.encode_texts(classifier._clip, part), full[rows], atol=1e-5
        )


def test_activation_is_quick_gelu_or_nothing(archive: Path) -> None:
    loaded = clip_model.load(archive, "cpu")
    assert "QuickGELU" in loaded.architecture
    clip_model.assert_quick_gelu(loaded.network)
    with pytest.raises(clip_model.WrongActivation, match="has activation GELU"):
        clip_model.assert_quick_gelu(clip_network(quick_gelu=False))
    with pytest.raises(clip_model.WrongActivation, match="unknown"):
        clip_model.assert_quick_gelu(torch.nn.Linear(2, 2))


@torch.inference_mode()
def test_archive_and_plain_state_dict_are_the_same_network(archive: Path, tmp_path: Path) -> None:
    torch.save(clip_network().state_dict(), tmp_path / "plain.pt")
    pixels = torch.rand(1, 3, CLIP_SIDE_PX, CLIP_SIDE_PX)
    one, other = (clip_model.load(p, "cpu").network for p in (archive, tmp_path / "plain.pt"))
    assert torch.equal(one.encode_image(pixels), other.encode_image(pixels))
    wrong = clip_network(quick_gelu=False).encode_image(pixels)
    assert not torch.allclose(one.encode_image(pixels), wrong, rtol=1e-2)
