"""The settings of a run: frozen, typed, closed. The text under a field is its documentation.

`trainer.config.load` reads them from files and the command line; the documentation lists them.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from trainer.config.loss_settings import AnyLossSettings, GrpoSettings
from trainer.config.section import (
    AboveZero,
    Count,
    Fraction,
    OpenFraction,
    Positive,
    Scale,
    Section,
)
from trainer.types import Experts, SdeKind


class RunSettings(Section):
    """Where a run lives and how long it takes."""

    out_dir: str = "runs/latest"
    """Folder of the run: metrics, checkpoints, images, report. The same folder resumes the run.
    A file that does not state it gets `runs/` and its own name."""
    preset: str = ""
    """The shipped preset that the settings come from; written by what reads them."""
    gpus: Count = 0
    """Processes (one per GPU) that the sizes were chosen for; 0: any number. Another number that
    divides the batch trains on the same images per update, faster or slower."""
    seed: int = 42
    """Seed of everything random: prompts, noise, adapter."""
    epochs: Positive = 100
    """Sampling epochs (sample, score, update), after which the run is finished."""
    max_minutes: Scale = 0.0
    """Minutes of training and of evaluations during training, over all resumes, after which the run
    evaluates, saves and ends. 0: no limit."""
    save_every_epochs: Positive = 10
    """Epochs between checkpoints; one is always written at the start and the end."""
    keep_checkpoints: Positive = 2
    """Newest checkpoints that are kept besides the best; the older ones are the fall-back if the
    newest is damaged."""
    any_world_size: bool = False
    """Resume with another number of processes than before: sums are rounded differently, and the
    run is no longer the uninterrupted one to the bit."""
    peer_timeout_s: AboveZero = 1800.0
    """Seconds that a process waits for the others, beyond what the reward service may take
    (`rewards.patience_s` + `rewards.deadline_s`)."""
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
    """A LoRA that training goes on from: a folder or file as diffusers or peft writes it, of rank
    `lora_rank` or less and any alpha. KL and reference are those of the base model without it."""
    lora_targets: tuple[str, ...] = ()
    """Name endings of the layers that get an adapter; empty: the family's attention layers."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "float32"
    """Type of the forward pass; trained weights are always float32. `auto`: bfloat16 where the GPU
    or CPU is faster with it."""
    activation_checkpointing: bool = False
    """Compute the activations inside transformer blocks again in the backward pass: much less
    memory, a third more time, the same gradients."""
    compile: bool = False
    """Compile transformer blocks with torch.compile; needs a C++ compiler, or Triton on CUDA."""
    max_sequence_length: Count = 256
    """Tokens of the language encoder, as when the model is used later: diffusers has 256 for SD3
    and 512 for FLUX, Qwen-Image, Z-Image and Wan; 0 for a pipeline without one (the miniature)."""
    true_cfg_scale: Scale = 1.0
    """FLUX.1-dev and Kontext: guidance by a second forward pass with the negative prompt, on top
    of the embedded `sampling.guidance_scale`; 1 and less does without."""
    experts: Experts = "both"
    """Wan 2.2 with two experts only: which are trained. The other samples its steps as it is."""
    keep_encoders: bool = False
    """Keep the text encoders in memory after all prompts have been encoded."""
    prompt_cache_gb: AboveZero = 16.0
    """Main memory for encoded prompts, per process, in 10^9 bytes. Where not all fit, the encoders
    are kept and prompts are encoded when they are drawn."""


class SamplingSettings(Section):
    """How images are sampled."""

    num_steps: Annotated[int, Field(ge=2)] = 10
    """Sampling steps while training (T_train)."""
    eval_num_steps: Positive = 40
    """Deterministic sampling steps in evaluations (T_eval)."""
    sde: SdeKind = "flow_sde"
    """Kind of the stochastic steps; `ode` has none and is for losses on finished images."""
    noise_level: AboveZero = 0.7
    """The paper's a: strength of the noise of a stochastic step."""
    group_noise: Literal["independent", "shared_start", "antithetic_pairs"] = "independent"
    """Noise of the images of a group. `independent`: each has its own. `shared_start`: the same
    start (Flow-GRPO-Fast, DanceGRPO), so that rewards differ only by what the stochastic steps did.
    `antithetic_pairs`: two and two share a start and have opposite noise in the stochastic steps,
    so that what the start is worth cancels in the gradient of a pair."""
    window_size: Count = 0
    """Consecutive stochastic steps that are trained (Flow-GRPO-Fast: 1 to 3), drawn anew for every
    epoch; 0: all but the last."""
    window_start: Count = 0
    """First step that may lie in the window."""
    window_end: Count = 0
    """The window ends before this step; 0: before the last step."""
    window_per: Literal["epoch", "prompt"] = "epoch"
    """What a window is drawn for: `epoch`: all images; `prompt`: each group, so that an update sees
    several steps (Flash-GRPO); `batch.rollout_batch_size` then divides `batch.images_per_prompt`.
    """
    guidance_scale: Scale = 1.0
    """Classifier-free guidance while training. As in diffusers, 1 and less is none and needs no
    second forward pass; Z-Image's pipeline counts from 0: its scale is one less than this one."""
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
    """Images per training forward, per process; a divisor of rollout_batch_size. 0: as in the
    rollout, which makes the first ratio of an epoch exactly 1 without a further pass."""
    optimizer_steps_per_epoch: Positive = 2
    """Updates per epoch; the images are divided evenly between them, the rest is accumulation."""
    skip_constant_groups: bool = True
    """Leave out the images of prompts whose rewards are all equal: nothing is learnt from them, and
    they count in neither the policy's loss nor the KL."""


class OptimSettings(Section):
    """AdamW."""

    lr: AboveZero = 3e-4
    """Learning rate."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the moments."""
    eps: AboveZero = 1e-8
    """Added to the denominator."""
    weight_decay: Scale = 1e-4
    """Decoupled weight decay."""
    max_grad_norm: AboveZero = 1.0
    """Gradients are clipped to this global norm."""
    warmup_updates: Count = 0
    """Updates over which the learning rate rises linearly."""
    decay_start: Count = 0
    """Updates after which the learning rate begins to fall."""
    decay_updates: Count = 0
    """Updates over which it falls, along half a cosine, to lr_floor; 0: it does not."""
    lr_floor: Fraction = 0.1
    """Share of lr that is left after the decay."""


class AdvantageSettings(Section):
    """From rewards to advantages."""

    std: Literal["group", "global"] = "global"
    """Divide by the standard deviation of the group, or of the whole epoch."""
    clip: AboveZero = 5.0
    """Largest absolute advantage."""
    combine: Literal["sum", "per_reward", "gdpo"] = "sum"
    """Several rewards: add them up and normalise, or normalise each and add them up; `gdpo` divides
    that sum by its deviation over the epoch, and always normalises within groups."""
    eps: AboveZero = 1e-4
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
    """What is watched in evaluations: a fall here while the reward rises is reward hacking."""
    deadline_s: AboveZero = 120.0
    """Seconds until the scores of one sampling batch have to be there, retries included."""
    patience_s: AboveZero = 60.0
    """Seconds to wait for a service that does not answer, before the run is saved and stopped."""
    retry_pause_s: AboveZero = 1.0
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
    every_minutes: Scale = 0.0
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
    diversity_fall: Fraction | None = None
    """The share for diversity, where another one fits; 1: not before it is zero. Where an edit has
    one right picture, the images of a prompt become alike."""
    kl_steps: Count = 4
    """Steps of an evaluation at which the velocity is compared with the base model's, which is the
    KL to the base; each costs one more forward pass. 0: off."""
    training_sampler: bool = False
    """Before and after, evaluate the same prompts as training samples them, too: its steps, noise
    and guidance. A gain that is only there is one that more steps do not show."""
    samples_shown: Count = 12
    """Prompts whose images are kept at every evaluation, for the report."""


class AlarmSettings(Section):
    """What `run.on_alarm` may do: one action after each evaluation with a value beyond bounds."""

    max_actions: Positive = 4
    """How many actions are taken in a run; later alarms are only reported."""
    kl_start: AboveZero = 0.04
    """`raise_kl`: the first weight where `loss.kl_beta` is 0; the official code's weight."""
    kl_factor: Annotated[float, Field(gt=1)] = 3.0
    """`raise_kl`: the weight is multiplied by it."""
    kl_max: AboveZero = 10.0
    """`raise_kl`: the largest weight."""
    lr_factor: OpenFraction = 0.5
    """`rewind`: the learning rate, schedule included, is multiplied by it."""
    lr_min: OpenFraction = 0.1
    """`rewind`: the smallest share of the learning rate that may be left."""


class TaskSettings(Section):
    """Prompts."""

    name: str = "geneval"
    """Key of `trainer.data.TASKS`: geneval, ocr, texts, jsonl, edit."""
    train: str = "@mini/data/geneval_train.jsonl"
    """File of training prompts: .jsonl, .json, .csv, .tsv or .parquet with rows, or .txt with one
    prompt per line (ocr, texts). `@mini/` stands for the miniature's folder."""
    test: str = "@mini/data/geneval_test.jsonl"
    """File of held-out prompts."""
    category_weights: dict[str, Scale] = Field(default_factory=dict)
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


class RecordSettings(Section):
    """The flight recorder: every training image with its scores and advantage (`record/`)."""

    images: Literal["none", "lossless", "webp90"] = "none"
    """How pictures are kept: `lossless` (WebP) can be scored again exactly, `webp90` (WebP of
    quality 90) takes about a sixth and gives other scores; `none`: nothing is recorded."""
    max_bytes: Positive = 20_000_000_000
    """Size of `record/`, over all processes. Beyond it, pictures of older epochs go first: of every
    second of their groups, again and again, until what is left fits."""
    min_free_bytes: Count = 2_000_000_000
    """Recording stops when less than this, or than two checkpoints of the run, would be left free
    on the disk."""


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
    record: RecordSettings = RecordSettings()

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
