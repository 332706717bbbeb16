import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from trainer.algorithm import sde
from trainer.algorithm.sde import kl
from trainer.rollout.config import RolloutConfig

OFFICIAL = {"sde": "flow_sde", "cps": "cps"}


def random_step(kind: str, *, batch: int = 3, noise_level: float = 0.7):
    source = torch.Generator().manual_seed(1)
    x, v = torch.randn(2, batch, 4, 8, 8, generator=source)
    return sde.transition(kind, x, v, 0.8, 0.6, noise_level=noise_level, sigma_max=0.9)


def test_steps_equal_the_official_ones(golden: Path) -> None:
    cases = json.loads((golden / "sde_step.json").read_text())
    assert cases
    for case in cases:
        kind, i = OFFICIAL[case["kind"]], case["step"]
        sigmas = torch.tensor(case["sigmas"])
        x, v, x_next, mean = (
            torch.tensor(case[name]).reshape(case["shape"])
            for name in ("sample", "velocity", "next_sample", "mean")
        )
        step = sde.transition(
            kind, x, v, sigmas[i], sigmas[i + 1],
            noise_level=case["noise_level"], sigma_max=sigmas[1],
        )  # fmt: skip
        torch.testing.assert_close(step.mean, mean, rtol=1e-5, atol=1e-6)
        std = step.std.flatten()
        if kind == "flow_sde":
            std = std / torch.sqrt(sigmas[i] - sigmas[i + 1])
        expected = torch.tensor(case["std"]).flatten().expand_as(std)
        torch.testing.assert_close(std, expected, rtol=1e-5, atol=1e-7)
        density = sde.log_prob(x_next, step, RolloutConfig(kind=kind).form)
        torch.testing.assert_close(density, torch.tensor(case["log_prob"]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["flow_sde", "dance", "linear", "cps"])
def test_without_noise_every_transition_is_euler(kind: str) -> None:
    step, euler = random_step(kind, noise_level=0.0), random_step("ode")
    torch.testing.assert_close(step.mean, euler.mean, rtol=1e-5, atol=1e-6)
    assert not step.std.any()


@pytest.mark.parametrize("kind", ["flow_sde", "dance", "linear", "cps"])
def test_log_prob_is_the_normal_density(kind: str) -> None:
    step = random_step(kind)
    x_next = sde.sample(step, torch.randn(step.mean.shape))
    expected = Normal(step.mean, step.std).log_prob(x_next).flatten(1).mean(1)
    torch.testing.assert_close(sde.log_prob(x_next, step), expected, rtol=1e-5, atol=1e-6)


def test_squared_error_has_the_density_s_direction() -> None:
    step = random_step("cps")
    x_next = sde.sample(step, torch.randn(step.mean.shape))
    scale = 2 * step.std.flatten() ** 2
    gaussian = sde.log_prob(x_next, step) * scale
    plain = sde.log_prob(x_next, step, "squared_error")
    constant = -(torch.log(step.std.flatten()) + 0.5 * math.log(2 * math.pi)) * scale
    torch.testing.assert_close(gaussian - constant, plain, rtol=1e-4, atol=1e-5)


def test_deterministic_steps_have_no_density() -> None:
    for step in (random_step("ode"), random_step("flow_sde", noise_level=0.0)):
        with pytest.raises(ValueError, match="deterministic"):
            sde.log_prob(step.mean, step)
        with pytest.raises(ValueError, match="deterministic"):
            kl("mean_dt", step, step, dt=-0.2, v=step.mean, v_ref=step.mean)


def test_gradient_flows_through_the_mean_only() -> None:
    x, v, x_next = torch.randn(3, 2, 4, 4, requires_grad=True)
    step = sde.transition("flow_sde", x.detach(), v, 0.8, 0.6, noise_level=0.7, sigma_max=0.9)
    (grad_v, grad_next) = torch.autograd.grad(
        sde.log_prob(x_next, step).sum(), [v, x_next], allow_unused=True
    )
    assert grad_v.abs().sum() > 0
    assert grad_next is None


def test_dance_is_the_score_formula() -> None:
    source = torch.Generator().manual_seed(2)
    x, v = torch.randn(2, 2, 5, generator=source, dtype=torch.float64)
    sigma, sigma_next, eta = 0.7, 0.55, 0.3
    clean = x - sigma * v
    score = -(x - (1 - sigma) * clean) / sigma**2
    dt = sigma_next - sigma
    step = sde.transition("dance", x, v, sigma, sigma_next, noise_level=eta, sigma_max=0.9)
    torch.testing.assert_close(step.mean, x + dt * v - 0.5 * eta**2 * score * dt)
    torch.testing.assert_close(step.std.flatten(), torch.full((2,), eta * math.sqrt(-dt)).double())


def test_linear_is_the_official_step_of_wan() -> None:
    """wan_pipeline_with_logprob.py: the deviation runs from sigmas[-1] to sigmas[1] with sigma."""
    source = torch.Generator().manual_seed(3)
    x, v = torch.randn(2, 2, 5, generator=source, dtype=torch.float64)
    sigmas = torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0], dtype=torch.float64)
    for i in range(4):
        sigma, dt = sigmas[i], sigmas[i + 1] - sigmas[i]
        deviation = sigmas[-1] + (sigmas[1] - sigmas[-1]) * sigma
        mean = (
            x * (1 + deviation**2 / (2 * sigma) * dt)
            + v * (1 + deviation**2 * (1 - sigma) / (2 * sigma)) * dt
        )
        step = sde.transition(
            "linear", x, v, sigma, sigmas[i + 1], noise_level=1.0, sigma_max=sigmas[1]
        )
        torch.testing.assert_close(step.mean, mean)
        torch.testing.assert_close(step.std.flatten(), (deviation * (-dt).sqrt()).expand(2))


def test_sigma_per_sample_equals_one_at_a_time() -> None:
    x, v = torch.randn(2, 3, 4, 4)
    sigma, sigma_next = torch.tensor([1.0, 0.8, 0.3]), torch.tensor([0.9, 0.5, 0.0])
    for kind in sde.TRANSITIONS:
        together = sde.transition(kind, x, v, sigma, sigma_next, noise_level=0.5, sigma_max=0.9)
        for i in range(3):
            alone = sde.transition(
                kind, x[i : i + 1], v[i : i + 1], sigma[i], sigma_next[i],
                noise_level=0.5, sigma_max=0.9,
            )  # fmt: skip
            assert torch.equal(together.mean[i], alone.mean[0])
            assert torch.equal(together.std[i], alone.std[0])
    with pytest.raises(ValueError, match="shape"):
        sde.transition("ode", x, v, torch.ones(2), 0.5, noise_level=0, sigma_max=1)


def test_first_step_uses_sigma_max_in_the_denominator_only() -> None:
    x, v = torch.randn(2, 1, 4)
    step = sde.transition("flow_sde", x, v, 1.0, 0.9, noise_level=0.7, sigma_max=0.9)
    assert step.std.item() == pytest.approx(0.7 * math.sqrt(1 / (1 - 0.9)) * math.sqrt(0.1))


def gaussian_velocity(sigma: float, mean: float, spread: float) -> tuple[float, float]:
    """Slope and offset of E[eps - x_0 | x_sigma = x] for x_0 ~ Normal(mean, spread)."""
    variance = (1 - sigma) ** 2 * spread**2 + sigma**2
    slope = (sigma - (1 - sigma) * spread**2) / variance
    return slope, -mean - slope * (1 - sigma) * mean


def propagate(kind: str, sigmas: np.ndarray, mean: float, spread: float, a: float):
    """Mean and variance after all steps, from the exact marginal at the first sigma."""
    m = (1 - sigmas[0]) * mean
    variance = (1 - sigmas[0]) ** 2 * spread**2 + sigmas[0] ** 2
    x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    for sigma, sigma_next in pairwise(sigmas):
        slope, offset = gaussian_velocity(sigma, mean, spread)
        step = sde.transition(
            kind, x, slope * x + offset, sigma, sigma_next, noise_level=a, sigma_max=sigmas[1]
        )
        low, high = step.mean.flatten().tolist()
        m = low + (high - low) * m
        variance = (high - low) ** 2 * variance + step.std[0].item() ** 2
    return m, variance


@pytest.mark.parametrize("kind", ["flow_sde", "dance", "linear", "ode"])
@pytest.mark.parametrize("start", [1.0, 0.95])
def test_sdes_keep_the_marginals_of_the_ode(kind: str, start: float) -> None:
    mean, spread = 0.8, 0.5
    end = 0.3
    m, variance = propagate(kind, np.linspace(start, end, 501), mean, spread, 0.7)
    assert m == pytest.approx((1 - end) * mean, abs=5e-3)
    assert variance == pytest.approx((1 - end) ** 2 * spread**2 + end**2, abs=5e-3)


@pytest.mark.parametrize("kind", ["flow_sde", "dance", "linear"])
def test_smaller_steps_keep_the_marginals_better(kind: str) -> None:
    mean, spread = 0.8, 0.5
    errors = []
    for count in (50, 100, 200):
        _, variance = propagate(kind, np.linspace(0.9, 0.0, count + 1), mean, spread, 0.7)
        errors.append(abs(variance - spread**2))
    assert errors[0] > 1.7 * errors[1] > 1.7 * 1.7 * errors[2]


@pytest.mark.parametrize("steps", [3, 50])
def test_cps_keeps_the_marginals_of_a_point(steps: int) -> None:
    sigmas = np.linspace(1.0, 0.2, steps + 1)
    m, variance = propagate("cps", sigmas, 0.8, 0.0, 0.8)
    assert m == pytest.approx(0.8 * 0.8, abs=1e-9)
    assert variance == pytest.approx(0.04, abs=1e-9)


def test_cps_narrows_what_is_not_a_point_as_documented() -> None:
    m, variance = propagate("cps", np.linspace(1.0, 0.2, 201), 0.8, 0.5, 0.8)
    assert m == pytest.approx(0.8 * 0.8, abs=1e-9)
    assert variance == pytest.approx(0.139, abs=1e-3)


@pytest.mark.parametrize("kind", ["flow_sde", "dance", "linear", "cps"])
def test_kl_is_the_gaussian_divergence(kind: str) -> None:
    step = random_step(kind)
    other = sde.Transition(step.mean + 0.1 * torch.randn(step.mean.shape), step.std)
    v, v_ref = torch.randn(2, *step.mean.shape)
    exact = kl("mean_dt", step, other, dt=-0.2, v=v, v_ref=v_ref)
    expected = kl_divergence(Normal(step.mean, step.std), Normal(other.mean, other.std))
    torch.testing.assert_close(exact, expected.flatten(1).mean(1), rtol=1e-4, atol=1e-7)
    official = kl("mean", step, other, dt=torch.full((3,), -0.2), v=v, v_ref=v_ref)
    torch.testing.assert_close(official, exact * 0.2)
    plain = kl("velocity", step, other, dt=-0.2, v=v, v_ref=v_ref)
    torch.testing.assert_close(plain, ((v - v_ref) ** 2).mean((1, 2, 3)))
    with pytest.raises(ValueError, match="mean_dt"):
        kl("none", step, other, dt=-0.2, v=v, v_ref=v_ref)  # pyright: ignore


def test_official_kl_divides_by_the_deviation_without_dt() -> None:
    x, v, v_ref = torch.randn(3, 2, 4, 4)
    sigma, sigma_next, a = 0.8, 0.6, 0.7
    step, other = (
        sde.transition("flow_sde", x, u, sigma, sigma_next, noise_level=a, sigma_max=0.9)
        for u in (v, v_ref)
    )
    rate = a * math.sqrt(sigma / (1 - sigma))
    expected = ((step.mean - other.mean) ** 2).mean((1, 2)) / (2 * rate**2)
    found = kl("mean", step, other, dt=sigma_next - sigma, v=v, v_ref=v_ref)
    torch.testing.assert_close(found, expected)


@given(
    kind=st.sampled_from(["flow_sde", "dance", "linear", "cps"]),
    sigma=st.floats(0.01, 1.0),
    share=st.floats(0.01, 0.99),
    a=st.floats(0.05, 1.0),
    half=st.booleans(),
)
def test_steps_are_finite(kind: str, sigma: float, share: float, a: float, half: bool) -> None:
    x, v = torch.ones(2, 2, 3, dtype=torch.bfloat16 if half else torch.float32)
    step = sde.transition(kind, x, v, sigma, sigma * share, noise_level=a, sigma_max=0.97)
    assert step.mean.dtype == torch.float32
    assert torch.isfinite(sde.log_prob(step.mean, step)).all()


def test_unknown_names_are_refused() -> None:
    x, step = torch.zeros(1, 2), random_step("cps")
    with pytest.raises(ValueError, match="flow_sde, cps, dance, linear, ode"):
        sde.transition("sde", x, x, 0.5, 0.4, noise_level=0.7, sigma_max=0.9)
    with pytest.raises(ValueError, match="gaussian"):
        sde.log_prob(step.mean, step, "other")  # pyright: ignore
    with pytest.raises(ValueError, match="noise level"):
        sde.transition("cps", x, x, 0.5, 0.4, noise_level=1.1, sigma_max=0.9)
