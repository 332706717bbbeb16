"""Scaling of the loss, without which small gradients vanish in float16."""

from collections.abc import Mapping

import torch
from torch import Tensor


class LossScale:
    """`torch.amp.GradScaler` whose state goes into checkpoints as tensors.

    Args:
        device_type: `cuda` or `cpu`.
    """

    def __init__(self, device_type: str) -> None:
        self._scaler = torch.amp.GradScaler(device_type)

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to call `backward` on."""
        return self._scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the summed gradients; once per update, before they are clipped."""
        self._scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer, *, finite: bool) -> None:
        """Let the optimiser step if the gradients are finite; choose the next scale."""
        if finite:
            self._scaler.step(optimizer)
        self._scaler.update()

    def state(self) -> dict[str, Tensor]:
        """The scale and the updates since it last changed."""
        state = self._scaler.state_dict()
        return {name: torch.tensor(state[name]) for name in ("scale", "_growth_tracker")}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave."""
        values = {"scale": float(state["scale"]), "_growth_tracker": int(state["_growth_tracker"])}
        self._scaler.load_state_dict({**self._scaler.state_dict(), **values})
