"""What a run costs at the least, from its settings and the number of parameters alone."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.config.geometry import geometry
from trainer.config.load import keeps_reference
from trainer.config.loss_settings import ImageLossSettings
from trainer.config.settings import Settings
from trainer.models.loading import network_parameters
from trainer.types import guides

_VAE_SCALE, _PATCH, _FRAMES_PER_LATENT = 8, 2, 4  # of every family but for Wan 2.2 TI2V 5B's VAE


@dataclass(frozen=True, slots=True)
class Network:
    """What the cost of a model depends on."""

    parameters: float  # of one network
    count: int = 1  # networks that are held; one is called at each step
    token_px: int = _VAE_SCALE * _PATCH  # side of a token


# The presets' models, as diffusers' classes have them.
RELEASED: Mapping[str, Network] = {
    "stabilityai/stable-diffusion-3.5-medium": Network(2.24e9),
    "black-forest-labs/FLUX.1-dev": Network(11.9e9),
    "black-forest-labs/FLUX.1-Kontext-dev": Network(11.9e9),
    "black-forest-labs/FLUX.2-dev": Network(32.2e9),
    "black-forest-labs/FLUX.2-klein-base-9B": Network(9.1e9),
    "Qwen/Qwen-Image": Network(20.4e9),
    "Qwen/Qwen-Image-Edit": Network(20.4e9),
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": Network(1.42e9),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": Network(5.0e9, token_px=32),
    "Wan-AI/Wan2.2-I2V-A14B-Diffusers": Network(14.3e9, count=2),
}
# Dense matrix products of an H100 or H200 (SXM) in bfloat16, by NVIDIA's data sheets.
PEAK_FLOPS = 989e12
# Families whose `sampling.guidance_scale` is an input of the network: no second pass.
_EMBEDDED = ("flux", "flux_kontext", "flux2_dev")


def network_of(folder: Path) -> Network:
    """The network of a pipeline's folder, without loading it; ValueError if it is not whole."""
    one = network_parameters(folder, both=False)
    vae = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    scale = vae.get("scale_factor_spatial", _VAE_SCALE)
    return Network(one, round(network_parameters(folder) / one), scale * _PATCH)


def least_bytes(settings: Settings, parameters: float, gpus: int) -> float:
    """Bytes per GPU that hold the weights and, where all are trained, what trains them.

    A lower bound: adapters, activations, decoding and text encoders come on top.
    """
    model, run = settings.model, settings.run
    full = model.finetune == "full"
    copies = 1.0
    if full:
        copies += keeps_reference(settings)
        if not model.trained_layers:  # gradients, two moments, the average
            copies += 3 + settings.ema.enabled
    size = 4 if full or model.dtype == "float32" else 2
    sharded = run.parallel == "fsdp" or (run.parallel == "auto" and full)
    return parameters * size * copies / (gpus if sharded else 1)


def passes(settings: Settings) -> tuple[int, int]:
    """Passes through the network per training image: forward, and as many forward's worth back.

    Back through an adapter costs as much as forward, through trained weights twice that.
    """
    model, sampling, loss = settings.model, settings.sampling, settings.loss
    scale = model.true_cfg_scale if model.family in _EMBEDDED else sampling.guidance_scale
    guided = 2 if guides(scale) else 1
    if isinstance(loss, ImageLossSettings):
        trained = min(loss.noise_levels, sampling.num_steps)
    else:
        trained = guided * (sampling.window_size or sampling.num_steps - 1)
    reference = loss.kl_beta > 0 or loss.needs_reference
    forward = guided * sampling.num_steps + trained * (2 if reference else 1)
    return forward, trained * (2 if model.finetune == "full" else 1)


def least_seconds(settings: Settings, network: Network, gpus: int) -> float:
    """Seconds per epoch if nothing but the network's matrix products took time, at `PEAK_FLOPS`.

    A lower bound: attention, text tokens, all references but one, decoding, scores and evaluations
    come on top, and no product runs at the peak.
    """
    height_px, width_px, num_frames = settings.sampling.size
    frames = 1 + (num_frames - 1) // _FRAMES_PER_LATENT
    tokens = frames * (height_px // network.token_px) * (width_px // network.token_px)
    if settings.task.name == "edit" and settings.model.family != "wan_i2v":
        tokens *= 2
    per_image = 2 * network.parameters * tokens * sum(passes(settings))
    return per_image * geometry(settings, gpus).images_per_rank / PEAK_FLOPS
