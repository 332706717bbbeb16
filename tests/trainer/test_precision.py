import pytest
import torch
import torch.nn.functional as F
from torch import nn

from trainer.models.precision import has_bfloat16, mixed_precision, resolve


def test_on_cpus_matrices_are_bfloat16_and_attention_float32_forward_and_backward() -> None:
    q, k, v = (torch.randn(2, 4, 6, 8, requires_grad=True) for _ in range(3))
    layer = nn.Linear(8, 8)
    exact = F.scaled_dot_product_attention(q, k, v)
    with mixed_precision("cpu", torch.bfloat16):
        mixed = F.scaled_dot_product_attention(q, k, v)
        projected = layer(mixed)
        from_half = F.scaled_dot_product_attention(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert torch.equal(mixed, exact)
    assert from_half.dtype == torch.float32
    assert projected.dtype == torch.bfloat16
    projected.sum().backward()
    assert q.grad is not None
    assert q.grad.dtype == torch.float32
    assert layer.weight.grad is not None
    assert layer.weight.grad.dtype == torch.float32


def test_float32_changes_nothing() -> None:
    layer, x = nn.Linear(8, 8), torch.randn(3, 8)
    with mixed_precision("cpu", torch.float32):
        assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


def test_attention_is_float32_by_keyword_too_and_masks_stay_booleans() -> None:
    q, k, v = torch.randn(3, 1, 1, 4, 8)
    mask = torch.tensor([[True, True, False, True]])
    expected = F.scaled_dot_product_attention(q, k, v, mask)
    with mixed_precision("cpu", torch.bfloat16):
        named = F.scaled_dot_product_attention(query=q, key=k, value=v.bfloat16(), attn_mask=mask)
        placed = F.scaled_dot_product_attention(q, k, v, mask)
    assert named.dtype == torch.float32
    assert torch.allclose(named, expected, atol=0.02)
    assert torch.equal(placed, expected)


@pytest.mark.parametrize(
    ("name", "expected"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_a_named_type_is_taken(name: str, expected: torch.dtype) -> None:
    assert resolve(name, torch.device("cpu")) == expected


def test_auto_follows_the_device() -> None:
    cpu = torch.device("cpu")
    assert resolve("auto", cpu) == (torch.bfloat16 if has_bfloat16(cpu) else torch.float32)
    assert resolve("auto", torch.device("meta")) == torch.float32
