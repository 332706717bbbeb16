"""FLUX.1-dev and Qwen-Image with an adapter, 512 px: one sampling step and one update step."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu import models
from benchmarks.gpu.policy import Policy, counted, guided_velocity, loaded, settings
from benchmarks.gpu.record import Part
from trainer.models.base import MASK, Conditioning

PRESETS = {"flux": "pickscore_flux_8gpu", "qwen_image": "pickscore_qwen_image_8gpu"}
QWEN_TOKENS = 64  # of a prompt of some forty words; the sequence is as long as the prompt


def run(part: Part) -> None:
    models.install(models.Shape(tiny=part.tiny))
    policy = loaded(part, settings(part, PRESETS[part.name]))
    part.attempt("sampling, one step", lambda: sampling(part, policy))
    for count in sorted({policy.settings.batch.train_batch_size or policy.size, policy.size}):
        part.attempt(f"update, one step, {count} images", lambda n=count: update(part, policy, n))
    recomputing = policy.settings.model.model_copy(update={"activation_checkpointing": True})
    policy.use(policy.settings.model_copy(update={"model": recomputing}))
    part.attempt(
        f"update, one step, {policy.size} images, activation checkpointing",
        lambda: update(part, policy, policy.size),
        needs_s=5,
    )


def prompts(policy: Policy, count: int) -> tuple[Conditioning, Conditioning]:
    """Encoded prompts of the shapes that the encoders give, and the negative one."""
    config: Any = policy.model.networks()[0].config
    tokens, width = policy.settings.model.max_sequence_length, config.joint_attention_dim
    if policy.settings.model.family == "flux":
        shapes = {"prompt_embeds": (tokens, width), "pooled": (config.pooled_projection_dim,)}
    else:
        shapes = {"embeds": (min(QWEN_TOKENS, tokens), width)}

    def made(rows: int) -> Conditioning:
        device = policy.model.device
        found = {name: torch.randn(rows, *shape, device=device) for name, shape in shapes.items()}
        if "embeds" in found:
            found[MASK] = torch.ones(found["embeds"].shape[:2], dtype=torch.bool, device=device)
        return Conditioning(found)

    return made(count), made(1)


def sampling(part: Part, policy: Policy) -> dict[str, Any]:
    cond, negative = prompts(policy, policy.size)
    work = guided_velocity(policy, cond, negative)
    work()
    flop = counted(work)
    timed = part.timed(work, 1 if part.tiny else 4)
    steps = policy.settings.sampling.num_steps
    return {
        "images": policy.size,
        "ms": timed.seconds * 1e3,
        "peak_gb": timed.peak_gb,
        **policy.share(flop, timed),
        "images_per_gpu_s_sampling": policy.size / (timed.seconds * steps),
    }


def update(part: Part, policy: Policy, count: int) -> dict[str, Any]:
    """The whole of `Updater.update` for one stochastic step: forward, backward, optimiser."""
    cond, negative = prompts(policy, count)
    first = policy.updater.config.allowed[0]
    record = policy.sample(cond, negative, window=[first])
    record = policy.updater.renew(record, cond, negative)
    batch = policy.train_batch(record, cond, negative)
    found: dict[str, float] = {}
    flop = counted(lambda: found.update(policy.updater.update([batch])))
    timed = part.timed(lambda: policy.updater.update([batch]), 1 if part.tiny else 2)
    return {
        "images": count,
        "ms": timed.seconds * 1e3,
        "peak_gb": timed.peak_gb,
        **policy.share(flop, timed),
        "ratio_deviation": found["ratio_deviation"],
        "grad_norm": found.get("grad_norm"),
    }
