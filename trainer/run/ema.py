"""Shadow weights: an exponential moving average of the trained parameters."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from trainer.parallel.sharding import fill


class Ema:
    """Averaged float32 copies of named parameters, on the parameters' devices.

    After optimiser update n (counted from 1), call ``update(n)`` once. Every ``every``-th call
    averages, with the decay min((1 + n) / (10 + n), decay). The defaults are the official ones;
    there the call was made once per micro-batch, so that some updates counted twice.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], decay: float = 0.9, every: int = 8
    ) -> None:
        """Start from the current values.

        Raises:
            ValueError: ``decay`` outside [0, 1), or ``every`` below 1.
        """
        if not 0 <= decay < 1 or every < 1:
            raise ValueError(f"decay must be in [0, 1) and every at least 1: {decay}, {every}")
        self._decay, self._every = decay, every
        self._parameters = dict(parameters)
        self._shadow = {name: value.detach().float().clone() for name, value in parameters.items()}
        self._kept: dict[str, Tensor] | None = None

    @property
    def shadow(self) -> Mapping[str, Tensor]:
        """The averaged values by name."""
        return self._shadow

    def decay(self, update: int) -> float:
        """The decay after optimiser update ``update``."""
        return min((1 + update) / (10 + update), self._decay)

    def update(self, update: int) -> None:
        """Move the average towards the parameters, when update ``update`` is due."""
        if update % self._every == 0:
            self.blend(self.decay(update))

    @torch.no_grad()
    def blend(self, decay: float) -> None:
        """Set the average to decay * average + (1 - decay) * parameters.

        Raises:
            RuntimeError: The averaged values are swapped in: there is nothing to learn from.
        """
        if self._kept is not None:
            raise RuntimeError("the averaged weights are swapped in")
        for name, value in self._parameters.items():
            self._shadow[name].lerp_(value.detach().float(), 1 - decay)

    @torch.no_grad()
    def swap_in(self) -> None:
        """Put the averaged values into the parameters.

        Raises:
            RuntimeError: They are in already.
        """
        if self._kept is not None:
            raise RuntimeError("the averaged weights are swapped in already")
        self._kept = {name: value.detach().clone() for name, value in self._parameters.items()}
        for name, value in self._parameters.items():
            value.copy_(self._shadow[name])

    @torch.no_grad()
    def swap_out(self) -> None:
        """Put the trained values back, to the bit.

        Raises:
            RuntimeError: The averaged values are not in.
        """
        if self._kept is None:
            raise RuntimeError("the averaged weights are not swapped in")
        for name, value in self._parameters.items():
            value.copy_(self._kept[name])
        self._kept = None

    @contextmanager
    def swap(self) -> Iterator[None]:
        """Averaged values inside, trained values afterwards."""
        self.swap_in()
        try:
            yield
        finally:
            self.swap_out()

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged values; with the update number, all that going on needs."""
        return dict(self._shadow)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore a saved average.

        Raises:
            ValueError: It belongs to other parameters.
        """
        different = sorted(set(state) ^ set(self._shadow))
        if different:
            raise ValueError(f"the average is of other parameters, e.g. {different[:3]}")
        for name, value in state.items():
            fill(self._shadow[name], value)
