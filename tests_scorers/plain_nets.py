"""CLIP and BLIP written out in a few lines each, float32, from the published keys of a checkpoint.

Independent of transformers and open_clip: what the scorers load through those libraries is compared
with these.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

State = Mapping[str, Tensor]
Activation = Callable[[Tensor], Tensor]


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def linear(x: Tensor, s: State, key: str) -> Tensor:
    return F.linear(x, s[f"{key}.weight"], s.get(f"{key}.bias"))


def norm(x: Tensor, s: State, key: str, eps: float = 1e-5) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * s[f"{key}.weight"] + s[f"{key}.bias"]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Multi-head attention of (N, L, D) with an additive bias, one head after the other."""
    outs = []
    for qh, kh, vh in zip(q.chunk(heads, -1), k.chunk(heads, -1), v.chunk(heads, -1), strict=True):
        logits = qh @ kh.transpose(1, 2) / math.sqrt(qh.shape[-1])
        logits = logits if bias is None else logits + bias
        outs.append(torch.softmax(logits, -1) @ vh)
    return torch.cat(outs, -1)


def patches(pixels: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Patch embedding as a matrix product over unfolded patches."""
    size = weight.shape[-1]
    columns = F.unfold(pixels, size, stride=size).transpose(1, 2)
    return F.linear(columns, weight.flatten(1), bias)


def causal(length: int) -> Tensor:
    return torch.full((length, length), float("-inf")).triu(1)


def hf_layer(
    x: Tensor, s: State, key: str, heads: int, act: Activation, bias: Tensor | None
) -> Tensor:
    h = norm(x, s, f"{key}.layer_norm1")
    q, k, v = (linear(h, s, f"{key}.self_attn.{p}_proj") for p in "qkv")
    x = x + linear(attend(q, k, v, heads, bias), s, f"{key}.self_attn.out_proj")
    h = norm(x, s, f"{key}.layer_norm2")
    return x + linear(act(linear(h, s, f"{key}.mlp.fc1")), s, f"{key}.mlp.fc2")


def layers(s: State, prefix: str) -> int:
    return 1 + max(int(k[len(prefix) :].split(".")[0]) for k in s if k.startswith(prefix))


def hf_image(s: State, pixels: Tensor, heads: int, act: Activation) -> Tensor:
    """Image embeddings (N, D), not normalised, from the keys of transformers' CLIPModel."""
    e = "vision_model.embeddings"
    x = patches(pixels, s[f"{e}.patch_embedding.weight"], None)
    first = s[f"{e}.class_embedding"].expand(len(x), 1, -1)
    x = torch.cat([first, x], 1) + s[f"{e}.position_embedding.weight"]
    x = norm(x, s, "vision_model.pre_layrnorm")
    for i in range(layers(s, "vision_model.encoder.layers.")):
        x = hf_layer(x, s, f"vision_model.encoder.layers.{i}", heads, act, None)
    return linear(norm(x[:, 0], s, "vision_model.post_layernorm"), s, "visual_projection")


def dinov2(s: State, pixels: Tensor, heads: int) -> Tensor:
    """DINOv2's tokens (N, 1 + P, D) after the last norm, from the keys of facebook/dinov2-*."""
    e = "embeddings"
    projection = f"{e}.patch_embeddings.projection"
    x = patches(pixels, s[f"{projection}.weight"], s[f"{projection}.bias"])
    stored = s[f"{e}.position_embeddings"]
    old, new = (math.isqrt(n) for n in (stored.shape[1] - 1, x.shape[1]))
    grid = stored[:, 1:].reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, (new, new), mode="bicubic").flatten(2).transpose(1, 2)
    x = torch.cat([s[f"{e}.cls_token"].expand(len(x), 1, -1), x], 1)
    x = x + torch.cat([stored[:, :1], grid], 1)
    for i in range(layers(s, "encoder.layer.")):
        k = f"encoder.layer.{i}"
        h = norm(x, s, f"{k}.norm1", 1e-6)
        q, key, v = (
            linear(h, s, f"{k}.attention.attention.{p}") for p in ("query", "key", "value")
        )
        h = linear(attend(q, key, v, heads), s, f"{k}.attention.output.dense")
        x = x + s[f"{k}.layer_scale1.lambda1"] * h
        h = F.gelu(linear(norm(x, s, f"{k}.norm2", 1e-6), s, f"{k}.mlp.fc1"))
        x = x + s[f"{k}.layer_scale2.lambda1"] * linear(h, s, f"{k}.mlp.fc2")
    return norm(x, s, "layernorm", 1e-6)


def hf_text(s: State, ids: Tensor, heads: int, act: Activation) -> Tensor:
    """Text embedding (1, D) of one row of ids that ends with the end token."""
    e = "text_model.embeddings"
    x = s[f"{e}.token_embedding.weight"][ids] + s[f"{e}.position_embedding.weight"][: len(ids)]
    x = x[None]
    for i in range(layers(s, "text_model.encoder.layers.")):
        x = hf_layer(x, s, f"text_model.encoder.layers.{i}", heads, act, causal(len(ids)))
    return linear(norm(x[:, -1], s, "text_model.final_layer_norm"), s, "text_projection")


def open_clip_tower(x: Tensor, s: State, prefix: str, heads: int, bias: Tensor | None) -> Tensor:
    for i in range(layers(s, f"{prefix}resblocks.")):
        key = f"{prefix}resblocks.{i}"
        h = norm(x, s, f"{key}.ln_1")
        packed = F.linear(h, s[f"{key}.attn.in_proj_weight"], s[f"{key}.attn.in_proj_bias"])
        x = x + linear(attend(*packed.chunk(3, -1), heads, bias), s, f"{key}.attn.out_proj")
        h = norm(x, s, f"{key}.ln_2")
        x = x + linear(F.gelu(linear(h, s, f"{key}.mlp.c_fc")), s, f"{key}.mlp.c_proj")
    return x


def open_clip_image(s: State, pixels: Tensor, heads: int) -> Tensor:
    x = patches(pixels, s["visual.conv1.weight"], None)
    x = torch.cat([s["visual.class_embedding"].expand(len(x), 1, -1), x], 1)
    x = norm(x + s["visual.positional_embedding"], s, "visual.ln_pre")
    x = open_clip_tower(x, s, "visual.transformer.", heads, None)
    return norm(x[:, 0], s, "visual.ln_post") @ s["visual.proj"]


def open_clip_text(s: State, ids: Tensor, heads: int) -> Tensor:
    """Text embedding (1, D) of one row of ids that ends with the end token."""
    x = (s["token_embedding.weight"][ids] + s["positional_embedding"][: len(ids)])[None]
    x = open_clip_tower(x, s, "transformer.", heads, causal(len(ids)))
    return norm(x[:, -1], s, "ln_final") @ s["text_projection"]


def blip_reward(s: State, pixels: Tensor, ids: Tensor, mask: Tensor, heads: int) -> Tensor:
    """ImageReward before normalisation, (N,), from the official keys; `heads` of the text tower."""
    v = "blip.visual_encoder."
    x = patches(pixels, s[f"{v}patch_embed.proj.weight"], s[f"{v}patch_embed.proj.bias"])
    x = torch.cat([s[f"{v}cls_token"].expand(len(x), -1, -1), x], 1) + s[f"{v}pos_embed"]
    vision_heads = x.shape[-1] // 64
    for i in range(layers(s, f"{v}blocks.")):
        b = f"{v}blocks.{i}"
        qkv = linear(norm(x, s, f"{b}.norm1", 1e-6), s, f"{b}.attn.qkv").chunk(3, -1)
        x = x + linear(attend(*qkv, vision_heads), s, f"{b}.attn.proj")
        h = F.gelu(linear(norm(x, s, f"{b}.norm2", 1e-6), s, f"{b}.mlp.fc1"))
        x = x + linear(h, s, f"{b}.mlp.fc2")
    seen = norm(x, s, f"{v}norm", 1e-6)

    t = "blip.text_encoder."
    e = f"{t}embeddings."
    y = s[f"{e}word_embeddings.weight"][ids]
    y = norm(y + s[f"{e}position_embeddings.weight"][: ids.shape[1]], s, f"{e}LayerNorm", 1e-12)
    hidden = torch.where(mask[:, None, :].bool(), 0.0, float("-inf"))
    for i in range(layers(s, f"{t}encoder.layer.")):
        b = f"{t}encoder.layer.{i}"
        for part, other, bias in (("attention", y, hidden), ("crossattention", seen, None)):
            source = y if part == "attention" else other
            q = linear(y, s, f"{b}.{part}.self.query")
            k, w = (linear(source, s, f"{b}.{part}.self.{p}") for p in ("key", "value"))
            out = linear(attend(q, k, w, heads, bias), s, f"{b}.{part}.output.dense")
            y = norm(out + y, s, f"{b}.{part}.output.LayerNorm", 1e-12)
        h = F.gelu(linear(y, s, f"{b}.intermediate.dense"))
        y = norm(linear(h, s, f"{b}.output.dense") + y, s, f"{b}.output.LayerNorm", 1e-12)
    return head(s, "mlp.", y[:, 0])


def head(s: State, prefix: str, x: Tensor) -> Tensor:
    """Five linear layers, one after the other."""
    for index in (0, 2, 4, 6, 7):
        x = linear(x, s, f"{prefix}layers.{index}")
    return x[:, 0]
