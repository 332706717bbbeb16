"""The settings of the losses: each has its own, so that nothing that it would ignore can be set."""

from typing import ClassVar, Literal, get_args

from trainer.config.section import AboveZero, Fraction, OpenFraction, Positive, Scale, Section
from trainer.types import AdvantageMode, LogProbForm


class LossSettings(Section):
    """What all losses have; `loss.algorithm` says which one it is."""

    learns_from: ClassVar[Literal["steps", "images"]]  # stochastic steps, or finished images
    advantage_mode: ClassVar[AdvantageMode] = "relative"  # see `trainer.algorithm.advantages`
    keep_means: ClassVar[bool] = False  # the rollout has to store the means of its steps
    log_prob_form: ClassVar[LogProbForm | None] = None  # None: as the sampler's official code
    needs_reference: ClassVar[bool] = False  # compares with the base, whatever `kl_beta` is
    needs_groups: ClassVar[bool] = False  # the images of a group have to be in one update

    guidance_scale: float | None = None
    """Guidance of the policy and the reference in updates; unset: as in sampling."""
    kl_beta: Scale = 0.04
    """Weight of the KL to the base model; 0 saves the reference's forward pass. On finished images
    it is the squared distance of the velocities."""


class ImageLossSettings(LossSettings):
    """What the losses on finished images have."""

    learns_from = "images"
    noise_levels: Positive = 4
    """Noise levels per image and update, at most the steps of the rollout."""
    lowest_level: Fraction = 0.0
    """Only noise levels from this one up: a rollout of few steps lacks detail, which a loss at low
    noise would teach (DGPO: shift(0.3), 0.56 for SD3)."""


class ClipSettings(LossSettings):
    """What the losses with a ratio have."""

    clip_low: OpenFraction = 1e-4
    """The ratio is clipped below 1 - clip_low."""
    clip_high: AboveZero = 1e-4
    """The ratio is clipped above 1 + clip_high."""


class StepLossSettings(LossSettings):
    """What the losses on stochastic steps have."""

    learns_from = "steps"
    kl_form: Literal["mean", "mean_dt", "velocity"] = "mean"
    """`mean`: the official code (beta 0.04); `mean_dt`: the paper's formula; `velocity`: squared
    distance of the velocities."""
    step_weights: Literal["uniform", "noise", "gradient"] = "uniform"
    """Weight of the policy gradient at each stochastic step: `uniform`: all alike; `noise`: by the
    noise that the step adds (TempFlow-GRPO); `gradient`: so that the noise of every step moves the
    velocity's gradient as much (Flash-GRPO)."""


class GrpoSettings(StepLossSettings, ClipSettings):
    """The clipped policy gradient on stochastic steps."""

    algorithm: Literal["grpo"] = "grpo"
    """Key of `trainer.algorithm.losses.LOSSES`."""


class GrpoGuardSettings(StepLossSettings, ClipSettings):
    """GRPO-Guard."""

    keep_means = True
    log_prob_form = "gaussian"
    algorithm: Literal["grpo_guard"] = "grpo_guard"


class FlowDppoSettings(StepLossSettings):
    """Flow-DPPO: the policy gradient within a divergence from the policy that sampled."""

    keep_means = True
    log_prob_form = "gaussian"
    algorithm: Literal["flow_dppo"] = "flow_dppo"
    dppo_threshold: AboveZero = 1e-6
    """Divergence of a step from the policy that sampled, averaged over elements, beyond which an
    image is left out if it leads further away (paper: 1e-7 with flow_sde, 1e-6 with cps)."""


class NftSettings(ImageLossSettings):
    """DiffusionNFT."""

    algorithm: Literal["nft"] = "nft"
    nft_beta: AboveZero = 1.0
    """Strength of the guidance between the old and the new policy."""


class AwmSettings(ImageLossSettings, ClipSettings):
    """Advantage-weighted matching."""

    algorithm: Literal["awm"] = "awm"


class DpoSettings(ImageLossSettings):
    """Online DPO."""

    advantage_mode = "best_worst"
    needs_reference = needs_groups = True
    algorithm: Literal["dpo"] = "dpo"
    dpo_beta: AboveZero = 100.0
    """How sharply the best and the worst image of a group are told apart."""


class DgpoSettings(ImageLossSettings, ClipSettings):
    """DGPO."""

    needs_reference = needs_groups = True
    algorithm: Literal["dgpo"] = "dgpo"
    dgpo_beta: AboveZero = 100.0
    """How soon a group that is told apart teaches less (10 to 100 with a fixed reference)."""
    clip_low: OpenFraction = 1e-2
    """The ratio exp(E_old - E) is clipped below 1 - clip_low."""
    clip_high: AboveZero = 1e-2
    """The ratio is clipped above 1 + clip_high."""


class SftSettings(ImageLossSettings):
    """Online SFT on the best image of each group."""

    advantage_mode = "best"
    algorithm: Literal["sft"] = "sft"


class RwrSettings(ImageLossSettings):
    """Reward-weighted regression."""

    advantage_mode = "softmax"
    algorithm: Literal["rwr"] = "rwr"
    rwr_temperature: AboveZero = 1.0
    """Images are weighed by exp(advantage / temperature)."""


AnyLossSettings = (
    GrpoSettings
    | GrpoGuardSettings
    | FlowDppoSettings
    | NftSettings
    | AwmSettings
    | DpoSettings
    | DgpoSettings
    | SftSettings
    | RwrSettings
)
LOSS_SETTINGS: dict[str, type[AnyLossSettings]] = {
    kind.model_fields["algorithm"].default: kind for kind in get_args(AnyLossSettings)
}
