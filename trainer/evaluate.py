"""Deterministic sampling at fixed seeds, and the statistics of the scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.models.base import Conditioning, FlowModel
from trainer.sde import ode

# Evaluation images have an epoch of their own, so their noise never changes during a run.
EVAL_EPOCH = -1


@torch.no_grad()
def sample_ode(
    model: FlowModel,
    cond: Conditioning,
    x: Tensor,
    num_steps: int,
    *,
    guidance_scale: float = 1.0,
    negative: Conditioning | None = None,
) -> Tensor:
    """Integrate starting noise (B, ...) to final latents by Euler steps."""
    guidance = Guidance(guidance_scale, negative)
    return _integrate(model, cond, x, num_steps, guidance, ())[0]


@torch.no_grad()
def sample_and_compare(
    model: FlowModel,
    cond: Conditioning,
    x: Tensor,
    num_steps: int,
    *,
    compared_steps: int,
    guidance_scale: float = 1.0,
    negative: Conditioning | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample as `sample_ode` does, and measure the distance to the base model on the way.

    The distance of an image is (v - v_base)^2, averaged over elements and over steps that are
    spread evenly along its trajectory: `trainer.kl`'s form `velocity`. Up to the weight of each
    step it is the KL between the two sampling processes. Every step costs one more forward pass.

    Args:
        model: The policy, which has a reference.
        cond: B encoded prompts.
        x: Starting noise (B, ...).
        num_steps: Euler steps.
        compared_steps: At how many of them, at least 1 and at most all; more take all.
        guidance_scale: Classifier-free guidance of both models.
        negative: Used with guidance only.

    Returns:
        The final latents, and the distances (B,), float32, exactly 0 for the base itself.
    """
    at = spread_steps(num_steps, compared_steps)
    return _integrate(model, cond, x, num_steps, Guidance(guidance_scale, negative), at)


def spread_steps(num_steps: int, count: int) -> tuple[int, ...]:
    """`count` of the steps 0 to num_steps - 1, evenly, each once; all if there are fewer."""
    taken = min(num_steps, count)
    return tuple(int((place + 0.5) * num_steps / taken) for place in range(taken))


@dataclass(frozen=True, slots=True)
class Guidance:
    """Classifier-free guidance: its scale, and what it moves away from (unless the scale is 1)."""

    scale: float
    negative: Conditioning | None


def _integrate(
    model: FlowModel,
    cond: Conditioning,
    x: Tensor,
    num_steps: int,
    guidance: Guidance,
    compared: Sequence[int],
) -> tuple[Tensor, Tensor]:
    sigmas = model.sigmas(num_steps, tuple(x.shape[1:]))
    distance = torch.zeros(len(x), device=x.device)
    for index in range(num_steps):
        sigma, sigma_next = sigmas[index].to(x.device), sigmas[index + 1].to(x.device)
        v = model.velocity(x, sigma, cond, guidance.scale, guidance.negative)
        if index in compared:
            with model.reference():
                base = model.velocity(x, sigma, cond, guidance.scale, guidance.negative)
            distance += ((v - base) ** 2).flatten(1).mean(1) / len(compared)
        x = ode(x, v, sigma, sigma_next, noise_level=0.0, sigma_max=1.0).mean
    return x, distance


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % bootstrap interval; ``count`` images were scored."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Statistics of one score.

    Attributes:
        overall: Over all images.
        mean_of_groups: Mean of the groups' means (GenEval's headline number).
        groups: Per group.
        failed: Images without a score; they are in no mean.
    """

    overall: Estimate
    mean_of_groups: Estimate
    groups: Mapping[str, Estimate]
    failed: int


def _resampled_means(
    totals: NDArray[np.float64], counts: NDArray[np.float64], seed: int, resamples: int
) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, len(totals), size=(resamples, len(totals)))
    return totals[rows].sum(1) / counts[rows].sum(1)


def _estimate(mean: float, means: NDArray[np.float64], count: int) -> Estimate:
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(float(mean), float(low), float(high), count)


def summarise(
    scores: Sequence[float | None],
    prompt_index: Sequence[int],
    groups: Sequence[str],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Summary:
    """Means with 95 % intervals by bootstrap over prompts.

    Images of one prompt are not independent, so prompts are drawn, with all their images.

    Args:
        scores: One per image; None where scoring failed.
        prompt_index: The prompt of each image.
        groups: The group of each prompt.
        resamples: Bootstrap draws.
        seed: Seeds them.

    Raises:
        ValueError: Lengths that differ, or no score at all.
    """
    if len(scores) != len(prompt_index):
        raise ValueError(f"{len(scores)} scores for {len(prompt_index)} images")
    totals, counts = np.zeros(len(groups)), np.zeros(len(groups))
    for score, prompt in zip(scores, prompt_index, strict=True):
        if score is not None:
            totals[prompt] += score
            counts[prompt] += 1
    scored = counts > 0
    if not scored.any():
        raise ValueError("not one image has a score")
    estimates: dict[str, Estimate] = {}
    draws: list[NDArray[np.float64]] = []
    for place, name in enumerate(sorted(set(groups))):
        rows = scored & np.array([group == name for group in groups])
        if rows.any():
            means = _resampled_means(totals[rows], counts[rows], seed + 1 + place, resamples)
            draws.append(means)
            mean = totals[rows].sum() / counts[rows].sum()
            estimates[name] = _estimate(mean, means, int(counts[rows].sum()))
    total = int(counts.sum())
    everything = _resampled_means(totals[scored], counts[scored], seed, resamples)
    middle = float(np.mean([item.mean for item in estimates.values()]))
    return Summary(
        overall=_estimate(totals.sum() / total, everything, total),
        mean_of_groups=_estimate(middle, np.mean(draws, axis=0), total),
        groups=estimates,
        failed=len(scores) - total,
    )
