from itertools import groupby

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.algorithm.windows import Strategy, WindowPlan, durations, positions, window
from trainer.rollout.policy import RolloutConfig, draw_window

MOVING = ("progressive", "decay", "exp_decay")

plans = st.builds(
    WindowPlan,
    strategy=st.sampled_from(["random", *MOVING]),
    stride=st.integers(1, 4),
    epochs=st.integers(1, 9),
    roll_back=st.booleans(),
    decay_rate=st.floats(0, 1),
    decay_after=st.integers(0, 8),
)
ranges = st.tuples(st.integers(0, 6), st.integers(1, 8)).map(lambda pair: (pair[0], sum(pair)))


def starts_of(plan: WindowPlan, allowed: tuple[int, int], size: int, epochs: int) -> list[int]:
    return [window(plan, allowed, size, seed=0, epoch=epoch, batch=0)[0] for epoch in range(epochs)]


@given(plan=plans, allowed=ranges, data=st.data(), epoch=st.integers(0, 500))
def test_a_window_is_a_run_of_steps_inside_its_range(plan, allowed, data, epoch) -> None:
    size = data.draw(st.integers(1, allowed[1] - allowed[0]))
    seed, batch = data.draw(st.integers(0, 9)), data.draw(st.integers(0, 99))
    steps = window(plan, allowed, size, seed=seed, epoch=epoch, batch=batch)
    assert list(steps) == list(range(steps[0], steps[0] + size))
    assert allowed[0] <= steps[0] <= steps[-1] < allowed[1]
    assert steps == window(plan, allowed, size, seed=seed, epoch=epoch, batch=batch)
    if plan.strategy != "random":
        assert steps == window(plan, allowed, size, seed=seed + 1, epoch=epoch, batch=batch + 1)


@given(plan=plans.filter(lambda plan: plan.strategy != "random"), allowed=ranges, data=st.data())
def test_a_moving_window_visits_all_positions_for_their_time_and_begins_again(
    plan, allowed, data
) -> None:
    size = data.draw(st.integers(1, allowed[1] - allowed[0]))
    places = positions(plan, allowed[0], allowed[1] - size)
    stays = durations(plan, places, allowed[1])
    assert min(stays) >= 1
    assert list(stays) == sorted(stays, reverse=True)
    cycle = sum(stays)
    seen = starts_of(plan, allowed, size, 2 * cycle)
    assert [(place, len(list(run))) for place, run in groupby(seen[:cycle])] == list(
        zip(places, stays, strict=True)
    )
    again = seen[:cycle] if plan.roll_back else [places[-1]] * cycle
    assert seen[cycle:] == again
    if plan.stride <= size:
        covered = {place + step for place in places for step in range(size)}
        assert covered == set(range(*allowed))


class Mutable:
    """MixGRPO's schedule as it is published: state that is advanced once per iteration."""

    def __init__(self, strategy: Strategy, steps: int, size: int, stride: int, stay: int) -> None:
        self.strategy, self.last, self.end = strategy, steps - size, steps
        self.stride, self.stay = stride, stay
        self.start = self.count = 0

    def advance(self) -> None:
        limit: float = self.stay
        if self.strategy == "decay":
            share = self.start / self.end
            least = max(1, self.stay // 4)
            limit = max(least, int(self.stay * (1 - share) + least * share))
        elif self.strategy == "exp_decay":
            limit = float(torch.tensor(-0.3 * max(0, self.start - 2)).exp() * self.stay)
        self.count += 1
        if self.count >= limit:
            self.count, self.start = 0, self.start + self.stride
        if self.start > self.last:
            self.start = 0


@pytest.mark.parametrize("strategy", MOVING)
@pytest.mark.parametrize(("size", "stride", "stay"), [(4, 1, 5), (2, 2, 12), (3, 1, 1)])
def test_moving_windows_are_mixgrpo_s(
    strategy: Strategy, size: int, stride: int, stay: int
) -> None:
    plan = WindowPlan(strategy, stride=stride, epochs=stay, decay_rate=0.3, decay_after=2)
    reference = Mutable(strategy, 10, size, stride, stay)
    expected = []
    for _ in range(300):
        expected.append(reference.start)
        reference.advance()
    assert starts_of(plan, (0, 10), size, 300) == expected


def test_what_decays_stays_shorter_the_later() -> None:
    places = tuple(range(10))
    assert durations(WindowPlan("progressive", epochs=20), places, 12) == (20,) * 10
    decay = durations(WindowPlan("decay", epochs=20), places, 12)
    assert decay[0] == 20
    assert decay[9] == 8  # a quarter of the way back from 5
    late = durations(WindowPlan("exp_decay", epochs=20, decay_rate=0.5, decay_after=6), places, 12)
    assert late == (20,) * 7 + (13, 8, 5)


def test_every_start_of_a_random_window_comes_equally_often() -> None:
    config = RolloutConfig(num_steps=10, window_size=3, window_range=(1, 6))
    starts = [draw_window(config, 3, epoch, batch)[0] for epoch in range(60) for batch in range(10)]
    assert sorted(set(starts)) == [1, 2, 3]
    assert all(160 < starts.count(start) < 240 for start in (1, 2, 3))


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "sliding"},
        {"stride": 0},
        {"epochs": 0},
        {"decay_rate": -1},
        {"decay_after": -1},
    ],
)
def test_impossible_plans_are_refused(changes) -> None:
    with pytest.raises(ValueError, match="window"):
        WindowPlan(**changes)
