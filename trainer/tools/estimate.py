"""Memory per GPU and time per epoch, estimated from shapes before anything is loaded.

Rules of thumb with stated assumptions; the test holds memory to what the miniature really uses and
operations to what PyTorch counts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from trainer.algorithm.losses import LOSSES
from trainer.config.geometry import Geometry, geometry
from trainer.config.settings import Settings
from trainer.models.architecture import Architecture
from trainer.tools.plan import Evaluations, evaluations

FLOAT32_BYTES = 4
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}

# Elements kept for the backward pass per token, block and unit of width, with an attention that
# does not store its weights: with adapters, inputs of frozen projections need not be kept.
KEPT_PER_TOKEN = {"lora": 18, "full": 30}
# Feature maps of the decoder's widest layer at full resolution that are alive at once.
DECODER_MAPS = 3
DECODED_AT_ONCE = 16

# Multiplications and additions per second at bfloat16 (dense) as the makers state them.
GPUS: Mapping[str, float] = {
    "h200": 989e12,
    "h100": 989e12,
    "a100": 312e12,
    "a800": 312e12,
    "l40s": 362e12,
    "rtx4090": 165e12,
    "rtx3090": 71e12,
    "cpu": 0.1e12,
}
USED_SHARE = 0.35
"""Share of the stated speed that a transformer of this size reaches in practice."""
FLOAT32_SLOWDOWN = 4.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one GPU, by what they are for; `peak` is the sum that has to fit.

    Attributes:
        resident: what is always there.
        passing: what is there at one moment only, of which the largest counts.
    """

    resident: Mapping[str, float]
    passing: Mapping[str, float]

    @property
    def peak(self) -> float:
        """The most that is there at once."""
        return sum(self.resident.values()) + max(self.passing.values())


@dataclass(frozen=True, slots=True)
class Time:
    """What one epoch computes, on one GPU.

    Attributes:
        flop_per_evaluation: of one image, one forward pass.
        flop: of the epoch, on one GPU.
        seconds: at `USED_SHARE` of the GPU's stated speed.
    """

    flop_per_evaluation: float
    flop: float
    seconds: float


def memory(settings: Settings, shape: Architecture, targets: tuple[str, ...], gpus: int) -> Memory:
    """Estimate the memory of one process.

    Args:
        settings: of the run.
        shape: of its model.
        targets: layers with adapters.
        gpus: number of processes.
    """
    plan, passes = geometry(settings, gpus), evaluations(settings)
    model = settings.model
    full = model.finetune == "full"
    unit = DTYPE_BYTES[model.dtype]
    trained = shape.parameters if full else shape.adapter_parameters(model.lora_rank, targets)
    copies = settings.ema.enabled + bool(LOSSES[settings.loss.algorithm].old)
    resident = {
        "network": shape.parameters * (FLOAT32_BYTES if full else unit),
        "adapters": 0 if full else trained * FLOAT32_BYTES,
        "gradients": trained * FLOAT32_BYTES,
        "optimiser": 2 * trained * FLOAT32_BYTES,
        "averages": copies * trained * FLOAT32_BYTES,
        # Under adapters the reference is the network without them.
        "reference": shape.parameters * FLOAT32_BYTES if full and passes.reference else 0,
        "autoencoder": shape.vae_parameters * FLOAT32_BYTES,
        "text encoders": shape.encoder_parameters * unit if model.keep_encoders else 0,
        "stored steps": _stored_steps(settings, shape, plan, passes),
    }
    height, width, frames = settings.sampling.size
    decoded = min(DECODED_AT_ONCE, settings.batch.rollout_batch_size)
    return Memory(
        resident,
        {
            "activations of training": _activations(settings, shape, plan, passes, unit),
            # Videos are decoded latent frame by latent frame.
            "decoding": decoded
            * min(frames, shape.frames_scale)
            * height
            * width
            * shape.vae_width
            * DECODER_MAPS
            * FLOAT32_BYTES,
            "encoding prompts": 0 if model.keep_encoders else shape.encoder_parameters * unit,
        },
    )


def time(settings: Settings, shape: Architecture, gpu: str, gpus: int) -> Time:
    """Estimate the time of an epoch: what the network computes, nothing else.

    Args:
        settings: of the run.
        shape: of its model.
        gpu: a key of `GPUS`.
        gpus: number of processes.
    """
    plan, passes = geometry(settings, gpus), evaluations(settings)
    one = flop_of_forward(settings, shape)
    # Backward: gradients of the activations, and of the weights where they are trained.
    backward = 2.0 if settings.model.finetune == "full" else 1.0
    flop = plan.images_per_rank * one * (passes.forward + passes.train * (1 + backward))
    speed = GPUS[gpu] * USED_SHARE
    if settings.model.dtype == "float32" and gpu != "cpu":
        speed /= FLOAT32_SLOWDOWN
    return Time(one, flop, flop / speed)


def flop_of_forward(settings: Settings, shape: Architecture) -> float:
    """Floating-point operations of the network on one image: its matrices, and attention."""
    image, text = _tokens(settings, shape)
    rows = partial(_rows, image=image, text=text, cross=shape.cross_attention)
    linear = sum(2 * a * b * rows(name) for name, (a, b) in shape.matrices.items())
    joint = image if shape.cross_attention else image + text
    attention = 4 * shape.blocks * shape.hidden * joint * joint
    attention += sum(
        4 * image * image * outputs
        for name, (outputs, _) in shape.matrices.items()
        if name.endswith("attn2.to_q.weight") and not shape.cross_attention
    )
    if shape.cross_attention:
        attention += 4 * shape.blocks * shape.hidden * image * text
    return linear + attention


def _rows(name: str, *, image: int, text: int, cross: bool) -> int:
    """How many tokens of an image a weight matrix is applied to."""
    if any(part in name for part in ("time_", "timestep", "norm", "_mod.", "pooled")):
        return 1
    if any(part in name for part in ("context", "txt", "add_", "to_add_out", "text_embedder")):
        return text
    if cross and any(part in name for part in ("attn2.to_k", "attn2.to_v")):
        return text
    return image + text if "single_transformer_blocks" in name else image


def _tokens(settings: Settings, shape: Architecture) -> tuple[int, int]:
    """Tokens of the image and of the text."""
    image = shape.image_tokens(*settings.sampling.size)
    return image, shape.clip_tokens + settings.model.max_sequence_length


def _activations(
    settings: Settings, shape: Architecture, plan: Geometry, passes: Evaluations, unit: int
) -> float:
    image, text = _tokens(settings, shape)
    joint = image if shape.cross_attention else image + text
    rows = plan.micro_batch_size * settings.batch.fold_steps * passes.doubled
    kept = KEPT_PER_TOKEN[settings.model.finetune]
    return rows * joint * shape.hidden * shape.blocks * kept * unit


def _stored_steps(
    settings: Settings, shape: Architecture, plan: Geometry, passes: Evaluations
) -> float:
    """Latents that an epoch keeps of its own images: before and after each trained step."""
    height, width, frames = settings.sampling.size
    latent = 16 * (height // shape.scale) * (width // shape.scale)
    latent *= (frames - 1) // shape.frames_scale + 1
    entry = LOSSES[settings.loss.algorithm]
    kept = passes.steps + 2 if entry.learns_from == "steps" else 1
    kept += passes.steps if entry.keep_means else 0
    return plan.images_per_rank * kept * latent * FLOAT32_BYTES
