from __future__ import annotations

import numpy as np
import pytest
from client_servers import brightness

from reward_client import (
    Code,
    FakeTransport,
    InvalidArgument,
    Item,
    ItemError,
    ResourceExhausted,
    RewardClient,
)
from reward_client.images import to_uint8
from reward_client.integrations.flow_grpo import make_reward_fn, multi_score

PIXELS = np.random.default_rng(0).integers(0, 256, (4, 8, 6, 3), np.uint8)
ROW = {"tag": "single_object", "include": [{"class": "star", "count": 1}], "prompt": "a star"}


def all_but_one(_: str, item: Item) -> float | ItemError:
    if item.id == "2":
        return ItemError(Code.RESOURCE_EXHAUSTED, "out of memory", retryable=True)
    return brightness(item)


def test_scores_and_specs() -> None:
    transport = FakeTransport(lambda _, item: brightness(item), ["geneval"])
    fn = make_reward_fn(RewardClient("fake://", transport=transport), "geneval")
    scores, info = fn(PIXELS, ["a star"] * 4, [ROW, {}, {"seed": 1}, {}])
    assert scores == info["raw"] == pytest.approx(PIXELS.mean((1, 2, 3)))
    assert info["errors"] == {}
    assert [item.spec_kind for item in transport.requests[0].items] == [
        "geneval",
        None,
        "metadata",
        None,
    ]
    assert fn(PIXELS, ["a star"] * 4)[0] == scores


def test_a_failure_is_raised_or_explicit() -> None:
    client = RewardClient("fake://", transport=FakeTransport(all_but_one))
    with pytest.raises(ResourceExhausted, match=r"1 of 4 items, first item 2: out of memory"):
        make_reward_fn(client, "fake")(PIXELS, [""] * 4, [{}] * 4)
    scores, info = make_reward_fn(client, "fake", on_failure="none")(PIXELS, [""] * 4, [{}] * 4)
    assert [score is None for score in scores] == [False, False, True, False]
    assert info["errors"][2].message == "out of memory"


def test_pixels_in_every_form_that_trainers_use() -> None:
    torch = pytest.importorskip("torch")
    planar = (PIXELS / 255.0).astype(np.float32).transpose(0, 3, 1, 2)
    for images in (PIXELS, planar, torch.tensor(planar), torch.tensor(PIXELS)):
        np.testing.assert_array_equal(to_uint8(images), PIXELS)
    halves = to_uint8(torch.tensor(planar, dtype=torch.bfloat16))
    assert np.abs(halves.astype(int) - PIXELS).max() <= 1
    assert to_uint8(np.array([[[[-0.001]], [[1.001]], [[0.5]]]])).tolist() == [[[[0, 255, 128]]]]


def test_wrong_batches_are_refused() -> None:
    client = RewardClient("fake://", transport=FakeTransport(all_but_one))
    fn = make_reward_fn(client, "fake")
    with pytest.raises(InvalidArgument, match="4 images, 3 prompts, 4 metadata"):
        fn(PIXELS, [""] * 3, [{}] * 4)
    with pytest.raises(InvalidArgument, match="4 axes"):
        fn(PIXELS[0, 0, 0], [""], [{}])
    with pytest.raises(InvalidArgument, match=r"axis of 3 \(RGB\), 4 \(RGBA\) or 1"):
        fn(np.zeros((1, 5, 8, 8), np.float32), [""], [{}])
    with pytest.raises(InvalidArgument, match=r"in \[0, 1\], got -1 to 1: say what"):
        fn(np.linspace(-1, 1, 192).reshape(1, 3, 8, 8), [""], [{}])
    with pytest.raises(InvalidArgument, match=r"uint8, or floats in .*, got int64"):
        fn(PIXELS.astype(np.int64), [""] * 4, [{}] * 4)
    with pytest.raises(InvalidArgument, match="NaN"):
        fn(np.full((1, 3, 8, 8), np.nan), [""], [{}])


def test_the_names_of_flow_grpo_are_scorers_with_their_transforms() -> None:
    transport = FakeTransport(lambda scorer, _: 2.0 if scorer == "jpeg" else 3.0, ["jpeg", "ocr"])
    client = RewardClient("fake://", transport=transport)
    fn = multi_score("cpu", {"jpeg_compressibility": 1.0, "video_ocr": 0.5}, client=client)
    details, _ = fn(PIXELS, [""] * 4, [{}] * 4)
    asked = [(one.name, one.transform) for one in transport.requests[0].scorers]
    assert asked == [("jpeg", "compressibility"), ("ocr", "flowgrpo_video")]
    assert details["jpeg_compressibility"] == [2.0] * 4
    assert details["avg"] == [3.5] * 4
    with pytest.raises(ValueError, match="two of these are one scorer"):
        multi_score("cpu", {"ocr": 1.0, "video_ocr": 1.0}, client=client)
