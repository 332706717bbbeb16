from hypothesis import given
from hypothesis import strategies as st

from trainer.rollout.policy import RolloutConfig, draw_window


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
