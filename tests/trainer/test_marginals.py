"""Many particles through every transition, against the distributions that the ODE has.

The data are a mixture of three Gaussians in the plane, for which the velocity
E[eps - x_0 | x_sigma = x] is known in closed form. Samples after the steps are compared with exact
samples of x_sigma by the Kolmogorov-Smirnov test, on projections onto several directions.
"""

import math

import pytest
import torch
from scipy.stats import ks_2samp
from torch import Tensor

from trainer.algorithm import sde

CENTRES = torch.tensor([[-1.2, 0.0], [0.8, 1.0], [0.8, -0.9]], dtype=torch.float64)
SHARES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
SPREAD = 0.25
COUNT = 8000
DIRECTIONS = [(math.cos(angle), math.sin(angle)) for angle in (0.0, 0.9, 1.8)]
CHECKED = (0.7, 0.4, 0.1)


def velocity(x: Tensor, sigma: float) -> Tensor:
    """Component by component the Gaussian's linear velocity, weighted by the posterior."""
    variance = (1 - sigma) ** 2 * SPREAD**2 + sigma**2
    offset = x[:, None] - (1 - sigma) * CENTRES
    posterior = torch.softmax(SHARES.log() - (offset**2).sum(-1) / (2 * variance), dim=1)
    slope = (sigma - (1 - sigma) * SPREAD**2) / variance
    return (posterior[:, :, None] * (slope * offset - CENTRES)).sum(1)


def exact(sigma: float, source: torch.Generator) -> Tensor:
    component = torch.multinomial(SHARES, COUNT, replacement=True, generator=source)
    noise = torch.randn(2, COUNT, 2, generator=source, dtype=torch.float64)
    clean = CENTRES[component] + SPREAD * noise[0]
    return (1 - sigma) * clean + sigma * noise[1]


def distances(kind: str, steps: int, a: float, seed: int = 0) -> tuple[float, float]:
    """Largest Kolmogorov-Smirnov statistic over levels and directions, and smallest p-value."""
    source = torch.Generator().manual_seed(seed)
    sigmas = torch.linspace(0.98, 0.1, steps + 1, dtype=torch.float64)
    marks = {int((sigmas - sigma).abs().argmin()) for sigma in CHECKED}
    x, statistics, p_values = exact(float(sigmas[0]), source), [], []
    for index in range(steps):
        sigma = float(sigmas[index])
        step = sde.transition(
            kind, x, velocity(x, sigma), sigmas[index], sigmas[index + 1],
            noise_level=a, sigma_max=sigmas[1],
        )  # fmt: skip
        x = sde.sample(step, torch.randn(x.shape, generator=source, dtype=torch.float64))
        if index + 1 not in marks:
            continue
        drawn = exact(float(sigmas[index + 1]), source)
        for direction in DIRECTIONS:
            onto = torch.tensor(direction, dtype=torch.float64)
            found = ks_2samp((x @ onto).numpy(), (drawn @ onto).numpy())
            statistics.append(float(found.statistic))  # pyright: ignore
            p_values.append(float(found.pvalue))  # pyright: ignore
    assert len(statistics) == len(marks) * len(DIRECTIONS) == 9
    return max(statistics), min(p_values)


@pytest.mark.parametrize("kind", ["ode", "flow_sde", "dance", "linear"])
def test_the_error_falls_with_the_steps_until_the_test_sees_none(kind: str) -> None:
    coarse, middle, fine = (distances(kind, steps, 0.7) for steps in (4, 12, 100))
    assert coarse[0] > 1.5 * middle[0]
    assert middle[0] > 1.5 * fine[0]
    # Nine tests on 8,000 samples each, at the 0.1 % level: a statistic of 0.031.
    assert coarse[1] < 1e-6
    assert fine[1] > 1e-3


def test_cps_keeps_another_distribution_however_many_steps() -> None:
    """The documented exception: no discretisation of an SDE, and its error does not vanish."""
    found = [distances("cps", steps, 0.8) for steps in (50, 150)]
    assert all(0.05 < statistic < 0.1 for statistic, _ in found)
    assert all(p_value < 1e-6 for _, p_value in found)
