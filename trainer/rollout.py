"""Sampling with a window of stochastic steps, and the same step again for training.

``policy_step`` is the one place where a step is computed. The rollout and the replay both call it
with the same tensors in the same batches, which is why the first ratio of an epoch is exactly 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainer.models.base import Conditioning, FlowModel
from trainer.noise import NoiseKey, draw, generator, initial_noise
from trainer.sde import (
    OFFICIAL_LOG_PROB,
    TRANSITIONS,
    LogProbForm,
    Transition,
    log_prob,
    sample,
    transition,
)


@dataclass(frozen=True, slots=True)
class RolloutConfig:
    """How images are sampled during training.

    Attributes:
        num_steps: T_train, the number of sampling steps (>= 2).
        kind: Transition of the stochastic steps, a key of ``TRANSITIONS`` but ``ode``.
        noise_level: a; 0.7 for SD3 with flow_sde, 0.8 with cps.
        window_size: Number of consecutive stochastic steps; 0 takes all steps but the last.
        window_range: The window lies in [first, end); None is (0, num_steps - 1).
        guidance_scale: Classifier-free guidance; 1 needs no second forward.
        log_prob_form: None takes the official form of ``kind``.
        keep_means: Store the transition means (GRPO-Guard needs them).
    """

    num_steps: int = 10
    kind: str = "flow_sde"
    noise_level: float = 0.7
    window_size: int = 0
    window_range: tuple[int, int] | None = None
    guidance_scale: float = 1.0
    log_prob_form: LogProbForm | None = None
    keep_means: bool = False

    def __post_init__(self) -> None:
        if self.num_steps < 2:
            raise ValueError(f"num_steps must be at least 2, not {self.num_steps}")
        if self.kind not in TRANSITIONS or self.kind == "ode":
            kinds = ", ".join(name for name in TRANSITIONS if name != "ode")
            raise ValueError(f"kind must be one of {kinds}, not {self.kind!r}")
        if self.noise_level <= 0:
            raise ValueError("noise_level must be positive: a deterministic policy has no ratio")
        if self.kind == "cps" and self.noise_level > 1:
            raise ValueError(f"cps needs a noise level of at most 1, not {self.noise_level}")
        first, end = self.allowed
        if not 0 <= first < end <= self.num_steps:
            raise ValueError(f"window_range {(first, end)} is not inside 0..{self.num_steps}")
        if not 0 <= self.window_size <= end - first:
            raise ValueError(f"window_size {self.window_size} does not fit into {(first, end)}")
        if self.kind == "cps" and end == self.num_steps:
            raise ValueError("the last step of cps is deterministic; end the window before it")

    @property
    def allowed(self) -> tuple[int, int]:
        """First step and end of the range that the window lies in."""
        return self.window_range or (0, self.num_steps - 1)

    @property
    def form(self) -> LogProbForm:
        """The form of log-probability in use."""
        return self.log_prob_form or OFFICIAL_LOG_PROB[self.kind]


def draw_window(config: RolloutConfig, seed: int, epoch: int, batch: int = 0) -> tuple[int, ...]:
    """The stochastic steps of one batch.

    One window per batch, the same on every process that names the same batch: windows per image
    destroy the comparison inside a group.
    """
    first, end = config.allowed
    size = config.window_size or end - first
    source = generator("window", seed, epoch, batch)
    start = int(torch.randint(first, end - size + 1, (1,), generator=source))
    return tuple(range(start, start + size))


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """What training needs of B sampled images with a window of W steps.

    Attributes:
        trajectory: (B, W + 1, ...) float32, latents before each window step and after the last.
        log_probs: (B, W) float32 of the sampling policy.
        steps: The W step indices, consecutive.
        sigmas: (num_steps + 1,) float32 on the CPU.
        final: (B, ...) latents of the finished images.
        means: (B, W, ...) transition means, or None.
    """

    trajectory: Tensor
    log_probs: Tensor
    steps: tuple[int, ...]
    sigmas: Tensor
    final: Tensor
    means: Tensor | None = None

    def __len__(self) -> int:
        return self.final.shape[0]

    def select(self, rows: Tensor | Sequence[int]) -> "RolloutBatch":
        """Some images of the batch; note that other batch sizes round differently (``refresh``)."""
        index = torch.as_tensor(rows, dtype=torch.long, device=self.final.device)
        return replace(
            self,
            trajectory=self.trajectory.index_select(0, index),
            log_probs=self.log_probs.index_select(0, index),
            final=self.final.index_select(0, index),
            means=None if self.means is None else self.means.index_select(0, index),
        )

    def to(self, device: torch.device | str) -> "RolloutBatch":
        """Move everything but the schedule."""
        return replace(
            self,
            trajectory=self.trajectory.to(device),
            log_probs=self.log_probs.to(device),
            final=self.final.to(device),
            means=None if self.means is None else self.means.to(device),
        )


@dataclass(frozen=True, slots=True)
class PolicyStep:
    """One evaluated step.

    Attributes:
        log_prob: (B,) of the given next latents; None when none were given.
        transition: Mean (B, ...) and full standard deviation (B, 1, ...).
        v: (B, ...) velocity.
        dt: (B,) sigma_next - sigma.
    """

    log_prob: Tensor | None
    transition: Transition
    v: Tensor
    dt: Tensor


def policy_step(
    model: FlowModel,
    x: Tensor,
    steps: Tensor,
    cond: Conditioning,
    config: RolloutConfig,
    *,
    sigmas: Tensor,
    negative: Conditioning | None = None,
    x_next: Tensor | None = None,
    kind: str | None = None,
) -> PolicyStep:
    """Evaluate the model and the transition at one step per image.

    Args:
        model: The policy (or, inside ``model.reference()``, the reference).
        x: (B, ...) latents before the step.
        steps: (B,) long, step index per image, on the CPU.
        cond: B encoded prompts.
        config: Transition, noise level, guidance.
        sigmas: (num_steps + 1,) schedule on the CPU.
        negative: One or B encoded negative prompts; needed when guidance is not 1.
        x_next: (B, ...) latents after the step, to be given a log-probability.
        kind: Replaces ``config.kind`` (``ode`` outside the window).
    """
    sigma, sigma_next = sigmas[steps].to(x.device), sigmas[steps + 1].to(x.device)
    v = model.velocity(x, sigma, cond, config.guidance_scale, negative)
    step = transition(
        kind or config.kind,
        x,
        v,
        sigma,
        sigma_next,
        noise_level=config.noise_level,
        sigma_max=sigmas[1].item(),
    )
    density = None if x_next is None else log_prob(x_next, step, config.form)
    return PolicyStep(density, step, v, sigma_next - sigma)


@torch.no_grad()
def rollout(
    model: FlowModel,
    cond: Conditioning,
    keys: Sequence[NoiseKey],
    config: RolloutConfig,
    *,
    latent_shape: tuple[int, ...],
    window: Sequence[int],
    negative: Conditioning | None = None,
) -> RolloutBatch:
    """Sample a batch of images.

    Args:
        model: The policy.
        cond: B encoded prompts.
        keys: B noise keys, one per image.
        config: The sampling settings.
        latent_shape: ``model.latent_shape(height_px, width_px)``.
        window: The stochastic steps, from ``draw_window``; the others are Euler steps.
        negative: See ``policy_step``.

    Returns:
        The record for training; decode ``final`` for the images.

    Raises:
        ValueError: Sizes that differ, or a window that is empty or not consecutive.
    """
    if len(keys) != len(cond):
        raise ValueError(f"{len(keys)} noise keys for {len(cond)} prompts")
    chosen = tuple(window)
    if not chosen or chosen != tuple(range(chosen[0], chosen[0] + len(chosen))):
        raise ValueError(f"the window must be consecutive steps, not {chosen}")
    if chosen[0] < 0 or chosen[-1] >= config.num_steps:
        raise ValueError(f"the window {chosen} is not inside {config.num_steps} steps")
    sigmas = model.sigmas(config.num_steps, latent_shape)
    x = initial_noise(keys, latent_shape, model.device)
    kept: list[Tensor] = []
    log_probs: list[Tensor] = []
    means: list[Tensor] = []
    for index in range(config.num_steps):
        stochastic = index in chosen
        rows = torch.full((len(keys),), index)
        kind = config.kind if stochastic else "ode"
        step = policy_step(
            model, x, rows, cond, config, sigmas=sigmas, negative=negative, kind=kind
        )
        if stochastic:
            noise = draw([key.step(index) for key in keys], latent_shape, model.device)
            x_next = sample(step.transition, noise)
            kept.append(x)
            log_probs.append(log_prob(x_next, step.transition, config.form))
            means.append(step.transition.mean)
            if index == chosen[-1]:
                kept.append(x_next)
        else:
            x_next = step.transition.mean
        x = x_next
    return RolloutBatch(
        trajectory=torch.stack(kept, 1),
        log_probs=torch.stack(log_probs, 1),
        steps=chosen,
        sigmas=sigmas,
        final=x,
        means=torch.stack(means, 1) if config.keep_means else None,
    )


def recompute(
    model: FlowModel,
    batch: RolloutBatch,
    positions: Sequence[int],
    cond: Conditioning,
    config: RolloutConfig,
    *,
    negative: Conditioning | None = None,
) -> PolicyStep:
    """Evaluate stored steps again, with gradients where they are enabled.

    One position repeats the rollout's own forward pass, to the bit. Several are folded into one
    batch of len(positions) * B rows, position by position; that is faster for small batches, but
    a different batch size rounds differently, so pass the batch through ``refresh`` first.

    Args:
        model: The policy, or the reference inside ``model.reference()``.
        batch: The rollout, B images.
        positions: Indices into ``batch.steps``.
        cond: B encoded prompts.
        config: The settings of the rollout.
        negative: One or B encoded negative prompts.

    Returns:
        Tensors of len(positions) * B rows; ``flat_log_probs`` gives the old ones in this order.
    """
    count, repeats = len(batch), len(positions)
    x = torch.cat([batch.trajectory[:, place] for place in positions])
    x_next = torch.cat([batch.trajectory[:, place + 1] for place in positions])
    steps = torch.tensor([batch.steps[place] for place in positions]).repeat_interleave(count)
    if repeats > 1:
        cond = Conditioning.cat([cond] * repeats)
        if negative is not None and len(negative) > 1:
            negative = Conditioning.cat([negative] * repeats)
    return policy_step(
        model, x, steps, cond, config, sigmas=batch.sigmas, negative=negative, x_next=x_next
    )


def flat_log_probs(batch: RolloutBatch, positions: Sequence[int]) -> Tensor:
    """The stored log-probabilities in the row order of ``recompute``."""
    return torch.cat([batch.log_probs[:, place] for place in positions])


def chunks(total: int, size: int) -> Iterator[tuple[int, ...]]:
    """Split 0..total-1 into consecutive runs of at most ``size``."""
    for start in range(0, total, max(size, 1)):
        yield tuple(range(start, min(start + size, total)))


@torch.no_grad()
def refresh(
    model: FlowModel,
    batch: RolloutBatch,
    cond: Conditioning,
    config: RolloutConfig,
    *,
    fold: int = 1,
    negative: Conditioning | None = None,
) -> RolloutBatch:
    """Recompute the old log-probabilities (and means) in the batching that training will use.

    To be called before the first update of an epoch when training uses another batch size than
    the rollout, or folds ``fold`` steps into one batch; it costs one forward pass per step.
    """
    rows = [
        recompute(model, batch, places, cond, config, negative=negative)
        for places in chunks(len(batch.steps), fold)
    ]
    shape = (len(batch.steps), len(batch))
    log_probs = torch.cat([row.log_prob for row in rows if row.log_prob is not None])
    means = None
    if batch.means is not None:
        flat = torch.cat([row.transition.mean for row in rows])
        means = flat.reshape(*shape, *flat.shape[1:]).transpose(0, 1).contiguous()
    return replace(batch, log_probs=log_probs.reshape(shape).T.contiguous(), means=means)
