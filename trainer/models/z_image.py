"""Z-Image."""

from typing import Any

import torch
from diffusers.pipelines.z_image.pipeline_z_image import ZImagePipeline
from PIL.Image import Image
from torch import Tensor

from trainer.models.base import MASK, Conditioning, ModelOptions
from trainer.models.family import Family

# Sequences are padded to multiples of this; positions of an image begin after the prompt's.
MULTIPLE = 32


class ZImage(Family):
    """The family of ``ZImagePipeline``, whose ``guidance_scale`` is one less: 0 is none there."""

    pipeline = ZImagePipeline
    lora_targets = (
        "attention.to_k",
        "attention.to_q",
        "attention.to_v",
        "attention.to_out.0",
    )

    def __init__(self, pipe: Any, options: ModelOptions) -> None:
        """See ``Family``; prompts may have as many tokens as the transformer has positions for."""
        positions = pipe.transformer.config.axes_lens[0]
        self.most_tokens = (positions - 2) // MULTIPLE * MULTIPLE
        super().__init__(pipe, options)

    def encode(self, prompt: str, *pictures: Image) -> Conditioning:
        """``embeds`` (1, L, D), as long as the prompt."""
        (embeds,), _ = self.pipe.encode_prompt(
            [prompt],
            device=self.options.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.options.max_sequence_length,
        )
        return Conditioning(
            {"embeds": embeds[None], MASK: torch.ones(1, len(embeds), dtype=torch.bool)}
        )

    def forward(self, network: Any, x: Tensor, sigma: Tensor, cond: Conditioning) -> Tensor:
        lengths = cond[MASK].sum(1).tolist()
        steps = self.pipe.scheduler.config.num_train_timesteps
        # The network predicts x_0 - eps, and its time runs from 0 at noise to 1 at data.
        out = network(
            list(x.unsqueeze(2)),
            (steps - sigma * steps) / steps,
            [row[:length] for row, length in zip(cond["embeds"], lengths, strict=True)],
            return_dict=False,
        )[0]
        return -torch.stack(list(out)).squeeze(2)
