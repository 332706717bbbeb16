from hypothesis import given
from hypothesis import strategies as st

from trainer.algorithm.windows import window
from trainer.rollout.policy import RolloutConfig, draw_window

ranges = st.tuples(st.integers(0, 6), st.integers(1, 8)).map(lambda pair: (pair[0], sum(pair)))


@given(allowed=ranges, data=st.data(), epoch=st.integers(0, 500))
def test_a_window_is_a_run_of_steps_inside_its_range(allowed, data, epoch) -> None:
    size = data.draw(st.integers(1, allowed[1] - allowed[0]))
    seed, batch = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 99))
    steps = window(allowed, size, seed=seed, epoch=epoch, batch=batch)
    assert list(steps) == list(range(steps[0], steps[0] + size))
    assert allowed[0] <= steps[0] <= steps[-1] < allowed[1]
    assert steps == window(allowed, size, seed=seed, epoch=epoch, batch=batch)


def test_every_start_of_a_window_comes_equally_often() -> None:
    config = RolloutConfig(num_steps=10, window_size=3, window_range=(1, 6))
    starts = [draw_window(config, 3, epoch, batch)[0] for epoch in range(60) for batch in range(10)]
    assert sorted(set(starts)) == [1, 2, 3]
    assert all(160 < starts.count(start) < 240 for start in (1, 2, 3))
