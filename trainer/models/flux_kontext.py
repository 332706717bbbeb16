"""FLUX.1-Kontext-dev: edits a picture that its prompt is about."""

from pathlib import Path

from diffusers.pipelines.flux.pipeline_flux_kontext import FluxKontextPipeline
from PIL.Image import Image
from torch import Tensor

from trainer.models.base import ModelOptions
from trainer.models.flux import Flux
from trainer.models.loading import load_pipeline
from trainer.models.model import FlowModel


class FluxKontext(Flux):
    """The family of ``FluxKontextPipeline``; see ``Family`` and ``Editor``.

    The pipeline scales pictures to about a megapixel. Here they keep their size, as with its
    ``_auto_resize=False`` and with the image's own area as ``max_area``.
    """

    joint: bool = False
    # The official targets (train_flux_kontext.py); its rank is 64 and its alpha 128.
    lora_targets: tuple[str, ...] = (*Flux.lora_targets, "proj_mlp")

    def encode_reference(self, picture: Image) -> Tensor:
        """Latents (1, C, h, w) of the picture, whose sides are cut to multiples of 16 px."""
        vae = self.pipe.vae
        pixels = self.pipe.image_processor.preprocess(picture).to(vae.device, vae.dtype)
        latents = vae.encode(pixels).latent_dist.mode()
        return (latents - vae.config.shift_factor) * vae.config.scaling_factor


def load(path_or_id: str | Path, options: ModelOptions) -> FlowModel:
    """Load FLUX.1-Kontext-dev; see ``load_pipeline``."""
    pipe = load_pipeline(FluxKontextPipeline, path_or_id, options)
    return FlowModel(FluxKontext(pipe, options), options)
