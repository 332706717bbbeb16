"""One sampling step of a flow model as a Gaussian: pure functions, shared by rollout and training.

Notation (arXiv:2505.05470 writes t for sigma):
    sigma        noise level in [0, 1]; 1 is pure noise, 0 is data
    x_sigma      (1 - sigma) x_0 + sigma eps                                        (eq. 1)
    v            eps - x_0, what the model predicts, so that dx/dsigma = v          (eq. 6)
    dt           sigma_next - sigma, negative: sampling goes from noise to data
    a            noise_level
    std          the FULL standard deviation of x_next given x (sqrt(-dt) included)

Every transition is x_next = mean + std * eps. The three SDEs keep the marginals of the ODE as steps
get small (eq. 7, 8); cps keeps the coefficients of data and noise at steps of any size, which
keeps the marginals where x_0 is certain (a point), and narrows them elsewhere:
    flow_sde   g = a sqrt(sigma / (1 - sigma))                                      (eq. 9)
               mean = x + [v + g^2 / (2 sigma) (x + (1 - sigma) v)] dt
               std  = g sqrt(-dt)
    dance      the same with the constant g = a                     (DanceGRPO, arXiv:2505.07818)
    linear     the same with g = a sigma_max sigma          (the official code for Wan, a = 1)
    cps        std  = sigma_next sin(a pi / 2)                      (Flow-CPS, arXiv:2509.05952)
               mean = (1 - sigma_next) (x - sigma v)
                      + sqrt(sigma_next^2 - std^2) (x + (1 - sigma) v)
    ode        mean = x + v dt, std = 0                                             (eq. 6)

`kl` is the distance of the policy from the reference, per sample, averaged over elements.

With s the full standard deviation of a step and dt = sigma_next - sigma < 0:
    mean       (m - m_ref)^2 (-dt) / (2 s^2)   the official code, whose deviation lacks sqrt(-dt);
                                               beta 0.04 there (0.01 for PickScore)
    mean_dt    (m - m_ref)^2 / (2 s^2)         the exact Gaussian KL (paper, sec. 4.1); beta 0.004
    velocity   (v - v_ref)^2                   independent of the sampler, defined for any step
For ``cps`` the official deviation already is the full one: there official means ``mean_dt``.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainer.types import LogProbForm

Scalar = float | Tensor


@dataclass(frozen=True, slots=True)
class Transition:
    """The Gaussian from which the next latents are drawn."""

    mean: Tensor  # (B, ...), float32 or wider
    std: Tensor  # (B, 1, ...), the full standard deviation; 0 for a deterministic step


@dataclass(frozen=True, slots=True)
class Step:
    """What a transition is computed from; everything in float32 or wider."""

    x: Tensor  # latents at sigma, (B, ...)
    v: Tensor  # predicted velocity, shape of x
    sigma: Tensor  # noise level in (0, 1], (B, 1, ...)
    sigma_next: Tensor  # next noise level in [0, sigma), (B, 1, ...)
    sigma_max: Tensor  # sigmas[1] of the schedule, below 1; (B, 1, ...)
    noise_level: float  # a >= 0; 0 gives the ODE


def _wide(value: Tensor) -> Tensor:
    # bf16 and fp16 overflow or round away the small differences that the ratio is made of.
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _per_sample(value: Scalar, like: Tensor) -> Tensor:
    """Shape a float, a 0-d tensor or a (B,) tensor as (B, 1, ...), in the dtype of ``like``."""
    tensor = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    if tensor.ndim > 1 or (tensor.ndim == 1 and tensor.shape[0] not in (1, like.shape[0])):
        raise ValueError(
            f"sigma must be a number or have shape ({like.shape[0]},), not {tuple(tensor.shape)}"
        )
    return tensor.expand(like.shape[0]).reshape(-1, *(1,) * (like.ndim - 1))


def _langevin(step: Step, diffusion: Tensor) -> Transition:
    sigma, dt = step.sigma, step.sigma_next - step.sigma
    correction = diffusion**2 / (2 * sigma)
    # Grouped as in the official code, so that float32 rounding is the same.
    mean = step.x * (1 + correction * dt) + step.v * (1 + correction * (1 - sigma)) * dt
    return Transition(mean, diffusion * torch.sqrt(-dt))


def flow_sde(step: Step) -> Transition:
    """Flow-GRPO's SDE (eq. 9)."""
    s = step.sigma
    # Infinite at sigma = 1: as in the official code, the denominator (only) has sigma_max there.
    diffusion = torch.sqrt(s / (1 - torch.where(s == 1, step.sigma_max, s))) * step.noise_level
    return _langevin(step, diffusion)


def dance(step: Step) -> Transition:
    """DanceGRPO's SDE: a constant diffusion coefficient."""
    return _langevin(step, torch.full_like(step.sigma, step.noise_level))


def linear(step: Step) -> Transition:
    """An SDE whose noise fades with sigma, so that late steps keep fine detail and motion."""
    return _langevin(step, step.noise_level * step.sigma_max * step.sigma)


def cps(step: Step) -> Transition:
    """Coefficient-preserving sampling; ValueError for a noise level outside [0, 1]."""
    if not 0 <= step.noise_level <= 1:
        raise ValueError(f"cps needs a noise level in [0, 1], not {step.noise_level}")
    x, v, s, s_next = step.x, step.v, step.sigma, step.sigma_next
    std = s_next * math.sin(step.noise_level * math.pi / 2)
    data, noise = x - s * v, x + (1 - s) * v
    kept = torch.sqrt((s_next**2 - std**2).clamp_min(0))
    return Transition((1 - s_next) * data + kept * noise, std)


def ode(step: Step) -> Transition:
    """A deterministic Euler step; ``noise_level`` and ``sigma_max`` are not used."""
    mean = step.x + (step.sigma_next - step.sigma) * step.v
    return Transition(mean, torch.zeros_like(step.sigma))


TRANSITIONS: dict[str, Callable[[Step], Transition]] = {
    "flow_sde": flow_sde,
    "cps": cps,
    "dance": dance,
    "linear": linear,
    "ode": ode,
}


def transition(
    kind: str,
    x: Tensor,
    v: Tensor,
    sigma: Scalar,
    sigma_next: Scalar,
    *,
    noise_level: float,
    sigma_max: Scalar,
) -> Transition:
    """Return the Gaussian of the next latents.

    ``kind`` is a key of ``TRANSITIONS``; the rest is as in ``Step``, with sigmas that are numbers
    or (B,), and x and v of any dtype.

    Raises:
        ValueError: Unknown kind, or sigmas of another shape.
    """
    if kind not in TRANSITIONS:
        raise ValueError(f"unknown transition {kind!r}; one of {', '.join(TRANSITIONS)}")
    x, v = _wide(x), _wide(v)
    s, s_next, s_max = (_per_sample(level, x) for level in (sigma, sigma_next, sigma_max))
    return TRANSITIONS[kind](Step(x, v, s, s_next, s_max, noise_level))


def sample(step: Transition, noise: Tensor) -> Tensor:
    """Draw the next latents, (B, ...), with standard normal ``noise`` of the same shape."""
    return step.mean + step.std * noise


def log_prob(x_next: Tensor, step: Transition, form: LogProbForm = "gaussian") -> Tensor:
    """Log-density of ``x_next`` (B, ...) under a step, averaged over elements; (B,).

    The mean instead of the sum is the official choice; it is why clip ranges are as small as 1e-4.
    Gradients flow through the mean of the step, not into ``x_next``.

    Args:
        x_next: The next latents.
        step: The transition.
        form: ``gaussian`` is the Normal log-density per element. ``squared_error`` is
            -(x_next - mean)^2, without constants and variance, as in the official code for CPS:
            its log-ratio is 2 std^2 times that of ``gaussian``.

    Raises:
        ValueError: Unknown form, or ``gaussian`` for a deterministic step, which has no density.
    """
    error = (_wide(x_next.detach()) - step.mean) ** 2
    if form == "squared_error":
        return -error.flatten(1).mean(1)
    if form != "gaussian":
        raise ValueError(f"unknown log_prob form {form!r}; one of gaussian, squared_error")
    if bool((step.std <= 0).any()):
        raise ValueError("a deterministic step (std = 0) has no log-density; leave it out")
    constant = torch.log(step.std) + 0.5 * math.log(2 * math.pi)
    return (-error / (2 * step.std**2) - constant).flatten(1).mean(1)


def kl(
    form: Literal["mean", "mean_dt", "velocity"],
    step: Transition,
    reference: Transition,
    *,
    dt: Tensor | float,
    v: Tensor,
    v_ref: Tensor,
) -> Tensor:
    """Return the divergence per sample (see the module's head), (B,), float32.

    Args:
        form: ``mean``, ``mean_dt`` or ``velocity``.
        step: The policy's transition.
        reference: The reference model's, from the same latents with the same deviation.
        dt: sigma_next - sigma of the step, a number or (B,); negative.
        v: The policy's velocity, (B, ...).
        v_ref: The reference's velocity.

    Raises:
        ValueError: Unknown form, or a form of the means for a deterministic step.
    """
    if form == "velocity":
        return ((v.float() - v_ref.float()) ** 2).flatten(1).mean(1)
    if form not in ("mean", "mean_dt"):
        raise ValueError(f"unknown KL form {form!r}; one of mean, mean_dt, velocity")
    if bool((step.std <= 0).any()):
        raise ValueError("a deterministic step (std = 0) has no KL of its means; use velocity")
    error = (step.mean - reference.mean) ** 2 / (2 * step.std**2)
    exact = error.flatten(1).mean(1)
    return exact if form == "mean_dt" else exact * -dt
