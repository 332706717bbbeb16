from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.noise import draw, initial_noise
from trainer.sampler import draw_prompts, draws


@given(
    weights=st.lists(st.sampled_from([0.0, 1.0, 3.0]), min_size=2, max_size=9),
    count=st.integers(1, 20),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 99),
)
def test_draws_depend_on_seed_and_epoch_only_and_avoid_repetition(
    weights: list[float], count: int, seed: int, epoch: int
) -> None:
    weights[0] = 1.0
    chosen = draw_prompts(weights, count, seed=seed, epoch=epoch)
    assert chosen == draw_prompts(weights, count, seed=seed, epoch=epoch)
    assert len(chosen) == count
    assert all(weights[index] > 0 for index in chosen)
    times = Counter(chosen).values()
    available = sum(weight > 0 for weight in weights)
    assert max(times) == -(-count // available)


@given(
    groups=st.integers(1, 6),
    size=st.sampled_from([2, 4, 6]),
    world=st.sampled_from([1, 2]),
)
def test_processes_share_out_the_groups_without_loss(groups: int, size: int, world: int) -> None:
    prompts = draw_prompts([1.0] * 4, groups, seed=1, epoch=2)
    whole = draws(prompts, size, seed=1, epoch=2)
    parts = [
        image
        for rank in range(world)
        for image in draws(prompts, size, seed=1, epoch=2, rank=rank, world_size=world)
    ]
    assert parts == whole
    assert Counter(image.group for image in whole) == dict.fromkeys(range(groups), size)
    # No two images share their noise, not even those of a prompt that was drawn twice.
    assert len({image.key for image in whole}) == len(whole)


def test_a_group_may_share_its_starting_noise_and_nothing_else() -> None:
    prompts = draw_prompts([1.0, 1.0], 3, seed=1, epoch=2)  # one prompt comes twice
    images = draws(prompts, 4, seed=1, epoch=2, shared_noise=True)
    starts = {image.group: initial_noise([image.key], (2,), "cpu") for image in images}
    for image in images:
        assert torch.equal(initial_noise([image.key], (2,), "cpu"), starts[image.group])
    assert len({tuple(noise.flatten().tolist()) for noise in starts.values()}) == 3
    steps = [draw([image.key.step(0)], (2,), "cpu").flatten().tolist() for image in images]
    assert len({tuple(noise) for noise in steps}) == len(images)
    own = draws(prompts, 4, seed=1, epoch=2)
    assert [image.key.sample for image in own] == [image.key.sample for image in images]


def test_weights_decide_how_often_a_prompt_comes() -> None:
    times = Counter(
        index for epoch in range(400) for index in draw_prompts([3, 1], 1, seed=0, epoch=epoch)
    )
    assert 0.68 < times[0] / 400 < 0.82
