"""How often an epoch calls the network, counted from the settings alone.

A call on one image is one evaluation; classifier-free guidance doubles the batch and counts twice.
"""

from dataclasses import dataclass

from trainer.config import rollout_config, training_guidance
from trainer.losses import LOSSES
from trainer.settings import Settings

# Families that are told the guidance as a number, so that it costs no second evaluation.
EMBEDDED_GUIDANCE = frozenset({"flux"})

# Images of a group that an update looks at, by what the advantages mean; the others: all.
_USED = {"best": 1, "best_worst": 2}


@dataclass(frozen=True, slots=True)
class Evaluations:
    """Evaluations of the network per sampled image and epoch, on average.

    Attributes:
        rollout: while sampling.
        train: with a backward pass.
        reference: of the untrained model.
        other: without gradients, of the policy or older weights of it.
        steps: sampling steps that are trained, or noise levels.
        doubled: 2 where guidance doubles the training batch, else 1.
        used: share of the images that updates learn from.
    """

    rollout: float
    train: float
    reference: float
    other: float
    steps: int
    doubled: int
    used: float

    @property
    def forward(self) -> float:
        """All evaluations without a backward pass."""
        return self.rollout + self.reference + self.other


def evaluations(settings: Settings) -> Evaluations:
    """Count the evaluations per image of an epoch in which every group has a signal."""
    loss, entry = settings.loss, LOSSES[settings.loss.algorithm]
    config = rollout_config(settings)
    family = settings.model.family
    further = settings.model.true_cfg_scale != 1.0
    sampled = _doubled(family, settings.sampling.guidance_scale, further)
    trained = _doubled(family, training_guidance(settings), further)
    used = min(1.0, _USED.get(entry.advantage, 1e9) / settings.batch.images_per_prompt)
    reference = 1.0 if loss.kl_beta > 0 or entry.reference else 0.0
    other = 0.0
    if entry.learns_from == "steps":
        first, end = config.allowed
        steps = config.window_size or end - first
        other += _renewed(settings)
    else:
        steps = min(loss.noise_levels, settings.sampling.num_steps)
        other += bool(entry.old) + (settings.ema.enabled and loss.ema_kl_beta > 0)
        if entry.prepare is not None:  # one pass of the policy and one of the reference before
            other, reference = other + 1, reference + 1
    each = steps * trained * used
    return Evaluations(
        rollout=settings.sampling.num_steps * sampled,
        train=each,
        reference=reference * each,
        other=other * each,
        steps=steps,
        doubled=trained,
        used=used,
    )


def _renewed(settings: Settings) -> float:
    """Whether old log-probabilities are computed again, because training batches differ."""
    batch = settings.batch
    size = batch.train_batch_size or batch.rollout_batch_size
    guidance = settings.sampling.guidance_scale, training_guidance(settings)
    same = size == batch.rollout_batch_size and batch.fold_steps == 1
    return 0.0 if same and guidance[0] == guidance[1] else 1.0


def _doubled(family: str, guidance_scale: float, further: bool) -> int:
    if family in EMBEDDED_GUIDANCE:
        return 2 if further else 1
    return 1 if guidance_scale == 1.0 else 2
