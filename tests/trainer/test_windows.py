from hypothesis import given
from hypothesis import strategies as st

from trainer.rollout.config import RolloutConfig
from trainer.rollout.policy import draw_window


@given(first=st.integers(0, 6), length=st.integers(1, 8), data=st.data(), epoch=st.integers(0, 500))
def test_a_window_is_a_run_of_steps_inside_its_range(first, length, data, epoch) -> None:
    end, size = first + length, data.draw(st.integers(1, length))
    config = RolloutConfig(num_steps=15, window_size=size, window_range=(first, end))
    seed = data.draw(st.integers(0, 9))
    steps = draw_window(config, seed, epoch)
    assert list(steps) == list(range(steps[0], steps[0] + size))
    assert first <= steps[0] <= steps[-1] < end
    assert steps == draw_window(config, seed, epoch)


def test_every_start_of_a_window_comes_equally_often() -> None:
    config = RolloutConfig(num_steps=10, window_size=3, window_range=(1, 6))
    starts = [draw_window(config, seed, epoch)[0] for epoch in range(60) for seed in range(10)]
    assert sorted(set(starts)) == [1, 2, 3]
    assert all(160 < starts.count(start) < 240 for start in (1, 2, 3))


def test_windows_of_groups_are_their_own_and_come_equally_often() -> None:
    config = RolloutConfig(num_steps=20, window_size=1, window_range=(0, 10))
    found = [
        [draw_window(config, 3, epoch, group)[0] for group in range(20)] for epoch in range(50)
    ]
    assert found[7] == [draw_window(config, 3, 7, group)[0] for group in range(20)]
    assert all(len(set(starts)) > 1 for starts in found)
    every = [start for starts in found for start in starts]
    assert all(60 < every.count(start) < 140 for start in range(10))
