"""An exponential moving average of the trained parameters."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Ema:
    """Averaged float32 copies of named parameters, on the parameters' devices.

    After optimiser update n (counted from 1), call ``update(n)`` once. Every ``every``-th call
    averages, with the decay min((1 + n) / (10 + n), decay). The defaults are the official ones;
    there the call was made once per micro-batch, so that some updates counted twice.

    Attributes:
        values: The averaged values by name.

    Raises:
        ValueError: ``decay`` outside [0, 1), or ``every`` below 1.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], decay: float = 0.9, every: int = 8
    ) -> None:
        if not 0 <= decay < 1 or every < 1:
            raise ValueError(f"decay must be in [0, 1) and every at least 1: {decay}, {every}")
        self._decay, self._every = decay, every
        self._parameters = dict(parameters)
        self._swapped = False
        self.values = {name: value.detach().float().clone() for name, value in parameters.items()}

    def decay(self, update: int) -> float:
        return min((1 + update) / (10 + update), self._decay)

    def update(self, update: int) -> None:
        """Move the average towards the parameters, when update ``update`` is due."""
        if update % self._every == 0:
            self.blend(self.decay(update))

    @torch.no_grad()
    def blend(self, decay: float) -> None:
        """Set the average to decay * average + (1 - decay) * parameters; not inside ``swap``."""
        self._check_not_swapped()
        for name, value in self._parameters.items():
            self.values[name].lerp_(value.detach().float(), 1 - decay)

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Inside, the parameters have the averaged values; afterwards their own, to the bit."""
        self._check_not_swapped()
        own = {name: value.detach().clone() for name, value in self._parameters.items()}
        self._swapped = True
        self._set(self.values)
        try:
            yield
        finally:
            self._set(own)
            self._swapped = False

    @torch.no_grad()
    def _set(self, values: Mapping[str, Tensor]) -> None:
        for name, parameter in self._parameters.items():
            parameter.copy_(values[name])

    def _check_not_swapped(self) -> None:
        if self._swapped:
            raise RuntimeError("the averaged weights are swapped in already")
