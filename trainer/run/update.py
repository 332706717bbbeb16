"""One optimiser update: replay the stored steps in the batches of the rollout, accumulate, step.

A micro-batch is a slice of a rollout batch. With the default sizes it is the very batch that was
sampled, so the first ratio of an epoch is exactly 1. Every process works on its own micro-batches;
gradients and metrics are means over the valid images of all of them. The loss is
scaled in float16, where small gradients would vanish.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from trainer.algorithm.ema import Ema
from trainer.algorithm.losses import LOSSES, LossContext, TrainBatch
from trainer.algorithm.losses.base import rows_of
from trainer.config.load import rollout_config
from trainer.config.settings import OptimSettings, Settings
from trainer.models.base import Conditioning
from trainer.models.model import FlowModel
from trainer.models.precision import resolve
from trainer.parallel.sharding import parallel
from trainer.parallel.world import World
from trainer.rollout.policy import RolloutBatch, chunks, refresh


class LossScale(torch.amp.GradScaler):
    """The scale of the loss, whose state goes into checkpoints as tensors."""

    def state(self) -> dict[str, Tensor]:
        """The scale and the updates since it last changed."""
        state = self.state_dict()
        return {name: torch.tensor(state[name]) for name in ("scale", "_growth_tracker")}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        values = {"scale": float(state["scale"]), "_growth_tracker": int(state["_growth_tracker"])}
        self.load_state_dict({**self.state_dict(), **values})


class MeanLog:
    """Weighted means of 0-d tensors over all processes, read once at the end."""

    def __init__(self) -> None:
        self._values: dict[str, list[tuple[Tensor, float]]] = defaultdict(list)

    def add(self, metrics: Mapping[str, Tensor], weight: float) -> None:
        for name, value in metrics.items():
            self._values[name].append((value.detach(), weight))

    def read(self, world: World) -> dict[str, float]:
        """Means (of `_max` and `_deviation` maxima) by name, the same on every process."""
        parts = world.gather({name: _summed(pairs) for name, pairs in self._values.items()})
        out = {}
        for name in sorted({name for part in parts for name in part}):
            sums, weights, largest = zip(*(p[name] for p in parts if name in p), strict=True)
            extreme = name.endswith(("_max", "_deviation"))
            out[name] = max(largest) if extreme else sum(sums) / max(sum(weights), 1e-12)
        return out


def _summed(pairs: Sequence[tuple[Tensor, float]]) -> tuple[float, float, float]:
    """The weighted sum, the weight and the largest of some values."""
    values = torch.stack([value.float() for value, _ in pairs]).double().cpu()
    weights = torch.tensor([weight for _, weight in pairs], dtype=torch.float64)
    return float((values * weights).sum()), float(weights.sum()), float(values.max())


def learning_rate(optim: OptimSettings, update: int) -> float:
    """The learning rate of an update: linear warm-up, constant, then half a cosine to the floor.

    `update` counts from 0.
    """
    rise = min(1.0, (update + 1) / optim.warmup_updates) if optim.warmup_updates else 1.0
    if not optim.decay_updates:
        return optim.lr * rise
    done = min(max((update - optim.decay_start) / optim.decay_updates, 0.0), 1.0)
    fall = optim.lr_floor + (1.0 - optim.lr_floor) * (1.0 + math.cos(math.pi * done)) / 2.0
    return optim.lr * rise * fall


def split(batch: TrainBatch, size: int) -> list[TrainBatch]:
    """Slices of at most `size` images."""
    total = len(batch.rollout)
    return [batch] if size >= total else [batch.select(rows) for rows in chunks(total, size)]


class Updater:
    """Owns the optimiser of a model's trainable parameters, and runs updates.

    Attributes:
        parameters: what is trained, by name.
        config: how the rollout samples.
        updates: optimiser updates done so far.
        old: the sampling policy's weights, for losses that ask for them (`LossEntry.old_decay`).
        scaler: the scale of the loss; disabled unless the forward pass is in float16.
    """

    def __init__(self, model: FlowModel, settings: Settings, world: World) -> None:
        self.settings = settings
        self.config = rollout_config(settings)
        guidance = settings.loss.guidance_scale
        self._training = (
            self.config if guidance is None else replace(self.config, guidance_scale=guidance)
        )
        self._entry = LOSSES[settings.loss.algorithm]
        self.parameters = dict(model.trainable_parameters())
        self.updates = 0
        self.old = Ema(self.parameters) if self._entry.old_decay else None
        half = resolve(settings.model.dtype, model.device) == torch.float16
        self.scaler = LossScale(model.device.type, enabled=half)
        self._sharded = parallel(settings, world.size, model.device) == "fsdp"
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
        return nullcontext() if self.old is None else self.old.swap()

    def end_epoch(self) -> None:
        """Let the sampling policy follow, once the last update of an epoch is done."""
        if self.old is not None and self._entry.old_decay is not None:
            self.old.blend(self._entry.old_decay(self.updates))

    def renew(
        self, record: RolloutBatch, cond: Conditioning, negative: Conditioning | None
    ) -> RolloutBatch:
        """A rollout with the old log-probabilities that training will reproduce to the bit.

        Where training has other sizes or another guidance than the rollout, every step is evaluated
        once more. To be called with the weights that have sampled.
        """
        size = self.settings.batch.train_batch_size or len(record)
        same = size == len(record) and self._training == self.config
        if same or not record.steps:
            return record
        parts = [
            refresh(
                self._model,
                record.select(rows),
                cond.index_select(rows),
                self._training,
                negative=rows_of(negative, rows),
            )
            for rows in chunks(len(record), size)
        ]
        means = [part.means for part in parts if part.means is not None]
        return replace(
            record,
            log_probs=torch.cat([part.log_probs for part in parts]),
            means=torch.cat(means) if means else None,
        )

    def update(
        self, batches: Sequence[TrainBatch], *, kl_beta: float | None = None, lr_scale: float = 1.0
    ) -> dict[str, float]:
        """Do one update from the batches of all processes; return its metrics.

        Every process has as many batches, of the same sizes. `kl_beta` replaces `loss.kl_beta`.
        """
        size = self.settings.batch.train_batch_size
        parts = [part for batch in batches for part in split(batch, size or len(batch.rollout))]
        counts = [int(part.valid.sum()) for part in parts]
        total = self._world.sum(float(sum(counts)))
        busy = [count > 0 for count in counts]
        if self._sharded:
            # A pass through the network needs all processes, also those with nothing to learn.
            busy = [any(flags) for flags in zip(*self._world.gather(busy), strict=True)]
        parts = [part for part, is_busy in zip(parts, busy, strict=True) if is_busy]
        counts = [count for count, is_busy in zip(counts, busy, strict=True) if is_busy]
        if total == 0:
            return {"skipped_updates": 1.0}
        settings, loss = self.settings, self.settings.loss
        if kl_beta is not None:
            loss = loss.model_copy(update={"kl_beta": kl_beta})
        context = LossContext(self._model, self._training, loss, self.old, settings.advantage.clip)
        if self._entry.prepare is not None:
            parts = self._entry.prepare(context, parts, self._world.gather)
        log = MeanLog()
        self.optimizer.zero_grad(set_to_none=True)
        for part, count in zip(parts, counts, strict=True):
            # The share of this batch in the mean over all valid images of all processes.
            share = count / total
            for term in self._entry.terms(context, part):
                loss = term.loss * share
                # Steps of an expert that is not trained (`model.experts`) teach nothing.
                if loss.requires_grad:
                    self.scaler.scale(loss).backward()
                if count:
                    log.add(term.metrics, share)
        return self._step(log, lr_scale)

    def _step(self, log: MeanLog, lr_scale: float) -> dict[str, float]:
        optim = self.settings.optim
        trained = list(self.parameters.values())
        if not self._sharded:
            self._world.sum_gradients(trained)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(trained, optim.max_grad_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        rate = lr_scale * learning_rate(optim, self.updates)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        finite = bool(torch.isfinite(norm))
        if finite:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.updates += 1
        metrics = log.read(self._world)
        if finite:
            metrics["grad_norm"] = float(norm)
        metrics["lr"] = rate
        metrics["skipped_updates"] = 0.0 if finite else 1.0
        return metrics
