"""mmdet's names of Mask2Former with a Swin backbone -> transformers' names (5.x).

Most tensors are renamed. Three kinds are rearranged too: fused query-key-value projections are cut
in three, and the inputs of patch merging are permuted, because mmdet unfolds a 2x2 patch as
(channel, row, column) and transformers stacks it as (column, row, channel).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# What mmdet 2.x calls attentions.N and ffns.0 follows the order of operations of each layer.
_FROM_MMDET_2 = (
    (r"(pixel_decoder\.encoder\.layers\.\d+)\.attentions\.0\.", r"\1.self_attn."),
    (r"(transformer_decoder\.layers\.\d+)\.attentions\.0\.", r"\1.cross_attn."),
    (r"(transformer_decoder\.layers\.\d+)\.attentions\.1\.", r"\1.self_attn."),
    (r"(layers\.\d+)\.ffns\.0\.", r"\1.ffn."),
)
_SWIN = "model.pixel_level_module.encoder"
_PIXEL = "model.pixel_level_module.decoder"
_QUERY = "model.transformer_module"

# (mmdet, transformers), tried in this order; the ending (.weight, .bias, ...) is kept.
_RENAMED = (
    (r"backbone\.patch_embed\.projection", rf"{_SWIN}.swin.embeddings.patch_embeddings.projection"),
    (r"backbone\.patch_embed\.norm", rf"{_SWIN}.swin.embeddings.norm"),
    (r"backbone\.norm0", rf"{_SWIN}.hidden_states_norms.stage1"),
    (r"backbone\.norm1", rf"{_SWIN}.hidden_states_norms.stage2"),
    (r"backbone\.norm2", rf"{_SWIN}.hidden_states_norms.stage3"),
    (r"backbone\.norm3", rf"{_SWIN}.hidden_states_norms.stage4"),
    (r"backbone\.stages\.(\d+)\.downsample\.", rf"{_SWIN}.swin.encoder.layers.\1.downsample."),
    (r"backbone\.stages\.(\d+)\.blocks\.(\d+)\.", rf"{_SWIN}.swin.encoder.layers.\1.blocks.\2."),
    (r"(blocks\.\d+)\.norm1", r"\1.layernorm_before"),
    (r"(blocks\.\d+)\.norm2", r"\1.layernorm_after"),
    (r"(blocks\.\d+)\.attn\.w_msa\.qkv", r"\1.attention.QKV"),
    (r"(blocks\.\d+)\.attn\.w_msa\.proj", r"\1.attention.o_proj"),
    (
        r"(blocks\.\d+)\.attn\.w_msa\.relative_position_bias_table",
        r"\1.attention.relative_position_bias.relative_position_bias_table",
    ),
    (r"(blocks\.\d+)\.ffn\.layers\.0\.0", r"\1.mlp.fc1"),
    (r"(blocks\.\d+)\.ffn\.layers\.1", r"\1.mlp.fc2"),
    (
        r"panoptic_head\.pixel_decoder\.input_convs\.(\d+)\.conv",
        rf"{_PIXEL}.input_projections.\1.0",
    ),
    (r"panoptic_head\.pixel_decoder\.input_convs\.(\d+)\.gn", rf"{_PIXEL}.input_projections.\1.1"),
    (r"panoptic_head\.pixel_decoder\.lateral_convs\.0\.conv", rf"{_PIXEL}.adapter_1.0"),
    (r"panoptic_head\.pixel_decoder\.lateral_convs\.0\.gn", rf"{_PIXEL}.adapter_1.1"),
    (r"panoptic_head\.pixel_decoder\.output_convs\.0\.conv", rf"{_PIXEL}.layer_1.0"),
    (r"panoptic_head\.pixel_decoder\.output_convs\.0\.gn", rf"{_PIXEL}.layer_1.1"),
    (r"panoptic_head\.pixel_decoder\.level_encoding\.weight", rf"{_PIXEL}.level_embed"),
    (r"panoptic_head\.pixel_decoder\.mask_feature", rf"{_PIXEL}.mask_projection"),
    (r"panoptic_head\.pixel_decoder\.encoder\.", rf"{_PIXEL}.encoder."),
    (r"(decoder\.encoder\.layers\.\d+)\.norms\.0", r"\1.self_attn_layer_norm"),
    (r"(decoder\.encoder\.layers\.\d+)\.norms\.1", r"\1.final_layer_norm"),
    (r"panoptic_head\.query_embed", rf"{_QUERY}.queries_embedder"),
    (r"panoptic_head\.query_feat", rf"{_QUERY}.queries_features"),
    (r"panoptic_head\.level_embed", rf"{_QUERY}.level_embed"),
    (r"panoptic_head\.transformer_decoder\.post_norm", rf"{_QUERY}.decoder.layernorm"),
    (r"panoptic_head\.transformer_decoder\.", rf"{_QUERY}.decoder."),
    (r"(layers\.\d+)\.self_attn\.attn\.in_proj_(\w+)", r"\1.self_attn.QKV.\2"),
    (r"(layers\.\d+)\.(self|cross)_attn\.attn\.", r"\1.\2_attn."),
    (r"(layers\.\d+)\.norms\.0", r"\1.cross_attn_layer_norm"),
    (r"(layers\.\d+)\.norms\.1", r"\1.self_attn_layer_norm"),
    (r"(layers\.\d+)\.norms\.2", r"\1.final_layer_norm"),
    (r"(layers\.\d+)\.ffn\.layers\.0\.0", r"\1.fc1"),
    (r"(layers\.\d+)\.ffn\.layers\.1", r"\1.fc2"),
    (r"panoptic_head\.mask_embed\.0", rf"{_QUERY}.decoder.mask_predictor.mask_embedder.0.0"),
    (r"panoptic_head\.mask_embed\.2", rf"{_QUERY}.decoder.mask_predictor.mask_embedder.1.0"),
    (r"panoptic_head\.mask_embed\.4", rf"{_QUERY}.decoder.mask_predictor.mask_embedder.2.0"),
    (r"panoptic_head\.cls_embed", r"class_predictor"),
)
# Computed from the window size when the network is built.
_DERIVED = re.compile(r"\.relative_position_index$")
_MERGING = re.compile(r"\.downsample\.(reduction|norm)\.")


class UnknownLayout(ValueError):
    """The tensors are not those of mmdet's Mask2Former with a Swin backbone."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """Sizes of a Mask2Former with a Swin backbone, read off its tensors.

    Heads of the pixel decoder and of the query decoder leave no trace in the shapes; they are 8 in
    every published configuration.
    """

    embed_dim: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    mlp_ratio: float
    hidden: int
    mask_features: int
    queries: int
    classes: int
    encoder_layers: int
    encoder_ffn: int
    decoder_layers: int
    decoder_ffn: int


def modern(table: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors by the names of mmdet 3.x; those of 2.x are translated."""
    renamed = {}
    for name, tensor in table.items():
        for pattern, replacement in _FROM_MMDET_2:
            name = re.sub(pattern, replacement, name)  # noqa: PLW2901 (a chain of renamings)
        renamed[name] = tensor
    return renamed


def architecture(table: Mapping[str, Tensor]) -> Architecture:
    """Read the sizes off the tensors (names of mmdet 3.x); raises UnknownLayout."""
    stage, head = r"backbone\.stages\.", r"panoptic_head\."
    depths = tuple(
        _count(table, rf"{stage}{i}\.blocks\.(\d+)\.")
        for i in range(_count(table, rf"{stage}(\d+)\."))
    )
    bias = "attn.w_msa.relative_position_bias_table"
    pixel = "panoptic_head.pixel_decoder.encoder.layers.0."
    query = "panoptic_head.transformer_decoder.layers.0."
    try:
        embed_dim = table["backbone.patch_embed.projection.weight"].shape[0]
        first_mlp = table["backbone.stages.0.blocks.0.ffn.layers.0.0.weight"]
        biases = [table[f"backbone.stages.{i}.blocks.0.{bias}"] for i in range(len(depths))]
        queries, hidden = table["panoptic_head.query_feat.weight"].shape
        return Architecture(
            embed_dim=embed_dim,
            depths=depths,
            heads=tuple(b.shape[1] for b in biases),
            window=(round(biases[0].shape[0] ** 0.5) + 1) // 2,
            mlp_ratio=first_mlp.shape[0] / first_mlp.shape[1],
            hidden=hidden,
            mask_features=table["panoptic_head.pixel_decoder.mask_feature.weight"].shape[0],
            queries=queries,
            classes=table["panoptic_head.cls_embed.weight"].shape[0] - 1,
            encoder_layers=_count(table, rf"{head}pixel_decoder\.encoder\.layers\.(\d+)\."),
            encoder_ffn=table[pixel + "ffn.layers.0.0.weight"].shape[0],
            decoder_layers=_count(table, rf"{head}transformer_decoder\.layers\.(\d+)\."),
            decoder_ffn=table[query + "ffn.layers.0.0.weight"].shape[0],
        )
    except (KeyError, IndexError) as error:
        raise UnknownLayout(
            f"no tensor {error.args[0]!r}: not mmdet's Mask2Former with a Swin backbone"
        ) from error


def convert(table: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by transformers' names; raises UnknownLayout."""
    converted: dict[str, Tensor] = {}
    for name, tensor in modern(table).items():
        if _DERIVED.search(name):
            continue
        for target, part in _converted(name, tensor):
            if target in converted:
                raise UnknownLayout(f"tensor {name!r} appears twice")
            converted[target] = part
    return converted


def _converted(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    target = name
    for pattern, replacement in _RENAMED:
        target = re.sub(pattern, replacement, target)
    if target == name:
        raise UnknownLayout(f"tensor {name!r} has no counterpart in Mask2Former with Swin")
    if ".QKV." in target:
        for letter, part in zip("qkv", tensor.chunk(3), strict=True):
            yield target.replace(".QKV.", f".{letter}_proj."), part.contiguous()
    elif _MERGING.search(target):
        yield target, _merging_order(tensor)
    else:
        yield target, tensor


def _merging_order(tensor: Tensor) -> Tensor:
    """Last axis from (channel, row, column) to (column, row, channel); rows of the patch first."""
    *leading, last = tensor.shape
    patches = tensor.reshape(*leading, last // 4, 2, 2)
    return torch.movedim(patches, (-3, -2, -1), (-1, -2, -3)).reshape(*leading, last)


def _count(table: Mapping[str, Tensor], pattern: str) -> int:
    found = [int(match[1]) for name in table if (match := re.match(pattern, name))]
    return max(found, default=-1) + 1
