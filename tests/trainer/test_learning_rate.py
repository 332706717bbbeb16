import itertools

import pytest

from trainer.config.settings import OptimSettings
from trainer.run.update import learning_rate


def test_warms_up_stays_and_falls_to_the_floor() -> None:
    optim = OptimSettings(lr=2.0, warmup_updates=4, decay_start=10, decay_updates=20, lr_floor=0.25)
    rates = [learning_rate(optim, update) for update in range(60)]
    assert rates[:4] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert rates[3:11] == pytest.approx([2.0] * 8)
    assert all(a > b for a, b in itertools.pairwise(rates[10:31]))
    assert rates[20] == pytest.approx(2.0 * (0.25 + 0.75 / 2))
    assert rates[30:] == pytest.approx([0.5] * 30)


def test_is_constant_by_default() -> None:
    assert {learning_rate(OptimSettings(lr=0.1), update) for update in (0, 1, 10_000)} == {0.1}


def test_may_fall_to_zero() -> None:
    optim = OptimSettings(lr=1.0, decay_updates=8, lr_floor=0.0)
    assert learning_rate(optim, 8) == pytest.approx(0.0)
