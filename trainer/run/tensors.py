"""The state of training as named tensors, and back: weights, AdamW, generators."""

from collections.abc import Mapping

import torch
from torch import Tensor

from trainer.errors import CheckpointError
from trainer.parallel.sharding import fill, shard_like

REMEDY = (
    "start with the model that the run was started with, or in another folder with "
    "--set run.out_dir="
)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """AdamW's state as named tensors."""
    out = {}
    for name, parameter in parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            out[f"{name}|{key}"] = torch.as_tensor(value)
    return out


def restore_optimizer(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put back what `optimizer_tensors` gave; CheckpointError for other parameters."""
    optimizer.state.clear()
    for full, value in tensors.items():
        name, _, key = full.rpartition("|")
        if name not in parameters:
            raise CheckpointError(f"the checkpoint's optimiser knows {name}, the model does not")
        parameter = parameters[name]
        # The step counter stays where AdamW keeps it: on the CPU.
        optimizer.state[parameter][key] = (
            value.cpu() if key == "step" else shard_like(parameter, value)
        )


def restore_parameters(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy stored weights into the model; CheckpointError if names or shapes differ."""
    if set(parameters) != set(tensors):
        name = sorted(set(parameters) ^ set(tensors))[0]
        raise CheckpointError(
            f"the checkpoint is of another model or finetune mode: {name} is in one only; {REMEDY}"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            if parameter.shape != tensors[name].shape:
                raise CheckpointError(
                    f"{name}: the checkpoint has shape {tuple(tensors[name].shape)}, the model "
                    f"{tuple(parameter.shape)}; {REMEDY}"
                )
            fill(parameter, tensors[name])


def random_state() -> dict[str, Tensor]:
    """The state of PyTorch's global generators of this process."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(state: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
