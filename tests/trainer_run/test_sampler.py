from collections import Counter
from math import ceil, floor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.files import category_probabilities
from trainer.rollout.noise import draw, initial_noise, step_noise
from trainer.rollout.prompts import draw_prompts, draws, share_out
from trainer.types import Prompt


@given(
    weights=st.lists(st.sampled_from([0.0, 1.0, 3.0]), min_size=2, max_size=9),
    count=st.integers(1, 20),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 99),
)
def test_draws_depend_on_seed_and_epoch_only_and_give_each_its_share(
    weights: list[float], count: int, seed: int, epoch: int
) -> None:
    weights[0] = 1.0
    categories = ["odd" if index % 2 else "even" for index in range(len(weights))]
    chosen = draw_prompts(weights, categories, count, seed=seed, epoch=epoch)
    assert chosen == draw_prompts(weights, categories, count, seed=seed, epoch=epoch)
    assert len(chosen) == count
    times = Counter(chosen)
    due = [count * weight / sum(weights) for weight in weights]
    for index, expected in enumerate(due):
        assert floor(expected + 1e-9) <= times[index] <= ceil(expected - 1e-9)
    for name in set(categories):
        members = [index for index, category in enumerate(categories) if category == name]
        expected = sum(due[index] for index in members)
        together = sum(times[index] for index in members)
        assert floor(expected + 1e-9) <= together <= ceil(expected - 1e-9)


def test_what_is_drawn_is_what_the_weights_say() -> None:
    """Shares of the category weights, though a category has few prompts or many."""
    weights = {"counting": 5.0, "color_attr": 5.0, "colors": 2.0, "position": 1.0, "two": 1.0}
    sizes = {"counting": 20, "color_attr": 300, "colors": 40, "position": 300, "two": 60}
    prompts = [Prompt(f"{name} {i}", group=name) for name in weights for i in range(sizes[name])]
    probabilities = category_probabilities(prompts, weights)
    categories = [prompt.group for prompt in prompts]
    epochs = [draw_prompts(probabilities, categories, 12, seed=3, epoch=e) for e in range(700)]
    drawn = Counter(categories[index] for chosen in epochs for index in chosen)
    for name, weight in weights.items():
        # A share of 12 x 700; the part that is left to chance scatters by at most 1/2 per epoch.
        assert drawn[name] / (12 * 700) == pytest.approx(weight / 14, abs=4 * 0.5 / (12 * 700**0.5))
    assert all(len(set(chosen)) == 12 for chosen in epochs)
    # Within a category every prompt comes as often, and in no fixed company.
    times = Counter(index for chosen in epochs for index in chosen)
    counting, even = [times[index] for index in range(20)], drawn["counting"] / 20
    assert 0.75 * even < min(counting) <= max(counting) < 1.25 * even
    assert len({frozenset(chosen) for chosen in epochs}) == len(epochs)
    # Updates learn from runs of draws: the categories lie anywhere in them.
    firsts = Counter(categories[chosen[0]] for chosen in epochs)
    assert firsts["counting"] / 700 == pytest.approx(5 / 14, abs=0.08)


@given(groups=st.integers(1, 6), size=st.sampled_from([2, 4, 6]))
def test_groups_are_whole_and_no_two_images_share_their_noise(groups: int, size: int) -> None:
    # Three groups or more draw one of the four prompts again at some time.
    prompts = draw_prompts([1.0] * 4, [""] * 4, groups, seed=1, epoch=2)
    images = draws(prompts, size, seed=1, epoch=2)
    assert [image.group for image in images] == [i // size for i in range(groups * size)]
    assert len({image.key for image in images}) == len(images)


@given(
    part=st.integers(1, 4),
    updates=st.integers(1, 4),
    world=st.sampled_from([1, 2, 3, 8]),
)
def test_an_update_has_the_same_batches_on_any_number_of_processes(
    part: int, updates: int, world: int
) -> None:
    batches = part * updates * world
    alone = share_out(batches, updates, rank=0, world_size=1)
    assert [number for share in alone for number in share] == list(range(batches))
    ranks = [share_out(batches, updates, rank=r, world_size=world) for r in range(world)]
    for update in range(updates):
        together = [number for share in ranks for number in share[update]]
        assert together == list(alone[update])
        assert {len(share[update]) for share in ranks} == {part}


def test_batches_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="6 batches, 2 updates, 2 processes"):
        share_out(6, 2, rank=0, world_size=2)


def test_a_group_may_share_its_starting_noise_and_nothing_else() -> None:
    prompts = draw_prompts([1.0, 1.0], ["", ""], 3, seed=1, epoch=2)  # one prompt comes twice
    images = draws(prompts, 4, seed=1, epoch=2, group_noise="shared_start")
    starts = {image.group: initial_noise([image.key], (2,), "cpu") for image in images}
    for image in images:
        assert torch.equal(initial_noise([image.key], (2,), "cpu"), starts[image.group])
    assert len({tuple(noise.flatten().tolist()) for noise in starts.values()}) == 3
    steps = [draw([image.key.step(0)], (2,), "cpu").flatten().tolist() for image in images]
    assert len({tuple(noise) for noise in steps}) == len(images)
    own = draws(prompts, 4, seed=1, epoch=2)
    assert [image.key.sample for image in own] == [image.key.sample for image in images]


def test_antithetic_pairs_share_a_start_and_mirror_the_steps() -> None:
    prompts = draw_prompts([1.0, 1.0], ["", ""], 3, seed=1, epoch=2)  # one prompt comes twice
    keys = [i.key for i in draws(prompts, 4, seed=1, epoch=2, group_noise="antithetic_pairs")]
    starts = initial_noise(keys, (5,), "cpu")
    for index in (0, 3):
        noise = step_noise(keys, index, (5,), "cpu")
        assert torch.equal(noise[0::2], -noise[1::2])
        assert len(noise[0::2].unique(dim=0)) == len(keys) // 2
    assert torch.equal(starts[0::2], starts[1::2])
    assert len(starts.unique(dim=0)) == len(keys) // 2
