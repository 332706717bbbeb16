"""Loads the official ImageReward.pt into transformers' BLIP classes; the package is not needed.

The package (image-reward 1.5) does not import beside current transformers. Its network is BLIP: a
ViT, a BERT whose layers attend to the picture, and a head of linear layers on the first token.
Weights map one to one; only the names of the image tower differ. Sizes come from the checkpoint and
from `med_config.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reward_server.scorers import clip_tools, linear_head, pixels, torch_tools
from reward_server.scorers.base import UInt8Image
from reward_server.scorers.pixels import Preparation

if TYPE_CHECKING:
    import torch

State = Mapping[str, "torch.Tensor"]

# Of the rewards on the training set (ImageReward.py, `self.mean` and `self.std`).
MEAN, STD = 0.16717362830052426, 1.0333394966054072
MAX_TOKENS = 35
_VISION, _TEXT, _HEAD = "blip.visual_encoder.", "blip.text_encoder.", "mlp."
_HEAD_WIDTH = 64  # per attention head, in BLIP's base (12 x 64) and large (16 x 64) towers alike
_RENAMED = (
    ("patch_embed.proj", "embeddings.patch_embedding"),
    ("cls_token", "embeddings.class_embedding"),
    ("pos_embed", "embeddings.position_embedding"),
    ("blocks.", "encoder.layers."),
    ("attn.qkv", "self_attn.qkv"),
    ("attn.proj", "self_attn.projection"),
    ("norm1", "layer_norm1"),
    ("norm2", "layer_norm2"),
)


class RewardNet:
    """Picture and prompt pairs to rewards, on a device."""

    def __init__(
        self,
        vision: Any,
        text: Any,
        head: linear_head.LinearHead,
        tokenizer: Any,
        preparation: Preparation,
        *,
        compile: bool,
    ) -> None:
        """Take modules that are on their device and in their type already."""
        self._vision = torch_tools.compiled(vision, compile)
        self._text = torch_tools.compiled(text, compile)
        self._head, self._tokenizer, self._preparation = head, tokenizer, preparation
        self._device, self._dtype = str(vision.device), vision.dtype

    def facts(self) -> Mapping[str, str]:
        import tokenizers
        import transformers

        return {
            **self._preparation.facts(),
            "dtype": str(self._dtype),
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        }

    def rewards(self, pictures: Sequence[UInt8Image], prompts: Sequence[str]) -> list[float]:
        """Rewards of N pictures with N prompts: N passes of either tower, in one batch."""
        import torch

        batch = pixels.on_device(pictures, self._preparation, self._device, self._dtype)
        seen = self._vision(pixel_values=batch).last_hidden_state
        encoded = self._tokenizer.encode_batch(list(prompts))
        both = torch.tensor([[text.ids, text.attention_mask] for text in encoded])
        ids, mask = torch_tools.to_device(both, self._device).unbind(1)
        # Read as an encoder: the configuration says decoder only so that cross attention exists.
        read = self._text(
            input_ids=ids, attention_mask=mask, encoder_hidden_states=seen, is_decoder=False
        ).last_hidden_state
        return ((self._head(read[:, 0]) - MEAN) / STD).tolist()


def load(
    checkpoint: Path,
    med_config: Path,
    tokenizer: Path,
    *,
    device: str,
    dtype: torch.dtype,
    compile: bool,
) -> RewardNet:
    state = torch_tools.load_state(checkpoint)
    vision = _vision(_part(state, _VISION), checkpoint)
    text = _text(_part(state, _TEXT), json.loads(med_config.read_text("utf-8")), vision, checkpoint)
    words = _tokenizer(tokenizer, text.config.vocab_size)
    preparation = Preparation("pillow_round", int(vision.config.image_size))
    for tower in (vision, text):
        tower.eval().requires_grad_(False).to(device, dtype)
    head = linear_head.compose(state, _HEAD, int(text.config.hidden_size), device)
    return RewardNet(vision, text, head, words, preparation, compile=compile)


def _part(state: State, prefix: str) -> dict[str, torch.Tensor]:
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def _vision(state: State, path: Path) -> Any:
    from transformers import BlipVisionConfig, BlipVisionModel

    if not {"patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight"} <= state.keys():
        raise ValueError(f"{path}: has no BLIP image tower; not an ImageReward checkpoint")
    width, _, patch_px, _ = state["patch_embed.proj.weight"].shape
    grid = round((state["pos_embed"].shape[1] - 1) ** 0.5)
    layers = {key.split(".")[1] for key in state if key.startswith("blocks.")}
    config = BlipVisionConfig(
        hidden_size=width,
        intermediate_size=state["blocks.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, width // _HEAD_WIDTH),
        image_size=grid * patch_px,
        patch_size=patch_px,
        layer_norm_eps=1e-6,
        hidden_act="gelu",
    )
    renamed = {_vision_key(key): value for key, value in state.items()}
    return _filled(torch_tools.unfilled(lambda: BlipVisionModel(config)), renamed, path)


def _vision_key(key: str) -> str:
    if key.startswith("norm."):
        return "post_layernorm." + key[len("norm.") :]
    for old, new in _RENAMED:
        key = key.replace(old, new)
    return key


def _text(state: State, med: Mapping[str, Any], vision: Any, path: Path) -> Any:
    from transformers.models.blip.configuration_blip import BlipTextConfig
    from transformers.models.blip.modeling_blip_text import BlipTextModel

    config = BlipTextConfig(
        vocab_size=med["vocab_size"],
        hidden_size=med["hidden_size"],
        encoder_hidden_size=vision.config.hidden_size,
        intermediate_size=med["intermediate_size"],
        num_hidden_layers=med["num_hidden_layers"],
        num_attention_heads=med["num_attention_heads"],
        max_position_embeddings=med["max_position_embeddings"],
        layer_norm_eps=med["layer_norm_eps"],
        hidden_act=med["hidden_act"],
        is_decoder=True,
        use_cache=False,
    )
    model = torch_tools.unfilled(lambda: BlipTextModel(config, add_pooling_layer=False))
    return _filled(model, state, path)


def _filled(model: Any, state: State, path: Path) -> Any:
    own = model.state_dict()
    missing = sorted(own.keys() - state.keys())
    missing += sorted(k for k in own.keys() & state.keys() if own[k].shape != state[k].shape)
    if missing:
        raise ValueError(f"{path}: {missing[0]} is missing or of another shape")
    model.load_state_dict({key: state[key] for key in own})
    return model


def _tokenizer(path: Path, vocabulary: int) -> Any:
    tokenizer = clip_tools.load_tokenizer(path, MAX_TOKENS, pad="[PAD]")
    # As the package does; no text is ever started with them, but they are part of the vocabulary.
    tokenizer.add_special_tokens(["[DEC]", "[ENC]"])
    if tokenizer.get_vocab_size() != vocabulary:
        found = tokenizer.get_vocab_size()
        raise ValueError(f"{path}: {found} tokens, the network knows {vocabulary}")
    pad = tokenizer.padding
    tokenizer.enable_padding(pad_id=pad["pad_id"], pad_token=pad["pad_token"], length=MAX_TOKENS)
    return tokenizer
