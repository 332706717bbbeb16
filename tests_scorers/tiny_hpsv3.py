"""A tiny HPSv3 in the published file format, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from reward_server.scorers.hpsv3 import template

HIDDEN = 64
# The special tokens of Qwen2-VL in their order.
CONTROL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]


def _tokenizer() -> Qwen2Tokenizer:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([template.INSTRUCTION + template.QUESTION], trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=model["vocab"], merges=merges)  # type: ignore[arg-type]  # pairs
    tokenizer.add_special_tokens({"additional_special_tokens": CONTROL})
    return tokenizer


def _config(tokenizer: Qwen2Tokenizer) -> dict[str, Any]:
    """config.json in the flat form of Qwen/Qwen2-VL-7B-Instruct; its vocabulary is padded."""
    ids = tokenizer.convert_tokens_to_ids
    return {
        "architectures": ["Qwen2VLForConditionalGeneration"],
        "model_type": "qwen2_vl",
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vocab_size": 1024,
        "tie_word_embeddings": False,
        "bos_token_id": ids("<|endoftext|>"),
        "eos_token_id": ids("<|im_end|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_config": {
            "depth": 2,
            "embed_dim": 32,
            "mlp_ratio": 2,
            "num_heads": 4,
            "in_chans": 3,
            "hidden_size": HIDDEN,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "spatial_patch_size": 14,
            "temporal_patch_size": 2,
        },
    }


def write(folder: Path) -> Path:
    """A folder as published: HPSv3.safetensors with the old key names beside Qwen2-VL's files."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(_config(tokenizer)))
    config: Any = Qwen2VLConfig.from_pretrained(folder)
    config.text_config.vocab_size = len(tokenizer) + 1
    torch.manual_seed(0)
    state = {}
    for key, tensor in Qwen2VLForConditionalGeneration(config).state_dict().items():
        old = key.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        # Norms start at exactly 1 and biases at 0, where much goes unnoticed.
        state[old] = tensor + 0.2 * torch.randn_like(tensor) * max(float(tensor.std()), 0.1)
    for index, shape in ((0, (1024, HIDDEN)), (3, (16, 1024)), (5, (2, 16))):
        state[f"rm_head.{index}.weight"] = torch.randn(shape) / shape[1] ** 0.5
        state[f"rm_head.{index}.bias"] = torch.randn(shape[0])
    save_file({k: v.contiguous() for k, v in state.items()}, folder / "HPSv3.safetensors")
    return folder
