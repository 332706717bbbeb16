"""A policy as a run has it, from a preset: sampling, decoding and updating of single batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import machine
from benchmarks.gpu.record import Part, Timed
from trainer.algorithm.losses import TrainBatch
from trainer.config.load import load
from trainer.config.settings import Settings
from trainer.models.base import Conditioning
from trainer.models.precision import resolve
from trainer.parallel.sharding import prepare_networks
from trainer.parallel.world import World, setup_torch
from trainer.rollout.noise import NoiseKey
from trainer.rollout.policy import RolloutBatch, draw_window
from trainer.rollout.rollout import rollout
from trainer.run.inputs import load_model
from trainer.run.update import Updater

PROMPT = "a photo of {} red cars and a green bench in front of a house by the sea"
# What a run of a few thousand parameters on a CPU differs in.
TINY = {
    "model.lora_rank": "4",
    "model.dtype": "float32",
    "model.max_sequence_length": "16",
    "sampling.num_steps": "4",
    "sampling.resolution_px": "32",
    "sampling.window_end": "0",
    "batch.rollout_batch_size": "2",
    "batch.images_per_prompt": "2",
    "batch.prompts_per_epoch": "2",
}
ONE_GPU = ("batch.prompts_per_epoch=8", "batch.images_per_prompt=8", "batch.rollout_batch_size=8")


def settings(part: Part, preset: str, *overrides: str) -> Settings:
    """A shipped preset on this device, with changes."""
    if not part.tiny:
        return load(preset, [f"run.device={part.device}", *overrides])
    tiny = dict(TINY)
    if any(override == "model.dtype=float16" for override in overrides):
        del tiny["model.dtype"]
    if load(preset).sampling.window_size:
        tiny["sampling.window_size"] = "2"
    changes = [f"{name}={value}" for name, value in tiny.items()]
    return load(preset, [f"run.device={part.device}", *overrides, *changes])


class Policy:
    """A model with its optimiser, and what one batch of images needs.

    Attributes:
        settings: of the run.
        model: as a run loads it.
        updater: as a run makes it.
        size: images of a batch.
    """

    def __init__(self, part: Part, chosen: Settings) -> None:
        self.part, self.settings = part, chosen
        threads = 1 if part.tiny else 8
        device = setup_torch(chosen.run.model_copy(update={"threads": threads}))
        self.model = load_model(chosen, device)
        self.size = chosen.batch.rollout_batch_size
        self.use(chosen)

    def use(self, chosen: Settings) -> None:
        """Go on with other settings of sampling, batch, loss or compilation."""
        self.settings = chosen
        half = resolve(chosen.model.dtype, self.model.device)
        prepare_networks(self.model, chosen, World(), half)
        self.updater = Updater(self.model, chosen, World())
        self.size = chosen.batch.rollout_batch_size

    def prompts(self, count: int) -> tuple[Conditioning, Conditioning]:
        """Encoded prompts of a batch, and the negative one."""
        texts = [PROMPT.format(number) for number in range(count)]
        negative = self.model.encode_prompts([self.settings.sampling.negative_prompt])
        return self.model.encode_prompts(texts), negative

    def sample(
        self, cond: Conditioning, negative: Conditioning, window: Sequence[int] | None = None
    ) -> RolloutBatch:
        """One batch of images, sampled as `trainer.epoch` does."""
        keys = [NoiseKey(0, 0, 0, number) for number in range(len(cond))]
        config = self.updater.config
        steps = draw_window(config, 0, 0) if window is None else window
        shape = self.model.latent_shape(*self.settings.sampling.size)
        with self.updater.sampling():
            return rollout(
                self.model,
                cond,
                keys,
                config,
                latent_shape=shape,
                window=steps,
                negative=negative,
            )

    def train_batch(
        self, record: RolloutBatch, cond: Conditioning, negative: Conditioning
    ) -> TrainBatch:
        """A sampled batch with advantages of both signs."""
        count, device = len(record), self.model.device
        return TrainBatch(
            record,
            cond,
            torch.linspace(-1, 1, count, device=device),
            torch.ones(count, dtype=torch.bool, device=device),
            negative,
            torch.zeros(count, dtype=torch.long, device=device),
        )

    def share(self, flop: float, timed: Timed) -> dict[str, Any]:
        """Speed, and its share of what matrix products alone reach on this machine."""
        speed, peak = flop / timed.seconds, machine.peak_flop_per_s(self.part.scratch)
        return {
            "tflop_per_s": speed / 1e12,
            "share_of_peak": None if peak is None else round(speed / peak, 3),
        }


def loaded(part: Part, chosen: Settings) -> Policy:
    """The policy of some settings, with a row of its size and how long it took to load."""
    begin = time.monotonic()
    policy = Policy(part, chosen)
    network = policy.model.networks()[0]
    part.row(
        "loaded",
        parameters_m=sum(p.numel() for p in network.parameters()) / 1e6,
        trained_m=sum(p.numel() for p in policy.updater.parameters.values()) / 1e6,
        seconds=time.monotonic() - begin,
        memory_gb=torch.cuda.memory_allocated() / 1e9 if part.device == "cuda" else None,
    )
    return policy


def first_steps(record: RolloutBatch, count: int) -> RolloutBatch:
    """The record with its first stochastic steps only."""
    return replace(
        record,
        trajectory=record.trajectory[:, : count + 1],
        log_probs=record.log_probs[:, :count],
        steps=record.steps[:count],
        means=None if record.means is None else record.means[:, :count],
    )


def counted(work: Any) -> float:
    """Floating-point operations of matrix products, convolutions and attention in some work."""
    with FlopCounterMode(display=False) as counter:
        work()
    return float(counter.get_total_flops())


def guided_velocity(policy: Policy, cond: Conditioning, negative: Conditioning) -> Any:
    """One evaluation of the policy as a sampling step makes it, without the rest of the step."""
    shape = policy.model.latent_shape(*policy.settings.sampling.size)
    x = torch.randn(len(cond), *shape, device=policy.model.device)
    sigma, scale = torch.tensor(0.5, device=x.device), policy.settings.sampling.guidance_scale

    @torch.no_grad()
    def forward() -> torch.Tensor:
        return policy.model.velocity(x, sigma, cond, scale, negative)

    return forward
