"""Qwen-Image-Edit, and its successors 2509 and 2511, which take several pictures ("Plus")."""

from typing import Any

from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as edit
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus
from PIL.Image import Image
from torch import Tensor

from trainer.models.base import Conditioning, ModelOptions
from trainer.models.family import latent_moments
from trainer.models.qwen_image import QwenImage, whole

# Of a picture: for the transformer, and for the text encoder of the first version.
AREA_PX = 1024 * 1024


class QwenImageEdit(QwenImage):
    """The family of ``QwenImageEditPipeline``, which edits a picture.

    As in the pipeline, pictures are scaled to a megapixel whatever the size of the image is.
    """

    pipeline: Any = edit.QwenImageEditPipeline
    edits = joint = True

    def __init__(self, pipe: Any, options: ModelOptions) -> None:
        super().__init__(pipe, options)
        pipe.text_encoder.register_forward_pre_hook(mark_pictures, with_kwargs=True)

    def encode(self, prompt: str, *pictures: Image) -> Conditioning:
        """``embeds`` (1, L, D) of the prompt and of what the encoder sees in the pictures."""
        embeds, _ = self.pipe.encode_prompt(
            [prompt], image=self._seen(pictures), device=self.options.device
        )
        return whole(embeds)

    def _seen(self, pictures: tuple[Image, ...]) -> Any:
        (picture,) = pictures
        width, height, _ = edit.calculate_dimensions(AREA_PX, picture.width / picture.height)
        return self.pipe.image_processor.resize(picture, height, width)

    def encode_reference(self, picture: Image) -> tuple[Tensor, ...]:
        """Latents (1, C, h, w) of the picture at a megapixel."""
        ratio = picture.width / picture.height
        width, height, *_ = edit.calculate_dimensions(AREA_PX, ratio)
        pixels = self.pipe.image_processor.preprocess(picture, height, width)[:, :, None]
        vae = self.pipe.vae
        latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mode()
        mean, std = latent_moments(vae, latents)
        return (((latents - mean) / std)[:, :, 0],)


class QwenImageEditPlus(QwenImageEdit):
    """The family of ``QwenImageEditPlusPipeline``: several pictures, small ones for the encoder."""

    pipeline = plus.QwenImageEditPlusPipeline

    def _seen(self, pictures: tuple[Image, ...]) -> Any:
        sizes = [
            plus.calculate_dimensions(plus.CONDITION_IMAGE_SIZE, each.width / each.height)
            for each in pictures
        ]
        resize = self.pipe.image_processor.resize
        return [
            resize(each, height, width)
            for each, (width, height) in zip(pictures, sizes, strict=True)
        ]


def mark_pictures(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Say which tokens are a picture's.

    The pipelines do not (diffusers issue 14194), and transformers 5 then gives all tokens positions
    of a text, which these models have not seen in their training.
    """
    marks = (kwargs["input_ids"] == module.config.image_token_id).int()
    return args, {"mm_token_type_ids": marks, **kwargs}
