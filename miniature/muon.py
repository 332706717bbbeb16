"""Muon in the precision of its parameters.

`torch.optim.Muon` runs the Newton-Schulz iteration in bfloat16 whatever it is given. A CPU without
instructions for bfloat16 emulates it, and then four fifths of a pretraining step of the miniature
go into the optimiser (seen by sampling the process on such a CPU). Otherwise the same algorithm
and constants (Jordan et al. 2024, kellerjordan.github.io/posts/muon; sizes of updates as in
arXiv:2502.16982), with all matrices of one shape orthogonalised together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_STEPS = 5
_EPS = 1e-7


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: for the hidden matrices of a network only."""

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float,
        weight_decay: float = 0.01,
        momentum: float = 0.95,
    ) -> None:
        """Args are AdamW's; an update has the root mean square that AdamW's would have.

        Raises:
            ValueError: a parameter is not a matrix.
        """
        matrices = list(params)
        if any(p.ndim != 2 for p in matrices):
            raise ValueError("Muon takes matrices only: give everything else to AdamW")
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(matrices, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append((p, self._with_momentum(p, group["momentum"])))
            for (rows, columns), pairs in by_shape.items():
                updates = orthogonalised(torch.stack([update for _, update in pairs]))
                rate = group["lr"] * 0.2 * max(rows, columns) ** 0.5
                for (p, _), update in zip(pairs, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=rate)

    def _with_momentum(self, p: Tensor, momentum: float) -> Tensor:
        """Nesterov's look-ahead of the running mean of gradients."""
        assert p.grad is not None
        buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
        buffer.lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(buffer, momentum)


def orthogonalised(matrices: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly: all singular values near 1.

    Args:
        matrices: (N, rows, columns).

    Returns:
        The same shape and type.
    """
    a, b, c = _COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if is_tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(_EPS)
    for _ in range(_STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if is_tall else x
