"""Segmenter `mask2former`: the benchmark's network, without mmdet and without compiled operators.

Mask2Former with a Swin-S backbone from transformers, fed by mmdet's test pipeline, with the
weights of the official mmdet checkpoint and mmdet's instance post-processing.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, SwinConfig

from reward_server.scorers import torch_tools
from reward_server.scorers.base import UInt8Image
from reward_server.scorers.geneval import (
    mmdet_checkpoint,
    mmdet_images,
    mmdet_instances,
    mmdet_keys,
    segmenter,
)
from reward_server.scorers.geneval.coco import CLASSES
from reward_server.scorers.geneval.mmdet_keys import Architecture
from reward_server.scorers.geneval.segmenter import Instances

IMAGES_PER_FORWARD = 8
_HEADS = 8
# Built by transformers and not used for instances: the loss, and a norm behind the last stage.
_UNUSED = {
    "criterion.empty_weight",
    "model.pixel_level_module.encoder.swin.layernorm.weight",
    "model.pixel_level_module.encoder.swin.layernorm.bias",
}


class Mask2FormerSegmenter:
    """Mask2Former from an mmdet checkpoint file."""

    modules = (
        sys.modules[__name__],
        segmenter,
        mmdet_checkpoint,
        mmdet_images,
        mmdet_instances,
        mmdet_keys,
    )

    def __init__(
        self,
        checkpoint: Path,
        *,
        dtype: str = "float32",
        compiled: bool = False,
        channel_order: str = "official",
        pipeline: str = "mmdet2",
        images_per_forward: int = IMAGES_PER_FORWARD,
    ) -> None:
        self.checkpoint = checkpoint
        self._dtype_option = dtype
        self._compiled = compiled
        self._channel_order = channel_order
        self._pipeline = pipeline
        self._images_per_forward = images_per_forward
        self._network: Any = None
        self._device = "cpu"
        self._dtype = torch.float32

    def load(self, device: str) -> None:
        """Read the checkpoint, convert it and move the network to the device.

        Raises mmdet_checkpoint.CheckpointError or mmdet_keys.UnknownLayout.
        """
        self._take(build(mmdet_checkpoint.read_state_dict(self.checkpoint)), device)

    @classmethod
    def of(cls, network: Any, device: str, *, dtype: str = "float32") -> Mask2FormerSegmenter:
        """A segmenter around a network that is there already, without a file."""
        made = cls(Path(), dtype=dtype)
        made._take(network, device)
        return made

    def _take(self, network: Any, device: str) -> None:
        self._device, self._dtype = device, torch_tools.set_precision(self._dtype_option)
        self._network = torch_tools.compiled(network.to(device), self._compiled)

    def facts(self) -> Mapping[str, str]:
        return {
            "detector_dtype": str(self._dtype),
            "channel_order": self._channel_order,
            "pipeline": self._pipeline,
            "compile": str(self._compiled),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def segment(
        self, images: Sequence[UInt8Image], min_probability: float = 0.0
    ) -> list[Instances]:
        """See `Segmenter`; pictures of equal padded size share a forward."""
        seen = [segmenter.as_read(image, self._channel_order) for image in images]
        prepared = mmdet_images.prepare(seen, self._pipeline, self._device)
        found: dict[int, Instances] = {}
        for members in mmdet_images.groups(prepared, self._images_per_forward):
            pixels = torch.stack([prepared[index].pixels for index in members])
            classes, masks = self.forward(pixels)
            for row, index in enumerate(members):
                found[index] = mmdet_instances.instances(
                    classes[row],
                    masks[row],
                    padded=(pixels.shape[2], pixels.shape[3]),
                    content=prepared[index].content,
                    original=prepared[index].original,
                    min_probability=min_probability,
                )
        return [found[index] for index in range(len(images))]

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (N, Q, C + 1) and mask logits (N, Q, H/4, W/4) of pixels (N, 3, H, W)."""
        kind = self._device.partition(":")[0]
        with torch.autocast(kind, self._dtype, enabled=self._dtype != torch.float32):
            output = self._network(pixel_values=pixels)
        return output.class_queries_logits, output.masks_queries_logits


def build(table: Mapping[str, Tensor]) -> Mask2FormerForUniversalSegmentation:
    """The network with the tensors of an mmdet checkpoint, in evaluation mode.

    Raises mmdet_keys.UnknownLayout.
    """
    sizes = mmdet_keys.architecture(mmdet_keys.modern(table))
    if sizes.classes != len(CLASSES):
        raise mmdet_keys.UnknownLayout(
            f"the checkpoint knows {sizes.classes} classes, GenEval needs COCO's {len(CLASSES)};"
            " panoptic checkpoints have 133"
        )
    network = Mask2FormerForUniversalSegmentation(config(sizes))
    try:
        result = network.load_state_dict(mmdet_keys.convert(table), strict=False)
    except RuntimeError as error:
        raise mmdet_keys.UnknownLayout(f"a tensor has another shape: {error}") from error
    missing = sorted(set(result.missing_keys) - _UNUSED)
    if missing or result.unexpected_keys:
        raise mmdet_keys.UnknownLayout(
            f"missing tensors: {missing[:3]}; left over: {result.unexpected_keys[:3]}"
        )
    return network.eval()


def config(sizes: Architecture) -> Mask2FormerConfig:
    """Transformers' configuration of a network of these sizes."""
    backbone = SwinConfig(
        image_size=224,
        patch_size=4,
        embed_dim=sizes.embed_dim,
        depths=list(sizes.depths),
        num_heads=list(sizes.heads),
        window_size=sizes.window,
        mlp_ratio=sizes.mlp_ratio,
        drop_path_rate=0.0,
        # transformers adds these two to every configuration, out of sight of type checkers.
        out_features=[f"stage{i + 1}" for i in range(len(sizes.depths))],  # pyright: ignore[reportCallIssue]
    )
    return Mask2FormerConfig(
        backbone_config=backbone,
        num_labels=sizes.classes,  # pyright: ignore[reportCallIssue]
        num_queries=sizes.queries,
        feature_size=sizes.hidden,
        mask_feature_size=sizes.mask_features,
        hidden_dim=sizes.hidden,
        num_attention_heads=_HEADS,
        encoder_layers=sizes.encoder_layers,
        encoder_feedforward_dim=sizes.encoder_ffn,
        # transformers counts the prediction before the first layer as one.
        decoder_layers=sizes.decoder_layers + 1,
        dim_feedforward=sizes.decoder_ffn,
    )
