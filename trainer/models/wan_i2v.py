"""Wan 2.1 and 2.2: videos from a text and their first frame."""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers.pipelines.wan.pipeline_wan_i2v import WanImageToVideoPipeline
from PIL.Image import Image
from torch import Tensor

from trainer.models.base import Conditioning, ModelOptions
from trainer.models.family import Inputs, frozen, latent_moments
from trainer.models.wan import Wan


class WanImageToVideo(Wan):
    """The family of ``WanImageToVideoPipeline``: the reference is the first frame.

    Wan 2.1 and 2.2 A14B read it as a video that goes on in grey, beside the noise; 2.1 reads CLIP's
    view of it, too. In TI2V 5B it is the first frame of the latents, and without noise.
    """

    pipeline = WanImageToVideoPipeline
    # TI2V 5B is published as a pipeline of text to video.
    also = ("WanPipeline",)
    edits = True
    # Without the last two, which only 2.1 has, diffusers adds adapters of zeros to them.
    lora_targets = (*Wan.lora_targets, "add_k_proj", "add_v_proj")

    def __init__(self, pipe: Any, options: ModelOptions) -> None:
        """See ``Wan``; ValueError for a model of text to video."""
        super().__init__(pipe, options)
        self._first_frame = bool(pipe.config.expand_timesteps)
        if not self._first_frame and pipe.transformer.config.in_channels == pipe.vae.config.z_dim:
            raise ValueError(
                "this Wan makes videos from text alone: set model.family=wan, or take one of image "
                "to video (I2V, or TI2V 5B)"
            )
        if pipe.image_encoder is not None:
            # It reads pictures whenever they are drawn, so it does not leave with the encoders.
            frozen(pipe.image_encoder, torch.device(options.device))

    def latent_shape(self, height_px: int, width_px: int, num_frames: int = 1) -> tuple[int, ...]:
        """See ``Wan``; ValueError for a single frame, which is the given one."""
        shape = super().latent_shape(height_px, width_px, num_frames)
        if num_frames == 1:
            raise ValueError("num_frames must be at least 5: the first frame is given")
        return shape

    def encode_reference(self, picture: Image) -> tuple[Tensor, ...]:
        """Latents (1, C, 1, h, w) of the frame; else those of a video with a mask, and CLIP's view.

        The mask, a channel for each frame of a latent one, is 1 where the video is given.
        """
        vae, pipe = self.pipe.vae, self.pipe
        video = pipe.video_processor.preprocess(picture)[:, :, None]
        if not self._first_frame:
            video = F.pad(video, (0, 0, 0, 0, 0, self.options.num_frames - 1))
        found = vae.encode(video.to(vae.device, vae.dtype)).latent_dist.mode()
        mean, std = latent_moments(vae, found)
        latents = (found - mean) / std
        if self._first_frame:
            return (latents,)
        mask = latents.new_zeros(1, pipe.vae_scale_factor_temporal, *latents.shape[2:])
        mask[:, :, 0] = 1
        given = torch.cat([mask, latents], 1)
        if pipe.transformer.config.image_dim is None:
            return (given,)
        return given, pipe.encode_image(picture, torch.device(self.options.device))

    def velocity(self, network: Any, inputs: Inputs) -> Tensor:
        """See ``Wan``; where the first frame is given, the velocity that ends at it.

        So it needs no step of its own after sampling, and its loss and gradient are zero.
        """
        v = super().velocity(network, inputs)
        if not self._first_frame:
            return v
        left = inputs.x[:, :, :1].float() - inputs.cond.references[0].float()
        return torch.cat([left / inputs.sigma.view(-1, 1, 1, 1, 1), v[:, :, 1:]], 2)

    def _predict(self, expert: Any, x: Tensor, time: Tensor, cond: Conditioning) -> Tensor:
        given, *seen = cond.references
        if self._first_frame:
            tokens = self._tokens(x)
            noisy = torch.arange(tokens, device=x.device) >= tokens // x.shape[2]
            x, time = torch.cat([given, x[:, :, 1:]], 2), time[:, None] * noisy
        else:
            x = torch.cat([x, given], 1)
        return expert(
            hidden_states=x,
            timestep=time,
            encoder_hidden_states=cond["embeds"],
            encoder_hidden_states_image=seen[0] if seen else None,
            return_dict=False,
        )[0].float()
