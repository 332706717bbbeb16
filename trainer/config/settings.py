"""The settings of a run: frozen, typed, closed. The text under a field is its documentation.

`trainer.config.load` reads them from files and the command line; the documentation lists them.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from trainer.types import AdvantageMode, LogProbForm, SdeKind

Positive = Annotated[int, Field(gt=0)]
Count = Annotated[int, Field(ge=0)]
Scale = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A group of settings; unknown names are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class RunSettings(Section):
    """Where a run lives and how long it takes."""

    out_dir: str = "runs/latest"
    """Folder of the run: metrics, checkpoints, images, report. The same folder resumes the run.
    A file that does not state it gets `runs/` and its own name."""
    preset: str = ""
    """The shipped preset that the settings come from; written by what reads them."""
    gpus: Count = 0
    """Processes (one per GPU) that the sizes were chosen for; 0: any number. Others that divide
    the batch train on the same images per update, only faster or slower; a line says so."""
    seed: int = 42
    """Seed of everything random: prompts, noise, adapter."""
    epochs: Positive = 100
    """Sampling epochs (sample, score, update), after which the run is finished."""
    max_minutes: Annotated[float, Field(ge=0)] = 0.0
    """Minutes of training, evaluation during training included, over all resumes; after them the
    run evaluates, saves and ends. 0: no limit. Loading, the base's and the final evaluation are
    not counted."""
    save_every_epochs: Positive = 10
    """Epochs between checkpoints; one is always written at the start and the end."""
    keep_checkpoints: Positive = 2
    """How many checkpoints are kept, newest first, besides the best; the older ones are the
    fall-back if the newest is damaged."""
    any_world_size: bool = False
    """Resume with another number of processes than before. Sums are then rounded differently, and
    the run is no longer the uninterrupted one to the bit."""
    peer_timeout_s: Annotated[float, Field(gt=0)] = 1800.0
    """Seconds that a process waits for the others, beyond what the reward service may take
    (`rewards.patience_s` + `rewards.deadline_s`), before it gives the run up."""
    device: str = "auto"
    """`auto` (CUDA where there is any, else the CPU), `cpu`, `cuda` or `cuda:N`."""
    threads: Positive = 1
    """CPU threads of PyTorch per process. Small models run fastest with one."""
    deterministic: bool = True
    """Only deterministic kernels, so that a resumed run gives the same numbers."""
    parallel: Literal["auto", "replicated", "fsdp"] = "auto"
    """How several processes share the model: `replicated`: each has all of it; `fsdp`: each has a
    shard; `auto`: fsdp for full fine-tuning on GPUs, replicated for adapters and on CPUs."""
    tf32: bool = False
    """Multiply float32 matrices on CUDA with TF32: faster, 10 bits of mantissa."""
    on_alarm: Literal["report", "stop", "raise_kl", "rewind"] = "report"
    """What to do about an alarm (eval.alarm_fall), besides reporting it. `stop`: save, evaluate and
    end; the same command goes on. `raise_kl`: raise the weight of the KL. `rewind`: go back to the
    best evaluation without an alarm, with a smaller learning rate. Bounds are in `[alarm]`."""


class ModelSettings(Section):
    """The flow model that is trained."""

    family: str = "sd3"
    """Key of `trainer.models.registry.MODELS`."""
    path: str = "@mini/weights"
    """Folder of a diffusers pipeline, or a hub id. `@mini/` stands for the miniature's folder."""
    finetune: Literal["lora", "full"] = "lora"
    """Train low-rank adapters, or the weights of the transformer."""
    trained_layers: tuple[str, ...] = ()
    """`full`: name parts of the weights that are trained, e.g. `norm1.linear`; empty: all."""
    lora_rank: Positive = 32
    """Rank of the adapters."""
    lora_alpha: Positive = 64
    """Adapters are scaled by alpha / rank."""
    lora_path: str = ""
    """A LoRA that training goes on from: a folder or file as diffusers or peft writes it. Its
    update is what the adapters begin as, whatever its alpha; its rank is at most `lora_rank`. KL
    and reference are those of the base model without it."""
    lora_targets: tuple[str, ...] = ()
    """Name endings of the layers that get an adapter; empty: the family's attention layers."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Type of the forward pass; trained weights are always float32. `auto`: bfloat16 where the GPU
    or CPU is faster with it."""
    activation_checkpointing: bool = False
    """Keep no activations inside transformer blocks, compute them again in the backward pass: much
    less memory, a third more time, the same gradients."""
    compile: bool = False
    """Compile each transformer block with torch.compile; needs a C++ compiler, or Triton on CUDA.
    """
    max_sequence_length: Count = 256
    """Tokens of the language encoder, as many as when the model is used later: diffusers has 256
    for SD3 and 512 for FLUX, Qwen-Image, Z-Image and Wan; 0 for a pipeline without one, such as
    the miniature."""
    true_cfg_scale: Scale = 1.0
    """FLUX.1-dev only: guidance by a second forward pass with the negative prompt, on top of the
    embedded `sampling.guidance_scale`; 1 and less does without."""
    experts: Literal["both", "high_noise", "low_noise"] = "both"
    """Wan 2.2 with two experts only: which are trained. The other one samples its steps as it is.
    """
    keep_encoders: bool = False
    """Keep the text encoders in memory after all prompts have been encoded."""
    prompt_cache_gb: Annotated[float, Field(gt=0)] = 16.0
    """Main memory for encoded prompts, per process, in 10^9 bytes. Where not all prompts fit, the
    encoders are kept and prompts are encoded when they are drawn."""


class SamplingSettings(Section):
    """How images are sampled."""

    num_steps: Annotated[int, Field(ge=2)] = 10
    """Sampling steps while training (T_train)."""
    eval_num_steps: Positive = 40
    """Deterministic sampling steps in evaluations (T_eval)."""
    sde: SdeKind = "flow_sde"
    """Kind of the stochastic steps; `ode` has none and is for losses on finished images."""
    noise_level: Annotated[float, Field(gt=0)] = 0.7
    """The paper's a: strength of the noise of a stochastic step."""
    group_noise: Literal["independent", "shared_start", "antithetic_pairs"] = "independent"
    """Noise of the images of a group. `independent`: each has its own. `shared_start`: the same
    start (Flow-GRPO-Fast, DanceGRPO), so that rewards differ only by what the stochastic steps did.
    `antithetic_pairs`: two and two share a start and have opposite noise in the stochastic steps,
    so that what the start is worth cancels in the gradient of a pair. Steps before the window are
    sampled once for images that start alike."""
    window_size: Count = 0
    """Consecutive stochastic steps that are trained (Flow-GRPO-Fast: 1 to 3), drawn anew for every
    epoch; 0: all but the last."""
    window_start: Count = 0
    """First step that may lie in the window."""
    window_end: Count = 0
    """The window ends before this step; 0: before the last step."""
    window_per: Literal["epoch", "prompt"] = "epoch"
    """What a window is drawn for: `epoch`: one for all images; `prompt`: one for each group, so
    that an update sees several steps (Flash-GRPO); `batch.rollout_batch_size` then divides
    `batch.images_per_prompt`."""
    guidance_scale: Scale = 1.0
    """Classifier-free guidance while training. As in diffusers, 1 and less (0, on the cards of
    distilled models) is none and needs no second forward pass; Z-Image's pipeline counts from 0:
    its scale is one less than this one."""
    eval_guidance_scale: Scale | None = None
    """Guidance in evaluations; unset: as in training."""
    negative_prompt: str = ""
    """What guidance moves away from."""
    resolution_px: Positive = 64
    """Width and height of the images, unless stated apart."""
    height_px: Count = 0
    """Height, where it is not `resolution_px`; 0: it is."""
    width_px: Count = 0
    """Width, where it is not `resolution_px`; 0: it is."""
    num_frames: Positive = 1
    """Frames of a video model; 1 for images."""

    @property
    def size(self) -> tuple[int, int, int]:
        """Height and width in pixels, and the number of frames."""
        side = self.resolution_px
        return self.height_px or side, self.width_px or side, self.num_frames


class BatchSettings(Section):
    """Sizes of one epoch, over all processes unless stated otherwise."""

    prompts_per_epoch: Positive = 12
    """Groups per epoch: how many prompts are drawn."""
    images_per_prompt: Annotated[int, Field(ge=2)] = 16
    """Group size: images of one prompt, compared with each other."""
    rollout_batch_size: Positive = 16
    """Images sampled at once, per process."""
    train_batch_size: Count = 0
    """Images per training forward, per process; 0: as in the rollout, which makes the first ratio
    of an epoch exactly 1 without a further pass. Divides rollout_batch_size."""
    optimizer_steps_per_epoch: Positive = 2
    """Updates per epoch; the images are divided evenly between them, the rest is accumulation."""
    skip_constant_groups: bool = True
    """Leave out the images of prompts whose rewards are all equal: nothing is learnt from them, and
    they count in neither the policy's loss nor the KL."""


class OptimSettings(Section):
    """AdamW."""

    lr: Annotated[float, Field(gt=0)] = 3e-4
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the moments."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    """Decoupled weight decay."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this global norm."""
    warmup_updates: Count = 0
    """Updates over which the learning rate rises linearly."""
    decay_start: Count = 0
    """Updates after which the learning rate begins to fall."""
    decay_updates: Count = 0
    """Updates over which it falls, along half a cosine, to lr_floor; 0: it does not."""
    lr_floor: Fraction = 0.1
    """Share of lr that is left after the decay."""


class LossSettings(Section):
    """What all losses have; `loss.algorithm` says which one it is.

    Attributes:
        learns_from: the stochastic steps of the rollout, or finished images, which deterministic
            sampling makes.
        advantage_mode: what the advantages of its images mean (`trainer.algorithm.advantages`).
        keep_means: whether the rollout has to store the means of its steps.
        log_prob_form: the log-probabilities that it needs; None: the official ones of the sampler.
        needs_reference: whether it compares with the base model, whatever `kl_beta` is.
        needs_groups: whether the images of a group have to be in one update.
    """

    learns_from: ClassVar[Literal["steps", "images"]]
    advantage_mode: ClassVar[AdvantageMode] = "relative"
    keep_means: ClassVar[bool] = False
    log_prob_form: ClassVar[LogProbForm | None] = None
    needs_reference: ClassVar[bool] = False
    needs_groups: ClassVar[bool] = False

    guidance_scale: float | None = None
    """Guidance of the policy and the reference in updates; unset: as in sampling."""
    kl_beta: Annotated[float, Field(ge=0)] = 0.04
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

    clip_low: Annotated[float, Field(gt=0, lt=1)] = 1e-4
    """The ratio is clipped below 1 - clip_low."""
    clip_high: Annotated[float, Field(gt=0)] = 1e-4
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
    """`grpo_guard`."""


class FlowDppoSettings(StepLossSettings):
    """Flow-DPPO: the policy gradient within a divergence from the policy that sampled."""

    keep_means = True
    log_prob_form = "gaussian"
    algorithm: Literal["flow_dppo"] = "flow_dppo"
    """`flow_dppo`."""
    dppo_threshold: Annotated[float, Field(gt=0)] = 1e-6
    """Divergence of a step from the policy that sampled, averaged over elements, beyond which an
    image is left out if it leads further away (paper: 1e-7 with flow_sde, 1e-6 with cps)."""


class NftSettings(ImageLossSettings):
    """DiffusionNFT."""

    algorithm: Literal["nft"] = "nft"
    """`nft`."""
    nft_beta: Annotated[float, Field(gt=0)] = 1.0
    """Strength of the guidance between the old and the new policy."""


class AwmSettings(ImageLossSettings, ClipSettings):
    """Advantage-weighted matching."""

    algorithm: Literal["awm"] = "awm"
    """`awm`."""


class DpoSettings(ImageLossSettings):
    """Online DPO."""

    advantage_mode = "best_worst"
    needs_reference = needs_groups = True
    algorithm: Literal["dpo"] = "dpo"
    """`dpo`."""
    dpo_beta: Annotated[float, Field(gt=0)] = 100.0
    """How sharply the best and the worst image of a group are told apart."""


class DgpoSettings(ImageLossSettings, ClipSettings):
    """DGPO."""

    needs_reference = needs_groups = True
    algorithm: Literal["dgpo"] = "dgpo"
    """`dgpo`."""
    dgpo_beta: Annotated[float, Field(gt=0)] = 100.0
    """How soon a group that is told apart teaches less (10 to 100 with a fixed reference)."""
    clip_low: Annotated[float, Field(gt=0, lt=1)] = 1e-2
    """The ratio exp(E_old - E) is clipped below 1 - clip_low."""
    clip_high: Annotated[float, Field(gt=0)] = 1e-2
    """The ratio is clipped above 1 + clip_high."""


class SftSettings(ImageLossSettings):
    """Online SFT on the best image of each group."""

    advantage_mode = "best"
    algorithm: Literal["sft"] = "sft"
    """`sft`."""


class RwrSettings(ImageLossSettings):
    """Reward-weighted regression."""

    advantage_mode = "softmax"
    algorithm: Literal["rwr"] = "rwr"
    """`rwr`."""
    rwr_temperature: Annotated[float, Field(gt=0)] = 1.0
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
# Which settings each loss has: nothing that it would ignore can be set.
LOSS_SETTINGS: dict[str, type[AnyLossSettings]] = {
    "grpo": GrpoSettings,
    "grpo_guard": GrpoGuardSettings,
    "flow_dppo": FlowDppoSettings,
    "nft": NftSettings,
    "awm": AwmSettings,
    "dpo": DpoSettings,
    "dgpo": DgpoSettings,
    "sft": SftSettings,
    "rwr": RwrSettings,
}


class AdvantageSettings(Section):
    """From rewards to advantages."""

    std: Literal["group", "global"] = "global"
    """Divide by the standard deviation of the group, or of the whole epoch."""
    clip: Annotated[float, Field(gt=0)] = 5.0
    """Largest absolute advantage."""
    combine: Literal["sum", "per_reward", "gdpo"] = "sum"
    """Several rewards: add them up and normalise, or normalise each and add them up; `gdpo` divides
    that sum by its deviation over the epoch, and always normalises within groups."""
    eps: Annotated[float, Field(gt=0)] = 1e-4
    """Added to the standard deviation."""


class RewardTerm(Section):
    """One value of one scorer."""

    scorer: str
    """Name of the scorer at the service."""
    transform: str = ""
    """Named transform of the score; empty: the scorer's default."""
    component: str = ""
    """Take this component instead of the score."""
    weight: float = 1.0
    """Weight in the sum (rewards only)."""
    label: str = ""
    """Name in logs and report; empty: made from scorer and component."""
    alarm_fall: Fraction | None = None
    """For a watched reward: its own eval.alarm_fall."""

    @property
    def name(self) -> str:
        """Name in logs and report."""
        if self.label:
            return self.label
        return ".".join(part for part in (self.scorer, self.component or self.transform) if part)


class RewardSettings(Section):
    """The reward service and what is asked of it."""

    url: str = "grpc://127.0.0.1:50051"
    """Address of the service, `grpc://host:port` or `http://host:port`; several equal ones with
    commas between them share the work and stand in for each other. The environment variable
    REWARD_URL comes before the preset; `--set rewards.url=` before both."""
    train: tuple[RewardTerm, ...] = ()
    """What is trained on."""
    watch: tuple[RewardTerm, ...] = ()
    """What is only watched, in evaluations: a fall here while the reward rises is reward hacking.
    """
    deadline_s: Annotated[float, Field(gt=0)] = 120.0
    """Seconds until the scores of one sampling batch have to be there, retries included."""
    patience_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds that a service which does not answer is waited for: at the start, and during the run
    before it is saved and stopped."""
    retry_pause_s: Annotated[float, Field(gt=0)] = 1.0
    """Seconds between two tries within the patience."""
    requests_in_flight: Positive = 4
    """Sampling batches that may be at the service at once."""
    max_failed_fraction: Fraction = 0.25
    """Share of an epoch's images that may have no score (they are left out); more stops the run."""


class EmaSettings(Section):
    """Running average of the trained weights; evaluated and saved."""

    enabled: bool = True
    """Evaluate and save the average instead of the last weights."""
    decay: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Largest decay of one averaging; it warms up as (1 + n) / (10 + n) over the updates n."""
    every_updates: Positive = 8
    """Optimiser updates between two averagings."""


class EvalSettings(Section):
    """Evaluation on held-out prompts with deterministic sampling."""

    every_epochs: Count = 20
    """Epochs between evaluations of the curve; 0: only before and after."""
    every_minutes: Annotated[float, Field(ge=0)] = 0.0
    """Minutes between evaluations of the curve, in addition; 0: off."""
    images_per_prompt: Positive = 4
    """Images of each prompt, before and after."""
    curve_images_per_prompt: Positive = 1
    """Images of each prompt in the evaluations in between."""
    num_prompts: Count = 0
    """Prompts, evenly over the categories; 0: all of the test file."""
    batch_size: Positive = 64
    """Images sampled at once, per process."""
    seed: int = 1234
    """Seed of the noise: the same in every evaluation and run."""
    metrics: tuple[RewardTerm, ...] = ()
    """What is measured; the first is the headline. Empty: the training rewards."""
    alarm_fall: Fraction = 0.10
    """An alarm begins when a watched reward or the diversity has fallen by this share of the base's
    value, or what is measured by this share of its best, beyond the 95 % intervals, while the
    trained reward rose."""
    kl_steps: Count = 4
    """Steps of an evaluation's sampling at which the velocity is compared with the base model's,
    which is the KL to the base; each costs one more forward pass. 0: off."""
    samples_shown: Count = 12
    """Prompts whose images are kept at every evaluation, for the report."""


class AlarmSettings(Section):
    """What `run.on_alarm` may do: one action after each evaluation with a value beyond bounds."""

    max_actions: Positive = 4
    """How many actions are taken in a run; later alarms are only reported."""
    kl_start: Annotated[float, Field(gt=0)] = 0.04
    """`raise_kl`: the first weight where `loss.kl_beta` is 0; the official code's weight."""
    kl_factor: Annotated[float, Field(gt=1)] = 3.0
    """`raise_kl`: the weight is multiplied by it."""
    kl_max: Annotated[float, Field(gt=0)] = 10.0
    """`raise_kl`: the largest weight."""
    lr_factor: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """`rewind`: the learning rate, schedule included, is multiplied by it."""
    lr_min: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """`rewind`: the smallest share of the learning rate that may be left."""


class TaskSettings(Section):
    """Prompts."""

    name: str = "geneval"
    """Key of `trainer.data.TASKS`: geneval, ocr, texts, jsonl."""
    train: str = "@mini/data/geneval_train.jsonl"
    """File of training prompts: .jsonl, .json, .csv, .tsv or .parquet with rows, or .txt with one
    prompt per line (ocr, texts). `@mini/` stands for the miniature's folder."""
    test: str = "@mini/data/geneval_test.jsonl"
    """File of held-out prompts."""
    category_weights: dict[str, float] = Field(default_factory=dict)
    """How often each category is drawn for training, relative to each other; a category that is
    not named gets 0, and an empty table draws every prompt equally often."""
    overlap: Literal["error", "warn", "allow", "drop"] = "error"
    """What to do about test prompts that are also in the training file; `drop` leaves them out of
    the training."""


class LoggingSettings(Section):
    """Where numbers go, besides `metrics.jsonl` and the report, which are always written."""

    tensorboard: bool = True
    """Write TensorBoard files into the run's folder."""
    wandb_project: str = ""
    """Weights & Biases project; empty: off."""
    groups_every_epochs: Count = 10
    """Epochs between those whose best and worst groups are kept for the report: a few small
    pictures with rewards and the scorers' explanations, of the first such epoch and the newest.
    0: off."""


class Settings(Section):
    """All settings of a run."""

    run: RunSettings = RunSettings()
    model: ModelSettings = ModelSettings()
    sampling: SamplingSettings = SamplingSettings()
    batch: BatchSettings = BatchSettings()
    optim: OptimSettings = OptimSettings()
    loss: Annotated[AnyLossSettings, Field(discriminator="algorithm")] = GrpoSettings()
    advantage: AdvantageSettings = AdvantageSettings()
    rewards: RewardSettings = RewardSettings()
    ema: EmaSettings = EmaSettings()
    eval: EvalSettings = EvalSettings()
    alarm: AlarmSettings = AlarmSettings()
    task: TaskSettings = TaskSettings()
    logging: LoggingSettings = LoggingSettings()

    @property
    def measured(self) -> tuple[RewardTerm, ...]:
        """What evaluations measure; the first is the headline."""
        return self.eval.metrics or self.rewards.train

    @property
    def terms(self) -> tuple[RewardTerm, ...]:
        """Every term that the run ever asks for, each name once."""
        terms = (*self.rewards.train, *self.measured, *self.rewards.watch)
        return tuple({term.name: term for term in terms}.values())

    @field_validator("loss", mode="before")
    @classmethod
    def _default_algorithm(cls, value: Any) -> Any:
        return {"algorithm": "grpo", **value} if isinstance(value, dict) else value
