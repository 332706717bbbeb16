"""Muon against torch's own, which works in bfloat16, and against the definition."""

from __future__ import annotations

import pytest
import torch

from miniature.muon import Muon, orthogonalised


@pytest.mark.parametrize("shape", [(24, 24), (8, 40), (40, 8)])
def test_only_the_singular_values_change_and_as_the_polynomial_says(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)).double()
    u, values, vh = torch.linalg.svd(matrices, full_matrices=False)
    values = values / values.square().sum(-1, keepdim=True).sqrt()
    for _ in range(5):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    expected = u @ torch.diag_embed(values) @ vh
    torch.testing.assert_close(orthogonalised(matrices), expected, rtol=0, atol=1e-10)
    assert values.max() < 1.3


def test_steps_are_those_of_torch_but_for_its_bfloat16() -> None:
    start = torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizers = (
        Muon([ours], lr=0.02, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for step in range(5):
        gradient = torch.randn(16, 32, generator=torch.Generator().manual_seed(10 + step))
        for p, optimizer in zip((ours, theirs), optimizers, strict=True):
            p.grad = gradient.clone()
            optimizer.step()
    moved = (theirs - start).abs().max()
    assert (ours - theirs).abs().max() < 0.02 * moved


def test_vectors_are_refused() -> None:
    with pytest.raises(ValueError, match="matrices only"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=0.1)
