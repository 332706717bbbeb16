"""Deterministic sampling at fixed seeds, and the statistics of the scores."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.models.base import Conditioning, FlowModel
from trainer.noise import NoiseKey, initial_noise
from trainer.sde import ode

# Evaluation images have an epoch of their own, so their noise never changes during a run.
EVAL_EPOCH = -1


@dataclass(frozen=True, slots=True)
class EvalBatch:
    """Some evaluation images.

    Attributes:
        rows: (prompt index, sample index) of each image.
        images: (n, H, W, 3) uint8 RGB.
    """

    rows: tuple[tuple[int, int], ...]
    images: NDArray[np.uint8]


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
    sigmas = model.sigmas(num_steps, tuple(x.shape[1:]))
    for index in range(num_steps):
        sigma, sigma_next = sigmas[index].to(x.device), sigmas[index + 1].to(x.device)
        v = model.velocity(x, sigma, cond, guidance_scale, negative)
        x = ode(x, v, sigma, sigma_next, noise_level=0.0, sigma_max=1.0).mean
    return x


def generate(
    model: FlowModel,
    prompts: Sequence[tuple[int, str]],
    *,
    resolution_px: int,
    num_steps: int = 40,
    images_per_prompt: int = 4,
    batch_size: int = 16,
    guidance_scale: float = 1.0,
    negative_prompt: str = "",
    seed: int = 0,
) -> Iterator[EvalBatch]:
    """Yield the images of all prompts, batch by batch, prompt by prompt.

    The starting noise belongs to (seed, prompt index, sample index): it is the same at every
    evaluation and whichever part of the prompts a process draws. Put averaged weights in with
    ``Ema.swap``. Scores can be requested for one batch while the next is sampled.

    Args:
        model: With the weights to be judged.
        prompts: (index in the data set, text).
        resolution_px: Side of the square images.
        num_steps: T_eval deterministic Euler steps.
        images_per_prompt: Images of every prompt.
        batch_size: Images sampled at once.
        guidance_scale: Classifier-free guidance; that of training.
        negative_prompt: Used with guidance only.
        seed: Seeds the starting noise.

    Raises:
        ValueError: A count below 1.
    """
    if min(num_steps, images_per_prompt, batch_size) < 1:
        raise ValueError("num_steps, images_per_prompt and batch_size must be at least 1")
    shape = model.latent_shape(resolution_px, resolution_px)
    negative = model.encode_prompts([negative_prompt]) if guidance_scale != 1.0 else None
    jobs = [(index, text, s) for index, text in prompts for s in range(images_per_prompt)]
    for start in range(0, len(jobs), batch_size):
        part = jobs[start : start + batch_size]
        keys = [NoiseKey(seed, EVAL_EPOCH, index, s) for index, _, s in part]
        final = sample_ode(
            model,
            model.encode_prompts([text for _, text, _ in part]),
            initial_noise(keys, shape, model.device),
            num_steps,
            guidance_scale=guidance_scale,
            negative=negative,
        )
        yield EvalBatch(tuple((index, s) for index, _, s in part), model.decode(final).uint8)


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
