import torch

from trainer.run.update import LossScale


def one_update(scale: LossScale, factor: float) -> tuple[torch.Tensor, torch.Tensor, bool]:
    """The weight after an update with the loss factor * weight, its gradient, whether finite."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    scale.scale((weight * factor).sum()).backward()
    scale.unscale_(optimizer)
    assert weight.grad is not None
    finite = bool(torch.isfinite(weight.grad).all())
    if finite:
        scale.step(optimizer)
    scale.update()
    return weight.detach(), weight.grad, finite


def test_gradients_are_those_without_a_scale() -> None:
    weight, gradient, finite = one_update(LossScale("cpu"), 0.25)
    assert finite
    assert torch.equal(gradient, torch.full((3,), 0.25))
    assert torch.equal(weight, torch.full((3,), 0.875))


def test_an_overflow_changes_nothing_but_the_scale_which_a_checkpoint_keeps() -> None:
    scale = LossScale("cpu")
    one_update(scale, 0.25)
    before = scale.state()
    weight, _, finite = one_update(scale, float("inf"))
    assert not finite
    assert torch.equal(weight, torch.ones(3))
    after = scale.state()
    assert after["scale"] == before["scale"] / 2
    restored = LossScale("cpu")
    restored.restore(after)
    assert restored.state() == after
    one_update(restored, 0.25)
    assert restored.state()["scale"] == after["scale"]
