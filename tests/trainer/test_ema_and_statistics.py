import numpy as np
import pytest
import torch

from trainer.algorithm.ema import Ema
from trainer.errors import CheckpointError
from trainer.evaluation.statistics import color_diversity, diversity, summarise
from trainer.run.tensors import restore_parameters


def test_decay_warms_up_and_counts_optimiser_steps() -> None:
    weight = torch.nn.Parameter(torch.zeros(3))
    ema = Ema({"w": weight}, decay=0.9, every=2)
    expected = 0.0
    for update in range(1, 200):
        weight.data.fill_(float(update))
        ema.update(update)
        if update % 2 == 0:
            decay = min((1 + update) / (10 + update), 0.9)
            expected = decay * expected + (1 - decay) * update
        assert ema.values["w"][0].item() == pytest.approx(expected, rel=1e-5)


def test_swapping_is_exact_and_checked() -> None:
    weight = torch.nn.Parameter(torch.randn(5))
    ema = Ema({"w": weight})
    trained = torch.randn(5)
    weight.data.copy_(trained)
    ema.blend(0.5)
    with ema.swap():
        assert torch.equal(weight.detach(), ema.values["w"])
        assert not torch.equal(weight.detach(), trained)
        with pytest.raises(RuntimeError, match="swapped in"):
            ema.blend(0.5)
        with pytest.raises(RuntimeError, match="already"), ema.swap():
            pass
    assert torch.equal(weight.detach(), trained)
    with pytest.raises(ZeroDivisionError), ema.swap():
        raise ZeroDivisionError
    assert torch.equal(weight.detach(), trained)


def test_a_saved_average_goes_on_alike() -> None:
    weight = torch.nn.Parameter(torch.randn(5))
    first = Ema({"w": weight}, every=1)
    weight.data.add_(1)
    first.update(1)
    second = Ema({"w": weight}, every=1)
    restore_parameters(second.values, {"w": first.values["w"].clone()})
    for ema in (first, second):
        ema.update(2)
    assert torch.equal(first.values["w"], second.values["w"])
    with pytest.raises(CheckpointError, match="another model"):
        restore_parameters(first.values, {"x": torch.zeros(5)})
    with pytest.raises(ValueError, match="decay"):
        Ema({}, decay=1.0)


def test_summary_per_group_and_of_their_mean() -> None:
    scores = [1.0, 0.0, 1.0, None, 1.0, 1.0]
    found = summarise(scores, [0, 0, 1, 1, 2, 2], ["one", "one", "two"])
    groups = found["categories"]
    assert groups["one"]["mean"] == pytest.approx(2 / 3)
    assert groups["one"]["n"] == 3
    assert groups["two"]["mean"] == 1.0
    assert found["mean"] == pytest.approx((2 / 3 + 1) / 2)
    for row in (*groups.values(), found):
        assert row["low"] <= row["mean"] <= row["high"]
    assert found == summarise(scores, [0, 0, 1, 1, 2, 2], ["one", "one", "two"])
    nothing = summarise([None], [0], ["one"])
    assert (nothing["mean"], nothing["n"], nothing["categories"]) == (None, 0, {})
    with pytest.raises(ValueError, match="for 2 images"):
        summarise([1.0], [0, 0], ["one"])


def test_intervals_cover_the_truth() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(100):
        chance = rng.beta(2, 2, size=60)
        scores = (rng.random((60, 4)) < chance[:, None]).astype(float)
        index = np.repeat(np.arange(60), 4).tolist()
        found = summarise(scores.flatten().tolist(), index, [""] * 60, resamples=500, seed=trial)
        covered += found["low"] <= 0.5 <= found["high"]
    assert 88 <= covered <= 99


def test_diversity_is_the_distance_inside_prompts() -> None:
    images = np.zeros((5, 2, 2, 3), dtype=np.uint8)
    images[1] = 255
    images[4] = 51
    assert diversity(images[:2]) == pytest.approx(1.0)
    assert diversity(images[2:4]) == 0
    assert diversity(images[[0, 2, 4]]) == pytest.approx((0 + 0.2 + 0.2) / 3)


def test_color_diversity_sees_colours_and_nothing_else() -> None:
    images = np.full((4, 8, 8, 3), 230, dtype=np.uint8)
    images[0, :4] = (220, 30, 30)  # red above
    images[1, 4:] = (220, 30, 30)  # red below: another picture, the same colours
    images[2, :4] = (30, 30, 220)
    images[3, :2] = (30, 30, 220)
    assert color_diversity(images[:2]) == 0
    assert color_diversity(images[[0, 2]]) == pytest.approx(0.5)
    assert color_diversity(images[2:]) == pytest.approx(0.25)
    assert diversity(images[:2]) > 0.3
