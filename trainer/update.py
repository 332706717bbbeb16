"""One epoch's updates: replay the stored steps in the batches of the rollout, accumulate, step.

A micro-batch is a slice of a rollout batch. With the default sizes it is the very batch that was
sampled, so the first ratio of an epoch is exactly 1.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from trainer.config import loss_config, rollout_config, training_guidance
from trainer.distributed import World
from trainer.ema import Ema
from trainer.losses import LOSSES, LossContext, TrainBatch
from trainer.losses.nft import old_decay
from trainer.models.base import FlowModel
from trainer.noise import generator
from trainer.replay import chunks, refresh
from trainer.settings import OptimSettings, Settings


class MeanLog:
    """Weighted means of 0-d tensors, read once at the end."""

    def __init__(self) -> None:
        self._values: dict[str, list[tuple[Tensor, float]]] = defaultdict(list)

    def add(self, metrics: Mapping[str, Tensor], weight: float) -> None:
        """Remember values with their weight."""
        for name, value in metrics.items():
            self._values[name].append((value.detach(), weight))

    def read(self) -> dict[str, float]:
        """Means by name; names that end in `_max` or `_deviation` give the maximum instead."""
        out = {}
        for name, pairs in self._values.items():
            values = torch.stack([value.float() for value, _ in pairs]).double().cpu()
            if name.endswith(("_max", "_deviation")):
                out[name] = float(values.max())
                continue
            weights = torch.tensor([weight for _, weight in pairs], dtype=torch.float64)
            out[name] = float((values * weights).sum() / weights.sum().clamp_min(1e-12))
        return out


def learning_rate(optim: OptimSettings, update: int) -> float:
    """The learning rate of an update: linear warm-up, constant, then half a cosine to the floor.

    Args:
        optim: `lr`, `warmup_updates`, `decay_start`, `decay_updates`, `lr_floor`.
        update: number of the update, from 0.
    """
    rise = min(1.0, (update + 1) / optim.warmup_updates) if optim.warmup_updates else 1.0
    if not optim.decay_updates:
        return optim.lr * rise
    done = min(max((update - optim.decay_start) / optim.decay_updates, 0.0), 1.0)
    fall = optim.lr_floor + (1.0 - optim.lr_floor) * (1.0 + math.cos(math.pi * done)) / 2.0
    return optim.lr * rise * fall


def informative(batch: TrainBatch) -> bool:
    """Whether any image of the batch pushes the policy anywhere."""
    return bool((batch.valid & (batch.advantage != 0)).any())


def split(batch: TrainBatch, size: int) -> Iterator[TrainBatch]:
    """Slices of at most `size` images."""
    total = len(batch.rollout)
    if size >= total:
        yield batch
        return
    for rows in chunks(total, size):
        yield batch.select(rows)


class Updater:
    """The optimiser and what an update is.

    Attributes:
        parameters: what is trained, by name.
        config: how the rollout samples.
        updates: optimiser updates done so far.
        old: the sampling policy's weights, for losses that ask for them (`LossEntry.old`).
        average: the averaged weights, for `loss.ema_kl_beta`; set once they exist.
    """

    def __init__(self, model: FlowModel, settings: Settings, world: World) -> None:
        """Make an optimiser for the model's trainable parameters."""
        self.settings = settings
        self.config = rollout_config(settings)
        self._training = replace(self.config, guidance_scale=training_guidance(settings))
        self._entry = LOSSES[settings.loss.algorithm]
        self.parameters = dict(model.trainable_parameters())
        self.updates = 0
        self.old = Ema(self.parameters) if self._entry.old else None
        self.average: Ema | None = None
        self._model = model
        self._world = world
        optim = settings.optim
        self.optimizer = torch.optim.AdamW(
            list(self.parameters.values()),
            lr=optim.lr,
            betas=optim.betas,
            eps=optim.eps,
            weight_decay=optim.weight_decay,
        )

    def sampling(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights that images are sampled with."""
        if self.old is None:
            return nullcontext()
        if self._entry.old == "trailing":
            return self.old.swap()
        self.old.blend(0.0)
        return nullcontext()

    def epoch(self, batches: Sequence[TrainBatch], *, epoch: int) -> Iterator[dict[str, float]]:
        """Do the epoch's updates; yield the metrics of each after its optimiser step.

        Images are visited in an order drawn from (seed, epoch), the same on all processes.
        """
        parts = self._prepare(batches)
        seed = self.settings.run.seed
        order = torch.randperm(len(parts), generator=generator("order", seed, epoch)).tolist()
        per_update = len(parts) // self.settings.batch.optimizer_steps_per_epoch
        for start in range(0, len(order), per_update):
            context = LossContext(
                self._model, self._training, loss_config(self.settings), self.old, self.average
            )
            yield self._update(context, [parts[i] for i in order[start : start + per_update]])

    def _prepare(self, batches: Sequence[TrainBatch]) -> list[TrainBatch]:
        """Cut the rollout into training batches; renew old log-probabilities where they differ."""
        sizes = self.settings.batch
        size = sizes.train_batch_size or sizes.rollout_batch_size
        parts = [part for batch in batches for part in split(batch, size)]
        same = size == sizes.rollout_batch_size and sizes.fold_steps == 1
        same = same and self._training == self.config
        if same or not batches[0].rollout.steps:
            return parts
        return [
            replace(
                part,
                rollout=refresh(
                    self._model,
                    part.rollout,
                    part.cond,
                    self._training,
                    fold=sizes.fold_steps,
                    negative=part.negative,
                ),
            )
            for part in parts
        ]

    def _update(self, context: LossContext, parts: Sequence[TrainBatch]) -> dict[str, float]:
        if self.settings.batch.skip_constant_groups:
            parts = [part for part in parts if informative(part)]
        total = self._world.sum(float(sum(int(part.valid.sum()) for part in parts)))
        if total == 0:
            return {"skipped_updates": 1.0}
        if self._entry.prepare is not None:
            parts = self._entry.prepare(context, parts, self._world.gather)
        log = MeanLog()
        self.optimizer.zero_grad(set_to_none=True)
        for part in parts:
            # The share of this batch in the mean over all valid images of all processes.
            share = float(part.valid.sum()) / total
            for term in self._entry.terms(context, part):
                (term.loss * share).backward()
                log.add(term.metrics, share)
        return self._step(log)

    def _step(self, log: MeanLog) -> dict[str, float]:
        optim = self.settings.optim
        trained = list(self.parameters.values())
        self._world.sum_gradients(trained)
        norm = nn.utils.clip_grad_norm_(trained, optim.max_grad_norm)
        rate = learning_rate(optim, self.updates)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        finite = bool(torch.isfinite(norm))
        if finite:
            self.optimizer.step()
        self.updates += 1
        if self.old is not None and self._entry.old == "trailing":
            self.old.blend(old_decay(self.updates))
        metrics = log.read()
        if finite:
            metrics["grad_norm"] = float(norm)
        metrics["lr"] = rate
        metrics["skipped_updates"] = 0.0 if finite else 1.0
        return metrics
