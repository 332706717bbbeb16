"""Tiny reward models on Qwen-VL in the published file formats, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLForConditionalGeneration,
)

from reward_server.scorers.qwen_vl import instructions

HIDDEN = 64
RANK, ALPHA = 4, 8
# The special tokens of Qwen2-VL in their order.
CONTROL = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>"),
    *("<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]
VISION = {
    "qwen2_vl": {"embed_dim": 32, "mlp_ratio": 2, "hidden_size": HIDDEN, "spatial_patch_size": 14},
    "qwen2_5_vl": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "out_hidden_size": HIDDEN,
        "hidden_act": "silu",
        "window_size": 112,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    },
}
VIDEO_CONFIG: dict[str, Any] = {  # of KlingTeam/VideoReward, but for the size and the LoRA's
    "data_config": {
        "max_frame_pixels": 130 * 28 * 28,
        "num_frames": None,
        "fps": 2.0,
        "eval_dim": ["VQ", "MQ", "TA"],
        "prompt_template_type": "detailed_special",
        "sample_type": "uniform",
    },
    "peft_lora_config": {"lora_r": RANK, "lora_alpha": ALPHA, "use_rslora": False},
    "inference_config": {
        "VQ_mean": 3.6757,
        "VQ_std": 2.2476,
        "MQ_mean": 1.1646,
        "MQ_std": 1.3811,
        "TA_mean": 2.8105,
        "TA_std": 2.5121,
    },
}


def hpsv3(folder: Path) -> Path:
    """HPSv3.safetensors with the old key names beside Qwen2-VL's files."""
    old = {"model.visual.": "visual.", "model.language_model.": "model."}
    state = _renamed(_backbone(folder, "qwen2_vl", 1), old)
    state |= _rank_head("rm_head.")
    save_file(state, folder / "HPSv3.safetensors")
    return folder


def editreward(folder: Path) -> Path:
    """model.safetensors with the key names of transformers 4.57, two heads."""
    state = _backbone(folder, "qwen2_5_vl", 1)
    state |= _rank_head("rm_heads.head_0.") | _rank_head("rm_heads.head_1.")
    save_file(state, folder / "model.safetensors")
    return folder


def videoalign(folder: Path) -> Path:
    """model.pth as PEFT leaves it, unmerged, beside model_config.json; a head with one output."""
    old = {"model.visual.": "visual.", "model.language_model.": "model."}
    state: dict[str, torch.Tensor] = {}
    for key, tensor in _renamed(_backbone(folder, "qwen2_vl", 3), old).items():
        name = f"base_model.model.{key}"
        if ".layers." in key and ("_proj." in key):
            stem, _, part = name.rpartition(".")
            name = f"{stem}.base_layer.{part}"
            if part == "weight":
                rows, columns = tensor.shape
                state[f"{stem}.lora_A.default.weight"] = torch.randn(RANK, columns) / columns**0.5
                state[f"{stem}.lora_B.default.weight"] = 0.2 * torch.randn(rows, RANK)
        state[name] = tensor
    state["base_model.model.rm_head.weight"] = torch.randn(1, HIDDEN)
    (folder / "checkpoint-11352").mkdir(exist_ok=True)
    torch.save(state, folder / "checkpoint-11352" / "model.pth")
    (folder / "model_config.json").write_text(json.dumps(VIDEO_CONFIG), encoding="utf-8")
    return folder


def _backbone(folder: Path, model_type: str, marks: int) -> dict[str, torch.Tensor]:
    """Write Qwen's own files; weights with the key names of today."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer()
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(_config(tokenizer, model_type)))
    config: Any = AutoConfig.from_pretrained(folder)
    config.text_config.vocab_size = len(tokenizer) + marks
    torch.manual_seed(0)
    five = model_type == "qwen2_5_vl"
    made = Qwen2_5_VLForConditionalGeneration if five else Qwen2VLForConditionalGeneration
    return {
        # Norms start at exactly 1 and biases at 0, where much goes unnoticed.
        key: (tensor + 0.2 * torch.randn_like(tensor) * max(float(tensor.std()), 0.1)).contiguous()
        for key, tensor in made(config).state_dict().items()
    }


def _renamed(state: dict[str, torch.Tensor], prefixes: dict[str, str]) -> dict[str, torch.Tensor]:
    def old(key: str) -> str:
        for new, name in prefixes.items():
            key = key.replace(new, name) if key.startswith(new) else key
        return key

    return {old(key): tensor for key, tensor in state.items()}


def _rank_head(prefix: str) -> dict[str, torch.Tensor]:
    state = {}
    for index, shape in ((0, (1024, HIDDEN)), (3, (16, 1024)), (5, (2, 16))):
        state[f"{prefix}{index}.weight"] = torch.randn(shape) / shape[1] ** 0.5
        state[f"{prefix}{index}.bias"] = torch.randn(shape[0])
    return state


def _tokenizer() -> Qwen2Tokenizer:
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    trained.train_from_iterator([instructions.HPSV3, instructions.VIDEO], trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Qwen2Tokenizer(vocab=model["vocab"], merges=merges)  # type: ignore[arg-type]  # pairs
    tokenizer.add_special_tokens({"additional_special_tokens": CONTROL})
    return tokenizer


def _config(tokenizer: Qwen2Tokenizer, model_type: str) -> dict[str, Any]:
    """config.json in the flat form of Qwen's repositories; its vocabulary is padded."""
    ids = tokenizer.convert_tokens_to_ids
    return {
        "model_type": model_type,
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
            "num_heads": 4,
            "in_chans": 3,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **VISION[model_type],
        },
    }
