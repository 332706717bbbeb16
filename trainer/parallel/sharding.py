"""How the networks run: sharded over processes, with recomputed activations, compiled.

`replicated`: every process has the whole model and adds up gradients once per update
(`World.sum_gradients`). `fsdp`: weights, gradients, moments and averages are shards (FSDP2), one
group per transformer block; gradients are summed over processes in each backward pass.

Checkpoints and saved models hold whole tensors: whatever wrote them, one process or many, reads
them. Functions that say so have to be called by all processes, in the same order.
"""

import functools
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import checkpoint

from trainer.config.settings import Settings
from trainer.errors import ConfigError
from trainer.models.model import FlowModel
from trainer.models.precision import Float32Attention
from trainer.parallel.world import World

Parallel = Literal["replicated", "fsdp"]


def parallel(settings: Settings, world_size: int, device: torch.device) -> Parallel:
    """How the processes share the work; ConfigError for a combination that is not supported."""
    chosen = settings.run.parallel
    if chosen == "auto":
        # What trains on a CPU fits into its memory; gathering shards would be most of its time.
        full = settings.model.finetune == "full" and device.type != "cpu"
        chosen = "fsdp" if full else "replicated"
    if world_size == 1:
        return "replicated"
    if chosen == "fsdp" and settings.model.dtype == "float16":
        raise ConfigError(
            "run.parallel=fsdp with model.dtype=float16: the scale of the loss would have to be "
            "agreed on by all shards; use bfloat16, or run.parallel=replicated"
        )
    return chosen


def prepare_networks(
    model: FlowModel, settings: Settings, world: World, dtype: torch.dtype
) -> None:
    """Recompute, compile and shard the networks as the settings say, in place.

    To be called by all processes, before anything holds on to the parameters. `dtype` is the type
    of the forward pass.

    Raises:
        ConfigError: the network's class does not say what its blocks are.
    """
    networks = model.networks()
    if settings.model.activation_checkpointing:
        for network in networks:
            network.enable_gradient_checkpointing(_recompute(model.device, dtype))  # pyright: ignore
    if settings.model.compile:
        for network in networks:
            for block in blocks(network):
                block.compile(dynamic=False)
    if parallel(settings, world.size, model.device) == "fsdp":
        for network in networks:
            _shard(network, world.size, model.device, dtype, settings.model.finetune == "full")


def blocks(network: nn.Module) -> Iterator[nn.Module]:
    """The transformer blocks, as the class of diffusers names them; ConfigError if it does not."""
    kind: Any = type(network)
    names = set(getattr(kind, "_repeated_blocks", None) or kind._no_split_modules or ())
    found = [module for module in network.modules() if type(module).__name__ in names]
    if not found:
        raise ConfigError(f"{kind.__name__} does not name its blocks: no fsdp and no compile")
    yield from found


def _shard(
    network: nn.Module, size: int, device: torch.device, dtype: torch.dtype, full: bool
) -> None:
    mesh = init_device_mesh(device.type, (size,))
    # Under an adapter everything is stored in the type it is computed in, or is tiny.
    cast = dtype if full and dtype != torch.float32 else None
    # Inputs keep their type: a noise level in bfloat16 would be another one.
    policy = MixedPrecisionPolicy(
        param_dtype=cast, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for module in (*blocks(network), network):
        # By default the outermost stays gathered after a pass without gradients, and would predict
        # with the old weights once others are swapped in (averages, the sampling policy).
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    for module in network.modules():
        if isinstance(module, FSDPModule):
            # Each loss is a share of the mean over all processes: sums, not means.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)


def _recompute(device: torch.device, dtype: torch.dtype) -> Any:
    """What diffusers calls for a block whose activations are not kept."""

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        # Autocast is put back by torch, this mode (of `mixed_precision`) is not.
        half = device.type == "cpu" and dtype != torch.float32
        return nullcontext(), Float32Attention() if half else nullcontext()

    return functools.partial(checkpoint, use_reentrant=False, context_fn=contexts)


def whole(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """The whole tensors of all processes, by name; called by all processes.

    One of them is whole on the device at a time. Without `keep`, this process only takes part.
    """
    out = {}
    for name, tensor in tensors.items():
        full = tensor.detach()
        if isinstance(full, DTensor):
            full = full.full_tensor().cpu() if keep else full.full_tensor()
        if keep:
            out[name] = full
    return out


def shard_like(target: Tensor, value: Tensor) -> Tensor:
    """This process's part of a whole tensor, on the target's device; the tensor itself if plain."""
    value = value.to(target.device)
    if not isinstance(target, DTensor):
        return value
    # Every process holds the same whole value: nothing has to be sent.
    return distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)


@torch.no_grad()
def fill(target: Tensor, value: Tensor) -> None:
    """Copy a whole tensor into a plain one or into this process's shard."""
    target.copy_(shard_like(target, value))
