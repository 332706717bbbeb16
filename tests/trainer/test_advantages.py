import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.algorithm.advantages import advantages


def test_advantages_equal_the_official_ones(golden: Path) -> None:
    cases = json.loads((golden / "advantages.json").read_text())
    assert cases
    for case in cases:
        std = "global" if case["global_std"] else "group"
        found = advantages({"r": case["rewards"]}, case["prompts"], std=std, clip=None)
        np.testing.assert_allclose(found.values, case["advantages"], rtol=1e-5, atol=1e-9)


rewards = st.lists(st.floats(-3, 3), min_size=1, max_size=40)


@given(rewards, st.randoms(), st.sampled_from(["group", "global"]))
def test_groups_are_centred_and_order_does_not_matter(values, random, std) -> None:
    groups = [random.randrange(4) for _ in values]
    found = advantages({"r": values}, groups, std=std, clip=None).values
    for group in set(groups):
        members = [a for a, g in zip(found, groups, strict=True) if g == group]
        assert abs(sum(members)) < 1e-6 * max(1.0, *map(abs, members))
    order = list(range(len(values)))
    random.shuffle(order)
    moved = advantages({"r": [values[i] for i in order]}, [groups[i] for i in order], std=std,
                       clip=None).values  # fmt: skip
    np.testing.assert_allclose(moved, found[order], rtol=1e-6, atol=1e-6)


@given(rewards, st.data())
def test_failed_items_change_nothing(values, data) -> None:
    groups = [i % 3 for i in range(len(values))]
    valid = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    shown = [v if ok else float("nan") for v, ok in zip(values, valid, strict=True)]
    found = advantages({"r": shown}, groups, valid=valid)
    keep = np.flatnonzero(valid)
    alone = advantages({"r": [values[i] for i in keep]}, [groups[i] for i in keep])
    np.testing.assert_allclose(found.values[keep], alone.values, rtol=1e-9, atol=1e-12)
    assert not found.values[~found.valid].any()
    assert found.valid.tolist() == valid
    assert found.stats["failed_items"] == pytest.approx(1 - np.mean(valid))


def test_statistics_of_nothing_are_none() -> None:
    found = advantages({"r": [np.nan] * 4}, [0, 0, 1, 1], valid=[False] * 4)
    assert not found.values.any()
    assert not found.valid.any()
    assert found.stats["failed_items"] == 1.0
    assert {found.stats[n] for n in ("reward_mean", "reward_std", "zero_std_groups")} == {None}


@pytest.mark.parametrize("std", ["group", "global"])
def test_constant_groups_push_nothing(std) -> None:
    found = advantages({"r": [0.1] * 24 + [0.3] * 24}, [0] * 24 + [1] * 24, std=std)
    assert not found.values.any()
    assert found.stats["zero_std_groups"] == 1.0
    assert found.stats["informative"] == 0.0
    same = advantages({"r": [0.7] * 6}, [0, 1, 2] * 2, std=std)
    assert not same.values.any()
    half = advantages({"r": [0.1, 0.1, 0.0, 1.0]}, [0, 0, 1, 1], std=std)
    assert half.stats["zero_std_groups"] == 0.5
    assert half.values[:2].tolist() == [0, 0]
    assert half.values[2] < 0 < half.values[3]


def test_nothing_valid_is_not_an_error() -> None:
    found = advantages({"r": [float("nan")] * 4}, [0, 0, 1, 1], valid=[False] * 4)
    assert not found.values.any()
    assert not found.valid.any()


def test_rewards_are_weighed_then_normalised_or_the_other_way_round() -> None:
    a, b, groups = [0.0, 1.0, 2.0, 5.0], [10.0, 0.0, 40.0, 10.0], [0, 0, 1, 1]
    weights = {"a": 2.0, "b": 0.5}
    total = advantages({"a": a, "b": b}, groups, weights=weights, clip=None)
    summed = [2 * x + 0.5 * y for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(total.values, advantages({"r": summed}, groups, clip=None).values)
    parts = advantages({"a": a, "b": b}, groups, weights=weights, combine="per_reward", clip=None)
    each = [advantages({"r": r}, groups, clip=None).values for r in (a, b)]
    np.testing.assert_allclose(parts.values, 2 * each[0] + 0.5 * each[1])


def test_advantages_are_clipped() -> None:
    found = advantages({"r": [0.0] * 99 + [1.0]}, [0] * 100)
    assert found.values.max() == 5.0
    assert found.stats["clipped"] == 0.01


def test_what_is_no_reward_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        advantages({"r": [1.0, float("nan")]}, [0, 0])
    with pytest.raises(ValueError, match="expected 2"):
        advantages({"r": [1.0]}, [0, 0])
    with pytest.raises(ValueError, match="weights"):
        advantages({"r": [1.0]}, [0], weights={"s": 1.0})
    with pytest.raises(ValueError, match="no rewards"):
        advantages({}, [])
    with pytest.raises(ValueError, match="unknown 'batch'; one of group, global"):
        advantages({"r": [1.0]}, [0], std="batch")  # pyright: ignore


@given(rewards, st.data(), st.sampled_from(["best", "best_worst", "softmax"]))
def test_choices_are_made_inside_groups_among_what_has_a_score(values, data, mode) -> None:
    groups = [i % 3 for i in range(len(values))]
    valid = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    shown = [v if ok else float("nan") for v, ok in zip(values, valid, strict=True)]
    found = advantages({"r": shown}, groups, valid=valid, mode=mode, temperature=0.5)
    assert found.groups.tolist() == groups
    assert not (found.used & ~found.valid).any()
    assert not found.values[~found.used].any()
    relative = advantages({"r": shown}, groups, valid=valid, clip=None).values
    for group in set(groups):
        members = np.array([g == group and ok for g, ok in zip(groups, valid, strict=True)])
        chosen, got = members & found.used, found.values[members & found.used]
        if not members.any() or np.ptp(relative[members]) == 0:
            assert not chosen.any()
            continue
        best, worst = relative[members].max(), relative[members].min()
        if mode == "best":
            assert set(got) == {1.0}
            assert (relative[chosen] == best).all()
            assert chosen.sum() == (relative[members] == best).sum()
        elif mode == "best_worst":
            assert sorted(got) == [-1.0, 1.0]
            assert relative[chosen & (found.values > 0)] == best
            assert relative[chosen & (found.values < 0)] == worst
        else:
            assert (chosen == members).all()
            expected = np.exp(np.clip(relative[members], -5, 5) / 0.5)
            np.testing.assert_allclose(got, expected / expected.mean(), rtol=1e-9)


def test_choices_look_past_the_clipping() -> None:
    found = advantages({"r": [0.0] * 200 + [1.0, 0.9]}, [0] * 202, mode="best", clip=0.1)
    assert found.values.tolist() == [0.0] * 200 + [1.0, 0.0]
    assert found.used.sum() == 1
    assert found.stats["informative"] == pytest.approx(1 / 202)


def test_gdpo_normalises_within_groups_then_over_everything() -> None:
    a, b = [0.0, 1.0, 2.0, 5.0, 3.0, 3.0], [10.0, 0.0, 40.0, 10.0, 7.0, 7.0]
    groups, weights = [0, 0, 1, 1, 2, 2], {"a": 2.0, "b": 0.5}
    found = advantages({"a": a, "b": b}, groups, weights=weights, combine="gdpo", clip=None, eps=0)
    each = [advantages({"r": r}, groups, std="group", clip=None, eps=0).values for r in (a, b)]
    total = 2 * each[0] + 0.5 * each[1]
    np.testing.assert_allclose(found.values, (total - total.mean()) / total.std())
    assert found.values[4:].tolist() == [0, 0]
    assert found.values.std() == pytest.approx(1)
    # Neither the scale nor the offset of a reward matters.
    scaled = {"a": a, "b": [100 * r - 7 for r in b]}
    again = advantages(scaled, groups, weights=weights, combine="gdpo", clip=None, eps=0)
    np.testing.assert_allclose(again.values, found.values)
