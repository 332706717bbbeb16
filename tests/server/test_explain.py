"""What is drawn onto explained copies: at the boxes, and nowhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from reward_client.images import UInt8Image
from reward_server.commands.explain import (
    COUNTED,
    NOT_COUNTED,
    TEXT,
    Finding,
    Mark,
    draw_marks,
    enlargement,
    explained,
    marks,
    reasons,
)

BACKGROUND = (236, 230, 222)


def _object(box: list[float], **more: Any) -> dict[str, Any]:
    return {"class": "star", "score": 0.98, "box": box, "color": "red", "counted": True, **more}


def _blank(width: int, height: int) -> UInt8Image:
    return np.full((height, width, 3), BACKGROUND, dtype=np.uint8)


def _drawn(image: UInt8Image, finding: Finding) -> tuple[UInt8Image, int]:
    """Which pixels of the enlarged picture were changed, and by how much it is larger."""
    scale = enlargement(image)
    height, width = image.shape[0] * scale, image.shape[1] * scale
    shown = np.kron(image, np.ones((scale, scale, 1), dtype=np.uint8))
    return (explained(image, [finding])[:height, :width] != shown).any(axis=2), scale


@pytest.mark.parametrize("size", [(64, 64), (1024, 1024), (300, 517), (1600, 900)])
def test_only_the_box_and_its_tag_are_drawn(size: tuple[int, int]) -> None:
    width, height = size
    box = [0.25 * width, 0.4 * height, 0.75 * width, 0.8 * height]
    changed, scale = _drawn(
        _blank(width, height), Finding("g", 1.0, {}, {"objects": [_object(box)]})
    )
    x0, y0, x1, y1 = (round(v * scale) for v in box)
    rim = 3 + max(width, height) * scale // 200
    rows, columns = np.nonzero(changed)
    tag = 3 * rim + max(width, height) * scale // 25
    assert x0 - rim <= columns.min() < x0 + rim
    assert x1 - rim < columns.max() <= x1 + rim
    assert y0 - tag <= rows.min() < y0
    assert y1 - rim < rows.max() <= y1 + rim
    assert not changed[y0 + rim : y1 - rim, x0 + rim : x1 - rim].any()
    for edge in (changed[y0:y1, x0], changed[y0:y1, x1], changed[y1, x0:x1], changed[y0, x0:x1]):
        assert edge.all()


def test_boxes_that_are_not_counted_are_grey() -> None:
    finding = Finding("g", 1.0, {}, {"objects": [_object([20, 30, 50, 60], counted=False)]})
    page = explained(_blank(64, 64), [finding])
    assert (page[320:580, 500] == NOT_COUNTED).all()


def test_text_boxes_follow_their_corners() -> None:
    corners = [[10, 20], [50, 30], [48, 40], [8, 30]]
    line = {"text": "HELLO", "score": 0.9, "box": corners}
    finding = Finding("o", 0.5, {}, {"target": "HELLO", "recognised": "HELLO", "lines": [line]})
    page = explained(_blank(64, 64), [finding])
    for (x0, y0), (x1, y1) in zip(corners, [*corners[1:], corners[0]], strict=True):
        # Tags may cover a line's middle, never its neighbourhood as a whole.
        points = [(x0 + k / 10 * (x1 - x0), y0 + k / 10 * (y1 - y0)) for k in range(1, 10)]
        hits = [tuple(page[round(10 * y), round(10 * x)]) == TEXT for x, y in points]
        assert sum(hits) >= 7


def test_labels_and_reasons() -> None:
    details = {
        "objects": [
            _object([0, 0, 9, 9]),
            _object([0, 0, 9, 9], color=None, leaning=("blue", 0.4)),
            _object([0, 0, 9, 9], color=None, leaning=None, counted=False),
        ],
        "reasons": ["expected star>=2, found 1", "same"],
        "strict_reasons": ["expected star==2, found 1", "same"],
    }
    red, leaning, unsure = marks(details)
    assert (red.label, red.color) == ("red star 0.98", COUNTED)
    assert (leaning.label, leaning.color) == ("star 0.98 (leans to blue)", COUNTED)
    assert unsure.color == NOT_COUNTED
    assert reasons(details) == [
        "failed: same",
        "failed (official): expected star>=2, found 1",
        "failed (strict): expected star==2, found 1",
    ]
    assert reasons({"target": "A", "recognised": "", "lines": []}) == [
        'asked for "A", read nothing'
    ]


@pytest.mark.parametrize("corner", [0.0, 20.0, 60.0])
def test_tags_keep_apart_and_inside(corner: float) -> None:
    # Many boxes at one place: every tag stays inside, and none hides another.
    end = min(corner + 30, 64.0)
    many = [Mark(((corner, corner), (end, end)), f"red star {k}", COUNTED) for k in range(6)]
    tags = draw_marks(Image.new("RGB", (640, 640)), many, 10, 15)
    for index, (left, top, right, bottom) in enumerate(tags):
        assert 0 <= left < right <= 640
        assert 0 <= top < bottom <= 640
        for other in tags[:index]:
            assert top >= other[3] or bottom <= other[1]


@pytest.mark.parametrize("size", [(1, 1), (5, 700), (700, 5), (4096, 40)])
def test_any_size_and_any_text(size: tuple[int, int]) -> None:
    box = [[0, 0], [size[0], 0], [size[0], size[1]], [0, size[1]]]
    line = {"text": "caf\u00e9 \u2605 \u6f22" * 8, "score": 0.5, "box": box}
    findings = [
        Finding(
            "o", 0.25, {"x": 1.0}, {"target": "\U0001f600", "recognised": "?", "lines": [line]}
        ),
        Finding("g", error="INTERNAL: " + "unbroken" * 40),
    ]
    page = explained(_blank(*size), findings)
    scale = enlargement(_blank(*size))
    assert page.shape[0] > size[1] * scale
    assert page.shape[1] >= size[0] * scale
