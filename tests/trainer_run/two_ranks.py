"""What processes do together, without a run around it; jobs of `attempts`."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from reward_client._client import RewardClient
from reward_client._transports.fake import FakeTransport
from tests.trainer_run.fake_service import score_pixels, service_with
from trainer.config.load import parse
from trainer.config.settings import RewardSettings
from trainer.errors import TrainerError
from trainer.models.model import FlowModel
from trainer.parallel.sharding import prepare_networks
from trainer.parallel.world import World
from trainer.rewards import RewardService
from trainer.rollout.noise import NoiseKey, initial_noise
from trainer.run.inputs import load_model
from trainer.tools import offline
from trainer.tools.artifacts import Choice

TEXTS = ("a red star", "a blue circle")
SIZE = (16, 16, 5)


def predict(model: FlowModel, sigmas: list[float], guidance: float) -> Tensor:
    """Velocities of two videos, each at its own noise level."""
    keys = [NoiseKey(0, 0, 0, sample) for sample in range(2)]
    x = initial_noise(keys, model.latent_shape(*SIZE), model.device)
    cond, negative = model.encode_prompts(TEXTS), model.encode_prompts([""])
    return model.velocity(x, torch.tensor(sigmas), cond, guidance, negative)


def gradients(model: FlowModel) -> dict[str, Tensor]:
    """Whole gradients of what has one; all processes have to call this."""
    found = {n: p.grad for n, p in model.trainable_parameters().items() if p.grad is not None}
    return {n: g.full_tensor() if isinstance(g, DTensor) else g for n, g in found.items()}


def experts(table: dict[str, Any], sigmas: list[list[float]], guidance: float, out: str) -> int:
    """Velocities and gradients of this process at its noise levels, from sharded experts."""
    settings = parse(table)
    world = World.join(os.environ, "cpu")
    model = load_model(settings, torch.device("cpu"), parked=True)
    prepare_networks(model, settings, world, torch.float32)
    own = sigmas[world.rank]
    with torch.no_grad():
        silent = predict(model, own, guidance)
        with model.reference():
            reference = predict(model, own, guidance)
    v = predict(model, own, guidance)
    v.square().mean().backward()
    found = {"silent": silent, "reference": reference, "v": v.detach()}
    torch.save({**found, "gradients": gradients(model)}, f"{out}.{world.rank}")
    world.leave()
    return 0


def unused(out: str) -> int:
    """Six steps of AdamW; one parameter has gradients in every other step, and from rank 1 only."""
    world = World.join(os.environ, "cpu")
    torch.manual_seed(0)
    always, sometimes = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([always, sometimes], lr=0.01, weight_decay=0.1)
    for step in range(6):
        optimizer.zero_grad(set_to_none=True)
        always.grad = torch.full((3,), 1.0 / world.size)
        if step % 2 == 0 and world.rank == world.size - 1:
            sometimes.grad = torch.full((2,), 0.5)
        world.sum_gradients([always, sometimes])
        optimizer.step()
    torch.save([always.detach(), sometimes.detach()], f"{out}.{world.rank}")
    world.leave()
    return 0


def evaluate_without_service(run_dir: str) -> int:
    """`flow-train evaluate` where only the last process fails to reach the service."""
    rank = int(os.environ["RANK"])

    def connect(settings: RewardSettings, environment: Any) -> RewardService:
        if rank < int(os.environ["WORLD_SIZE"]) - 1:
            return service_with()(settings)
        transport = FakeTransport(score_pixels, ("another scorer",))
        return RewardService(RewardClient(settings.url, transport=transport), settings)

    offline.connect = connect
    try:
        offline.evaluate_target(run_dir, Choice(), os.environ)
    except TrainerError as error:
        print(f"error: {error}", flush=True)
        return error.exit_code
    return 0


def read(out: Path, world_size: int) -> list[Any]:
    """What each process has saved."""
    return [torch.load(f"{out}.{rank}") for rank in range(world_size)]
