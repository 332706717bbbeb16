"""The two pipelines of Qwen-Image-Edit in the real format, tiny and with random weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as edit
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit_plus as plus
from tiny_parts import listen
from tiny_qwen_image import other_parts, text_encoder
from tokenizers import pre_tokenizers
from transformers import Qwen2Tokenizer, Qwen2VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.processing_utils import ProcessorMixin

SIDE_PX = 64
SYSTEM = (
    "Describe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. "
    "Generate a new image that meets the user's requirements while maintaining consistency with "
    "the original input where appropriate."
)
# The pipelines drop 64 tokens: 16 of the chat, and 48 of the instruction, all of which but its last
# 47 bytes is a single token here.
MARKS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    SYSTEM[:-47],
)


class PictureProcessor(Qwen2VLProcessor):
    """Qwen's processor without its part for videos, which needs torchvision.

    transformers reads the parts of a processor off the signature of ``__init__``.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        chat_template: Any = None,
        **options: Any,
    ) -> None:
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id, self.video_token_id = tokenizer.convert_tokens_to_ids(
            [self.image_token, self.video_token]
        )
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def build(folder: Path, pipeline: Any, *, zero_cond_t: bool = False) -> Path:
    """Save a pipeline; the same weights every time. ``zero_cond_t`` is what 2511 has."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *MARKS]
    tokenizer = Qwen2Tokenizer(
        vocab={piece: index for index, piece in enumerate(pieces)},
        merges=[],
        additional_special_tokens=list(MARKS[1:]),
    )
    names = ("image", "video", "vision_start", "vision_end")
    marks = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    ids = {f"{n}_token_id": pieces.index(mark) for n, mark in zip(names, marks, strict=True)}
    # 4 tokens of the language model for a picture.
    pictures = Qwen2VLImageProcessorPil(min_pixels=28**2, max_pixels=56**2)
    parts: Any = {
        "text_encoder": text_encoder(tokenizer, **ids),
        "tokenizer": tokenizer,
        "processor": PictureProcessor(image_processor=pictures, tokenizer=tokenizer),
        **other_parts(zero_cond_t=zero_cond_t),
    }
    listen(parts["transformer"], ("img_in",))
    pipeline(**parts).save_pretrained(folder)
    return folder


@contextmanager
def small_pictures() -> Iterator[None]:
    """Inside, pictures have 64x64 px, and 96x96 for the encoder of "Plus"; 1024x1024 are slow."""
    sides = edit.calculate_dimensions
    with (
        patch.object(edit, "calculate_dimensions", lambda area, ratio: sides(SIDE_PX**2, ratio)),
        patch.object(plus, "VAE_IMAGE_SIZE", SIDE_PX**2),
        patch.object(plus, "CONDITION_IMAGE_SIZE", 96**2),
    ):
        yield
