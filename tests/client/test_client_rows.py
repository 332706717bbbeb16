"""Rows as pandas, pyarrow and datasets hand them over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from reward_client import RewardClient, make_items
from reward_client._transports.fake import FakeTransport
from reward_client.types import Item

STAR = {"class": "star", "count": 2}
HEART = {"class": "heart", "count": 1, "position": ["left of", 0]}


def received(row: dict[str, Any]) -> Item:
    """What a server gets of one row."""
    transport = FakeTransport(lambda name, item: 1.0)
    with RewardClient("fake://x", transport=transport) as client:
        pictures = np.zeros((1, 8, 8, 3), np.uint8)
        client.score(make_items(pictures, ["x"], [row]), ["fake"])
    return transport.requests[0].items[0]


@pytest.mark.parametrize(
    "include",
    [
        [{"class": np.str_("star"), "count": np.int64(2), "color": None}, HEART],
        np.array([{"class": "star", "count": 2.0}, HEART], dtype=object),
        [STAR, {**HEART, "position": np.array(["left of", "0"], dtype=object)}],
        [STAR, {**HEART, "position": ["left of", np.float64(0)], "color": float("nan")}],
    ],
)
def test_geneval_rows_of_numpy_are_what_they_say(include: Any) -> None:
    item = received({"tag": np.str_("position"), "include": include, "exclude": float("nan")})
    assert item.spec_kind == "geneval"
    assert item.spec == {"tag": "position", "include": [STAR, HEART], "exclude": []}


def test_metadata_of_numpy_and_columns_of_nan() -> None:
    row = {"score": np.float32(0.5), "box": np.arange(3), "target": np.nan, "include": None}
    item = received(row)
    assert item.spec_kind == "metadata"
    assert item.spec == {"score": 0.5, "box": [0, 1, 2]}
