"""The records of a rollout, and the one place where a step of the policy is computed.

Sampling (`trainer.rollout.rollout`) and training (`recompute`) both call `policy_step` with the
same tensors in the same batches. Log-probabilities are then equal to the bit, so that the first
ratio of an epoch is exactly 1 (on one device and thread count; the model stays in eval mode).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainer.algorithm.sde import Transition, log_prob, transition
from trainer.models.base import Conditioning
from trainer.models.model import FlowModel
from trainer.rollout.config import RolloutConfig
from trainer.rollout.noise import NoiseKey, generator


def draw_window(
    config: RolloutConfig, seed: int, epoch: int, group: int | None = None
) -> tuple[int, ...]:
    """The stochastic steps of an epoch: a run of consecutive ones, drawn anew for every epoch.

    It is the same for all images of the epoch (Flow-GRPO-Fast draws one per batch), or of a
    ``group`` (Flash-GRPO): a reward depends on where the noise is added, and is compared within
    groups. ``window_size`` steps, or all that are allowed; none for ``ode``.
    """
    if config.kind == "ode":
        return ()
    first, end = config.allowed
    size = config.window_size or end - first
    source = generator("window", seed, epoch, *(() if group is None else (group,)))
    start = int(torch.randint(first, end - size + 1, (1,), generator=source))
    return tuple(range(start, start + size))


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """What training needs of B sampled images with a window of W steps."""

    trajectory: Tensor  # (B, W + 1, ...) float32, latents before each window step, after the last
    log_probs: Tensor  # (B, W) float32 of the sampling policy
    steps: tuple[int, ...]  # the W step indices, consecutive
    sigmas: Tensor  # (num_steps + 1,) float32 on the CPU
    final: Tensor  # (B, ...) latents of the finished images
    keys: tuple[NoiseKey, ...]  # B; losses draw their random numbers from them too
    means: Tensor | None = None  # (B, W, ...) of the transitions, if kept

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
            keys=tuple(self.keys[row] for row in index.tolist()),
            means=None if self.means is None else self.means.index_select(0, index),
        )

    def keep_finite(self, finite: Tensor) -> "RolloutBatch":
        """Zeros instead of the images where ``finite`` (B,) is False.

        No loss counts an image without a score, but NaN times zero is NaN.
        """
        if bool(finite.all()):
            return self

        def cleared(value: Tensor) -> Tensor:
            return torch.where(
                finite.view(-1, *[1] * (value.dim() - 1)), value, value.new_zeros(())
            )

        return replace(
            self,
            trajectory=cleared(self.trajectory),
            log_probs=cleared(self.log_probs),
            final=cleared(self.final),
            means=None if self.means is None else cleared(self.means),
        )


@dataclass(frozen=True, slots=True)
class PolicyStep:
    log_prob: Tensor | None  # (B,) of the given next latents; None if none were given
    transition: Transition  # mean (B, ...) and full standard deviation (B, 1, ...)
    v: Tensor  # (B, ...) velocity
    dt: Tensor  # (B,) sigma_next - sigma


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


def recompute(
    model: FlowModel,
    batch: RolloutBatch,
    place: int,
    cond: Conditioning,
    config: RolloutConfig,
    *,
    negative: Conditioning | None = None,
) -> PolicyStep:
    """Evaluate the step ``batch.steps[place]`` again, with gradients where they are enabled.

    With the batch that was sampled this repeats the rollout's own forward pass, to the bit. Other
    batch sizes round differently: pass such a batch through ``refresh`` first. Arguments are as in
    ``policy_step``.
    """
    return policy_step(
        model,
        batch.trajectory[:, place],
        torch.full((len(batch),), batch.steps[place]),
        cond,
        config,
        sigmas=batch.sigmas,
        negative=negative,
        x_next=batch.trajectory[:, place + 1],
    )


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
    negative: Conditioning | None = None,
) -> RolloutBatch:
    """Recompute the old log-probabilities (and means) in the batching that training will use.

    To be called before the first update of an epoch when training uses another batch size or
    guidance than the rollout; it costs one forward pass per step.
    """
    steps = [
        recompute(model, batch, place, cond, config, negative=negative)
        for place in range(len(batch.steps))
    ]
    log_probs = torch.stack([step.log_prob for step in steps if step.log_prob is not None], 1)
    means = None
    if batch.means is not None:
        means = torch.stack([step.transition.mean for step in steps], 1)
    return replace(batch, log_probs=log_probs, means=means)
