"""What has to hold on CUDA: first ratio 1, resuming, NCCL, FSDP2, the scale of float16."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks.gpu import models
from benchmarks.gpu.policy import Policy, settings
from benchmarks.gpu.record import Part
from reward_client import FakeTransport, Item, RewardClient
from reward_client.codec import decode
from trainer.config.settings import RewardSettings, Settings
from trainer.models.base import Conditioning
from trainer.models.precision import resolve
from trainer.parallel.sharding import _shard
from trainer.parallel.world import World
from trainer.rewards import RewardService
from trainer.run import checkpoint
from trainer.run.log import read
from trainer.run.open import train_run
from trainer.run.update import Updater

PRESET = "geneval_sd35m_1gpu"
LAYERS = 6  # of 24, at the published width
SMALL = ("sampling.num_steps=4", "batch.rollout_batch_size=4", "sampling.window_size=2")


def run(part: Part) -> None:
    models.install(models.Shape(tiny=part.tiny, layers=LAYERS))
    for what, overrides in (
        ("adapter", ()),
        ("all weights", ("model.finetune=full",)),
        ("adapter, float16", ("model.dtype=float16",)),
        ("adapter, training batches of 2", ("batch.train_batch_size=2",)),
    ):
        name = f"first ratio: {what}"
        part.attempt(name, lambda o=overrides: ratios(part, o), needs_s=5)
    part.attempt("float16: scale of the loss", lambda: scale(part), needs_s=5)
    part.attempt("NCCL, one rank", lambda: nccl(part), needs_s=5)
    part.attempt("FSDP2, one rank", lambda: fsdp(part), needs_s=8)
    for deterministic in (True, False):
        kind = "deterministic kernels" if deterministic else "any kernels"
        part.attempt(
            f"resumed against uninterrupted, {kind}",
            lambda d=deterministic: resumed(part, d),
            needs_s=12,
        )


def made(part: Part, *overrides: str) -> tuple[Policy, Any, Any]:
    """A small policy and encoded prompts."""
    policy = Policy(part, settings(part, PRESET, *SMALL, *overrides))
    return policy, *encoded(policy)


def encoded(policy: Policy) -> tuple[Any, Any]:
    """Prompt embeddings of the encoders' shapes."""
    config: Any = policy.model.networks()[0].config
    tokens = policy.settings.model.max_sequence_length + 77
    draws = torch.Generator().manual_seed(0)

    def rows(count: int) -> Conditioning:
        embeds = torch.randn(count, tokens, config.joint_attention_dim, generator=draws)
        pooled = torch.randn(count, config.pooled_projection_dim, generator=draws)
        return Conditioning({"prompt_embeds": embeds, "pooled": pooled}).to(policy.model.device)

    return rows(policy.size), rows(1)


def one_epoch(policy: Policy, cond: Any, negative: Any) -> dict[str, float]:
    """Sample, renew and update once, as an epoch does."""
    record = policy.sample(cond, negative)
    record = policy.updater.renew(record, cond, negative)
    return policy.updater.update([policy.train_batch(record, cond, negative)])


def ratios(part: Part, overrides: tuple[str, ...]) -> dict[str, Any]:
    """Largest |ratio - 1| of the first update, which has to be 0, and of the second of an epoch."""
    policy, cond, negative = made(part, *overrides)
    record = policy.updater.renew(policy.sample(cond, negative), cond, negative)
    batch = policy.train_batch(record, cond, negative)
    first, second = policy.updater.update([batch]), policy.updater.update([batch])
    return {
        "first_ratio_deviation": first["ratio_deviation"],
        "exact": first["ratio_deviation"] == 0.0,
        "second_ratio_deviation": second["ratio_deviation"],
        "kl": second.get("kl"),
        "grad_norm": first.get("grad_norm"),
    }


def scale(part: Part) -> dict[str, Any]:
    """Five updates in float16, then one whose gradients overflow: it has to change nothing."""
    policy, cond, negative = made(part, "model.dtype=float16")
    updater = policy.updater
    assert updater.scaler.is_enabled()
    found = [one_epoch(policy, cond, negative) for _ in range(5)]
    before = {name: value.detach().clone() for name, value in updater.parameters.items()}
    state = updater.scaler.state()
    updater.scaler.restore({**state, "scale": torch.tensor(1e38)})
    overflow = one_epoch(policy, cond, negative)
    same = all(torch.equal(before[name], value) for name, value in updater.parameters.items())
    return {
        "scale": float(state["scale"]),
        "skipped_of_5": sum(row["skipped_updates"] for row in found),
        "overflow_skipped": overflow["skipped_updates"] == 1.0,
        "weights_unchanged": same,
        "scale_afterwards": float(updater.scaler.state()["scale"]),
    }


def nccl(part: Part) -> dict[str, Any]:
    """The trainer's collectives in a group of one rank: sums of one are what they were."""
    group(part)
    pair = World(0, 2)  # so that nothing is left out as it is for a single process
    values = [torch.randn(1 << (10 if part.tiny else 24), device=part.device) for _ in range(2)]
    weights = [torch.nn.Parameter(value) for value in values]
    for weight in weights:
        weight.grad = weight.detach().clone()
    timed = part.timed(lambda: pair.sum_gradients(weights), 3)
    same = all(torch.equal(w.grad, w.detach()) for w in weights if w.grad is not None)
    answer = pair.broadcast({"epoch": 3})
    return {
        "backend": dist.get_backend_config() if part.device == "cuda" else dist.get_backend(),
        "gradients_unchanged": same,
        "objects_over_gloo": answer == {"epoch": 3},
        "sum_gradients_ms": timed.seconds * 1e3,
        "megabytes": 4 * sum(value.numel() for value in values) / 1e6,
    }


def group(part: Part) -> None:
    """The process group that `World.join` makes, of one rank."""
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if part.device == "cuda" else "gloo"
        place = f"file://{part.scratch / 'group'}"
        dist.init_process_group(backend, init_method=place, rank=0, world_size=1)


def fsdp(part: Part) -> dict[str, Any]:
    """All weights, sharded over one rank, against the same without shards: one update each."""
    group(part)
    full = ("model.finetune=full", "model.activation_checkpointing=true", "loss.kl_beta=0.0")
    torch.manual_seed(0)
    plain, cond, negative = made(part, *full)
    state = {k: v.cpu().clone() for k, v in plain.model.networks()[0].state_dict().items()}
    expected = one_epoch(plain, cond, negative)
    del plain
    sharded, _, _ = made(part, *full)
    network = sharded.model.networks()[0]
    network.load_state_dict(state)
    device = sharded.model.device
    _shard(network, 1, device, resolve(sharded.settings.model.dtype, device), True)
    sharded.updater = Updater(sharded.model, sharded.settings, World())
    found: dict[str, float] = {}
    timed = part.timed(lambda: found.update(one_epoch(sharded, cond, negative)))
    return {
        "first_ratio_deviation": found["ratio_deviation"],
        "grad_norm": found["grad_norm"],
        "grad_norm_without_shards": expected["grad_norm"],
        "relative_difference": abs(found["grad_norm"] / expected["grad_norm"] - 1),
        "peak_gb": timed.peak_gb,
    }


def resumed(part: Part, deterministic: bool) -> dict[str, Any]:
    """Two epochs at once, and two with a stop between them: the largest differences."""
    folder = part.scratch / f"resume-{deterministic}"
    ends = []
    for name, stops in (("whole", (False,)), ("stopped", (True, False))):
        for stop in stops:
            chosen = run_settings(part, folder / name, deterministic)
            train(chosen, stop)
        ends.append(checkpoint.find(folder / name / "run").tensors)
    differences = {
        kind: max(
            float((value.double() - ends[1][kind][name].double()).abs().max())
            for name, value in tensors.items()
            if value.numel()
        )
        for kind, tensors in ends[0].items()
        if kind != "rng"
    }
    logs = [
        [row for row in read(folder / n / "run") if row["kind"] == "train"]
        for n in ("whole", "stopped")
    ]
    return {
        "epochs": len(logs[1]),
        "identical": max(differences.values()) == 0.0,
        **{f"largest_difference_{kind}": value for kind, value in differences.items()},
        "reward_mean": logs[0][-1]["reward"]["brightness"],
        "reward_mean_resumed": logs[1][-1]["reward"]["brightness"],
    }


def run_settings(part: Part, folder: Path, deterministic: bool) -> Settings:
    """A whole run of two small epochs, encoders included."""
    models.install(models.Shape(tiny=part.tiny, layers=LAYERS, encoders=True))
    return settings(
        part,
        PRESET,
        *SMALL,
        f"run.out_dir={folder / 'run'}",
        f"run.deterministic={str(deterministic).lower()}",
        "run.epochs=2",
        "run.save_every_epochs=1",
        "model.keep_encoders=true",
        "sampling.resolution_px=256",
        "sampling.eval_num_steps=2",
        "batch.prompts_per_epoch=2",
        "batch.images_per_prompt=4",
        "eval.every_epochs=0",
        "eval.num_prompts=2",
        "eval.images_per_prompt=1",
        "eval.metrics=[]",
        "task.name=texts",
        f"task.train={prompts(folder / 'train.txt', 'a red star', 'a blue cube', 'rain')}",
        f"task.test={prompts(folder / 'test.txt', 'a green hill', 'a cat')}",
        'rewards.train=[{ scorer = "brightness" }]',
        "rewards.watch=[]",
        "logging.tensorboard=false",
    )


def prompts(path: Path, *texts: str) -> Path:
    """A file of prompts."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def train(chosen: Settings, stop: bool) -> None:
    """`flow-train train` with a service in this process; stopped after an epoch, or to its end."""
    folder = Path(chosen.run.out_dir)

    def over() -> bool:
        return stop and any(row["kind"] == "train" for row in read(folder))

    train_run(chosen, environment={}, open_service=service, say=lambda text: None, stop=over)


def service(rewards: RewardSettings) -> RewardService:
    """Scores by the pixels, without a network."""

    def brightness(_: str, item: Item) -> float:
        return float(decode(item.images[0]).astype(np.float64).mean() / 255)

    transport = FakeTransport(brightness, ("brightness",))
    return RewardService(RewardClient("fake://", attempts=1, transport=transport), rewards)
