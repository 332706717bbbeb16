"""Taking back an epoch whose scores do not come: the state before it is what is saved."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from trainer.errors import TrainerError
from trainer.run.state import Run


@contextmanager
def undone_by_failure(run: Run, *, needed: bool) -> Iterator[None]:
    """After a `TrainerError` inside, weights, optimiser and averages are as before.

    Args:
        run: the run.
        needed: whether anything can have changed by then; a copy of the state is kept meanwhile.
    """
    if not needed:
        yield
        return
    tensors = [t.detach().clone() for t in _tensors(run)]
    moments = {
        parameter: {name: torch.as_tensor(value).clone() for name, value in state.items()}
        for parameter, state in run.updater.optimizer.state.items()
    }
    updates = run.updater.updates
    scale = None if run.updater.scaler is None else run.updater.scaler.state()
    try:
        yield
    except TrainerError:
        _put_back(run, tensors, moments)
        run.updater.updates = run.progress.updates = updates
        if run.updater.scaler is not None and scale is not None:
            run.updater.scaler.restore(scale)
        raise


@torch.no_grad()
def _put_back(run: Run, tensors: list[Tensor], moments: dict[Any, dict[str, Tensor]]) -> None:
    for tensor, kept in zip(_tensors(run), tensors, strict=True):
        tensor.copy_(kept)
    state = run.updater.optimizer.state
    state.clear()
    state.update(moments)


def _tensors(run: Run) -> list[Tensor]:
    averages = [average for average in (run.ema, run.updater.old) if average is not None]
    return [
        *run.updater.parameters.values(),
        *(tensor for average in averages for tensor in average.shadow.values()),
    ]
