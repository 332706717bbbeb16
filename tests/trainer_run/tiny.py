"""A random-weight SD3 pipeline of a few thousand parameters, and a run that takes seconds."""

import json
from pathlib import Path
from typing import Any

import diffusers
import torch
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from miniature.text import build_tokenizer

SIDE_PX = 16
TEXTS = ("a red star", "a blue circle", "two hearts", "a cross", "three squares", "a green star")


def build_pipeline(folder: Path) -> Path:
    """Save the pipeline; the same weights every time."""
    torch.manual_seed(0)
    tokenizer: Any = build_tokenizer()
    library: Any = diffusers  # its annotations of tuples are too narrow

    def encoder(activation: str) -> CLIPTextModelWithProjection:
        return CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=16,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=14,
                projection_dim=16,
                hidden_act=activation,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )

    parts: Any = {
        "text_encoder": encoder("quick_gelu"),
        "tokenizer": tokenizer,
        "text_encoder_2": encoder("gelu"),
        "tokenizer_2": tokenizer,
        "text_encoder_3": None,
        "tokenizer_3": None,
        "scheduler": library.FlowMatchEulerDiscreteScheduler(shift=3.0),
        "transformer": library.SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pooled_projection_dim=32,
            pos_embed_max_size=8,
            qk_norm="rms_norm",
        ),
        "vae": library.AutoencoderKL(
            in_channels=3,
            out_channels=3,
            latent_channels=4,
            norm_num_groups=4,
            layers_per_block=1,
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            use_quant_conv=False,
            use_post_quant_conv=False,
            scaling_factor=1.0,
            shift_factor=0.0,
            sample_size=SIDE_PX,
        ),
    }
    library.StableDiffusion3Pipeline(**parts).save_pretrained(folder)
    return folder


def write_prompts(path: Path, texts: tuple[str, ...]) -> Path:
    """A file of prompts in two categories."""
    rows = [{"prompt": t, "group": ("one", "many")[i % 2]} for i, t in enumerate(texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def settings_table(folder: Path, pipeline: Path) -> dict[str, Any]:
    """Settings of a run of a few seconds in `folder`/run."""
    return {
        "run": {"out_dir": str(folder / "run"), "epochs": 4, "save_every_epochs": 1, "seed": 7},
        "model": {
            "path": str(pipeline),
            "finetune": "lora",
            "lora_rank": 4,
            "lora_alpha": 8,
            "max_sequence_length": 0,
        },
        "sampling": {
            "num_steps": 4,
            "eval_num_steps": 5,
            "window_size": 2,
            "resolution_px": SIDE_PX,
        },
        "batch": {
            "prompts_per_epoch": 2,
            "images_per_prompt": 4,
            "rollout_batch_size": 2,
            "optimizer_steps_per_epoch": 2,
        },
        "optim": {"lr": 1e-2},
        "loss": {"kl_beta": 0.01},
        "ema": {"decay": 0.5, "every_updates": 2},
        "eval": {
            "every_epochs": 2,
            "images_per_prompt": 2,
            "curve_images_per_prompt": 1,
            "batch_size": 3,
            "samples_shown": 2,
        },
        "rewards": {
            "url": "fake://reward",
            "train": [{"scorer": "brightness"}],
            "watch": [{"scorer": "contrast"}],
            "patience_s": 2.0,
            "retry_pause_s": 0.05,
        },
        "task": {
            "name": "jsonl",
            "train": str(write_prompts(folder / "train.jsonl", TEXTS)),
            "test": str(write_prompts(folder / "test.jsonl", ("a black heart", "two stars"))),
        },
        "logging": {"tensorboard": False},
    }


def let_it_learn(table: dict[str, Any], *, lr: float) -> None:
    """Change the settings so that the reward rises within a few epochs, and nothing holds it."""
    table["model"]["finetune"] = "full"
    table["optim"]["lr"] = lr
    table["batch"] = {
        "prompts_per_epoch": 4,
        "images_per_prompt": 8,
        "rollout_batch_size": 16,
        "optimizer_steps_per_epoch": 2,
    }
    table["loss"] = {"kl_beta": 0.0, "clip_low": 1e-2, "clip_high": 1e-2}
    table["advantage"] = {"std": "group"}
