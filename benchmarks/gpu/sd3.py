"""Stable Diffusion 3.5 Medium with an adapter, 512 px: seconds per phase, and what changes them."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch._dynamo.utils import counters
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu import models
from benchmarks.gpu.policy import (
    ONE_GPU,
    Policy,
    counted,
    first_steps,
    guided_velocity,
    loaded,
    settings,
)
from benchmarks.gpu.record import Part
from trainer.algorithm.losses import TrainBatch
from trainer.config.settings import Settings
from trainer.models.base import Conditioning
from trainer.rollout.policy import RolloutBatch

FULL, FAST = "geneval_sd35m_1gpu", "geneval_sd35m_fast_nocfg"
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "memory efficient": SDPBackend.EFFICIENT_ATTENTION,
    "plain": SDPBackend.MATH,
}
ON_CPU = ("flash", "plain")


def run(part: Part) -> None:
    models.install(models.Shape(tiny=part.tiny, encoders=True))
    chosen = {FAST: settings(part, FAST, *ONE_GPU), FULL: settings(part, FULL)}
    policy = loaded(part, chosen[FULL])
    part.attempt("encoding", lambda: encoding(part, policy))
    cond, negative = policy.prompts(policy.size)
    warm_up(policy, cond, negative)
    flop: dict[str, tuple[float, float]] = {}
    for name, plain in chosen.items():
        policy.use(plain)
        part.attempt(name, lambda n=name: flop.update({n: phases(part, policy, n, cond, negative)}))
    part.attempt("attention", lambda: attention(part, policy, cond, negative))
    part.attempt("decoding", lambda: decoding(part, policy))
    part.attempt("recomputing", lambda: recomputing(part, policy, cond, negative), needs_s=8)
    count = 2 * policy.size
    larger = settings(part, FAST, *ONE_GPU, f"batch.rollout_batch_size={count}")
    part.attempt(f"batches of {count}", lambda: batches(part, policy, larger), needs_s=12)
    part.attempt("CUDA graph", lambda: graphed(part, policy, cond, negative))
    # What cannot be taken back comes last. On a CPU it takes minutes, and has tests of its own.
    needs_s = 25 if part.device == "cuda" else math.inf
    part.attempt(
        "model.compile", lambda: compiled(part, policy, chosen, flop, cond, negative), needs_s
    )


def encoding(part: Part, policy: Policy) -> Mapping[str, Any]:
    """Three encoders, one prompt at a time: once per prompt and run."""
    policy.model.encode_prompts(["to warm up"])
    texts = iter([f"prompt {number}" for number in range(100)])
    timed = part.timed(lambda: policy.model.encode_prompts([next(texts)]), 2 if part.tiny else 16)
    return {"ms_per_prompt": timed.seconds * 1e3, "peak_gb": timed.peak_gb}


def warm_up(policy: Policy, cond: Conditioning, negative: Conditioning) -> None:
    """Kernels are chosen and loaded at their first call."""
    record = policy.sample(cond, negative)
    policy.model.decode(record.final)
    policy.updater.update([policy.train_batch(first_steps(record, 1), cond, negative)])


def phases(
    part: Part,
    policy: Policy,
    name: str,
    cond: Conditioning,
    negative: Conditioning,
    flop: tuple[float, float] | None = None,
) -> tuple[float, float]:
    """One batch of images through sampling, decoding and an update, as an epoch does it.

    Args:
        part: of the receipt.
        policy: with the settings in question.
        name: begins the rows' names.
        cond: B encoded prompts.
        negative: the encoded negative prompt.
        flop: of sampling and of the update, if known; they are counted otherwise.

    Returns:
        flop.
    """
    images = len(cond)

    def sample() -> RolloutBatch:
        return policy.sample(cond, negative)

    def renew(record: RolloutBatch) -> RolloutBatch:
        return policy.updater.renew(record, cond, negative)

    if flop is None:
        record = renew(sample())
        one = policy.train_batch(first_steps(record, 1), cond, negative)
        flop = (
            counted(guided_velocity(policy, cond, negative)) * policy.settings.sampling.num_steps,
            counted(lambda: policy.updater.update([one])) * len(record.steps),
        )
    sampled, record = part.timed_result(sample)
    part.row(
        f"{name}: sampling",
        images=images,
        seconds=sampled.seconds,
        peak_gb=sampled.peak_gb,
        **policy.share(flop[0], sampled),
    )
    decoded = part.timed(lambda: policy.model.decode(record.final))
    part.row(f"{name}: decoding", images=images, seconds=decoded.seconds, peak_gb=decoded.peak_gb)
    renewed, record = part.timed_result(lambda: renew(record))
    batch = policy.train_batch(record, cond, negative)
    updated, found = part.timed_result(lambda: policy.updater.update([batch]))
    part.row(
        f"{name}: update",
        images=images,
        seconds=updated.seconds,
        peak_gb=updated.peak_gb,
        **policy.share(flop[1], updated),
        renewing_s=renewed.seconds,
        ratio_deviation=found.get("ratio_deviation"),
        grad_norm=found.get("grad_norm"),
    )
    total = sampled.seconds + decoded.seconds + renewed.seconds + updated.seconds
    part.row(f"{name}: together", images_per_gpu_s=images / total, seconds=total)
    return flop


def batches(part: Part, policy: Policy, chosen: Settings) -> None:
    """The same in larger batches."""
    policy.use(chosen)
    cond, negative = policy.prompts(policy.size)
    phases(part, policy, f"{FAST}, batches of {policy.size}", cond, negative)


def recomputing(part: Part, policy: Policy, cond: Conditioning, negative: Conditioning) -> Any:
    """`model.activation_checkpointing`: one training step, in less memory."""
    policy.use(settings(part, FULL, "model.activation_checkpointing=true"))
    found = one_update(part, policy, one_step(policy, cond, negative))
    network: Any = policy.model.networks()[0]
    network.disable_gradient_checkpointing()
    part.row("activation checkpointing", **found)


def one_step(policy: Policy, cond: Conditioning, negative: Conditioning) -> TrainBatch:
    """A batch to be trained at one stochastic step."""
    first = policy.updater.config.allowed[0]
    record = policy.sample(cond, negative, window=[first])
    return policy.train_batch(record, cond, negative)


def one_update(part: Part, policy: Policy, batch: TrainBatch) -> dict[str, Any]:
    """Forward and backward of one step (and the reference's forward, with a KL)."""
    policy.updater.update([batch])
    timed = part.timed(lambda: policy.updater.update([batch]), 1 if part.tiny else 3)
    return {"update_ms": timed.seconds * 1e3, "update_peak_gb": timed.peak_gb}


def attention(part: Part, policy: Policy, cond: Conditioning, negative: Conditioning) -> None:
    """One evaluation and one training step per backend; the first row is what a run uses."""
    work = guided_velocity(policy, cond, negative)
    flop, batch = counted(work), one_step(policy, cond, negative)
    known = {k: v for k, v in BACKENDS.items() if part.device == "cuda" or k in ON_CPU}
    for name, backend in {"chosen by PyTorch": None, **known}.items():
        context: Callable[[], AbstractContextManager[Any]] = (
            nullcontext if backend is None else functools.partial(sdpa_kernel, backend)
        )

        def measure(context: Callable[[], AbstractContextManager[Any]] = context) -> Any:
            with context():
                work()
                timed = part.timed(work, 2 if part.tiny else 5)
                return {
                    "forward_ms": timed.seconds * 1e3,
                    **policy.share(flop, timed),
                    **one_update(part, policy, batch),
                }

        part.attempt(f"attention: {name}", measure, needs_s=6)


def graphed(part: Part, policy: Policy, cond: Conditioning, negative: Conditioning) -> None:
    """One evaluation replayed from a CUDA graph (not in the trainer): what launching costs."""
    for count in sorted({1, len(cond)}):
        rows = cond.index_select(list(range(count)))
        work = guided_velocity(policy, rows, negative)
        repeats = 2 if part.tiny else 10
        work()
        plain = part.timed(work, repeats)
        values: dict[str, Any] = {"forward_ms": plain.seconds * 1e3}
        if part.device == "cuda":
            graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
            with torch.cuda.stream(stream):
                work()
            torch.cuda.synchronize()
            with torch.cuda.graph(graph):
                work()
            graph.replay()
            values["replayed_ms"] = part.timed(graph.replay, repeats).seconds * 1e3
            del graph
        part.row(f"CUDA graph of one evaluation, {count} images", **values)


def decoding(part: Part, policy: Policy) -> None:
    """The autoencoder: what a run does, with TF32, and in bfloat16."""
    count = 2 if part.tiny else 16
    shape = policy.model.latent_shape(*policy.settings.sampling.size)
    latents = torch.randn(count, *shape, device=policy.model.device)
    vae: Any = policy.model._family.pipe.vae  # pyright: ignore  # (a benchmark of its types)
    reference = policy.model.decode(latents).unit
    for name, tf32, dtype in (
        ("float32", False, torch.float32),
        ("TF32", True, torch.float32),
        ("bfloat16", False, torch.bfloat16),
    ):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        vae.to(dtype)
        found = policy.model.decode(latents).unit
        timed = part.timed(lambda: policy.model.decode(latents), 1 if part.tiny else 2)
        part.row(
            f"decoding: {name}",
            images=count,
            ms_per_image=timed.seconds * 1e3 / count,
            peak_gb=timed.peak_gb,
            largest_difference_of_255=float((found - reference).abs().max()) * 255,
            mean_difference_of_255=float((found - reference).abs().mean()) * 255,
        )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    vae.to(torch.float32)


def compiled(
    part: Part,
    policy: Policy,
    chosen: Mapping[str, Settings],
    flop: Mapping[str, tuple[float, float]],
    cond: Conditioning,
    negative: Conditioning,
) -> None:
    """`model.compile`: every block; the seconds of the first batch are mostly compilation."""
    adapter: Any = policy.model
    adapter._options = adapter._options.model_copy(update={"compile": True})
    for name, plain in chosen.items():
        model = plain.model.model_copy(update={"compile": True})
        policy.use(plain.model_copy(update={"model": model}))
        begin = time.monotonic()
        warm_up(policy, cond, negative)
        part.row(
            f"{name}, compiled: first batch",
            seconds=time.monotonic() - begin,
            graphs=counters["stats"]["unique_graphs"],
        )
        phases(part, policy, f"{name}, compiled", cond, negative, flop.get(name))
