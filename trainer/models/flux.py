"""FLUX.1-dev and FLUX.1-Kontext-dev, and FLUX.1 without a guidance embedding (schnell)."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux_kontext import FluxKontextPipeline
from PIL.Image import Image
from torch import Tensor

from trainer.models.base import Conditioning, ModelOptions
from trainer.models.family import JOINT_ATTENTION, Family, Inputs, guided, packed, unpacked
from trainer.types import guides


class Flux(Family):
    """The family of ``FluxPipeline``."""

    pipeline: Any = FluxPipeline
    encoders = ("text_encoder", "text_encoder_2")
    packed = True
    # The official targets (train_flux.py); its rank is 64 and its alpha 128.
    lora_targets = (
        *JOINT_ATTENTION,
        "ff.net.0.proj",
        "ff.net.2",
        "ff_context.net.0.proj",
        "ff_context.net.2",
    )

    def __init__(self, pipe: Any, options: ModelOptions) -> None:
        """See ``Family``; the guidance of a model without an embedding is classifier-free."""
        super().__init__(pipe, options)
        self._embedded = bool(pipe.transformer.config.guidance_embeds)
        if not self._embedded and guides(options.true_cfg_scale):
            raise ValueError(
                "this FLUX has no guidance embedding: leave model.true_cfg_scale at 1 and set "
                "sampling.guidance_scale, which is classifier-free here"
            )

    def encode(self, prompt: str, *pictures: Image) -> Conditioning:
        """``prompt_embeds`` (1, L, D) of T5 and ``pooled`` (1, P) of CLIP."""
        embeds, pooled, _ = self.pipe.encode_prompt(
            prompt=[prompt],
            prompt_2=None,
            device=self.options.device,
            max_sequence_length=self.options.max_sequence_length,
        )
        return Conditioning({"prompt_embeds": embeds, "pooled": pooled})

    def velocity(self, network: Any, inputs: Inputs) -> Tensor:
        """With ``guidance_scale`` in the guidance embedding.

        Classifier-free guidance comes on top with ``true_cfg_scale``, and instead of it where the
        model has no such embedding.
        """
        if not self._embedded:
            return super().velocity(network, inputs)
        forward = partial(self.forward, network, guidance=inputs.guidance_scale)
        return guided(forward, inputs, self.options.true_cfg_scale)

    def forward(
        self,
        network: Any,
        x: Tensor,
        sigma: Tensor,
        cond: Conditioning,
        guidance: float | None = None,
    ) -> Tensor:
        """See ``Family``; references follow the image, each in a plane of its own."""
        rows, columns = x.shape[2] // self.patch, x.shape[3] // self.patch
        latents = (x, *cond.references)
        tokens = network(
            hidden_states=torch.cat([packed(each, self.patch) for each in latents], 1),
            timestep=sigma,
            guidance=None if guidance is None else torch.full_like(sigma, guidance),
            encoder_hidden_states=cond["prompt_embeds"],
            pooled_projections=cond["pooled"],
            txt_ids=sigma.new_zeros(cond["prompt_embeds"].shape[1], 3),
            img_ids=torch.cat([self._image_ids(plane, each) for plane, each in enumerate(latents)]),
            return_dict=False,
        )[0][:, : rows * columns]
        return unpacked(tokens, rows, columns, self.patch)

    def _image_ids(self, plane: int, latents: Tensor) -> Tensor:
        """Positions (plane, row, column) of the tokens, (rows * columns, 3) float32."""
        counts = (latents.shape[2] // self.patch, latents.shape[3] // self.patch)
        places = torch.cartesian_prod(*(torch.arange(n, device=latents.device) for n in counts))
        return F.pad(places, (1, 0), value=plane).float()


class FluxKontext(Flux):
    """The family of ``FluxKontextPipeline``, which edits a picture.

    The pipeline scales pictures to about a megapixel. Here they keep their size, as with its
    ``_auto_resize=False`` and with the image's own area as ``max_area``.
    """

    pipeline = FluxKontextPipeline
    edits = True
    # The official targets (train_flux_kontext.py); its rank is 64 and its alpha 128.
    lora_targets = (*Flux.lora_targets, "proj_mlp")

    def encode_reference(self, picture: Image) -> tuple[Tensor, ...]:
        """Latents (1, C, h, w) of the picture, whose sides are cut to multiples of 16 px."""
        vae = self.pipe.vae
        pixels = self.pipe.image_processor.preprocess(picture).to(vae.device, vae.dtype)
        latents = vae.encode(pixels).latent_dist.mode()
        return ((latents - vae.config.shift_factor) * vae.config.scaling_factor,)
