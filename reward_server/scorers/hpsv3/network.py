"""The network of HPSv3 on transformers' Qwen2-VL, from the published checkpoint file.

`HPSv3.safetensors` holds a Qwen2-VL with the key names of transformers 4.4x ("visual.", "model.",
"lm_head.") and the head ("rm_head."). Later versions moved both parts below "model."; either form
loads. The language head is not needed and dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

HEAD = "rm_head."
_DROPPED = ("lm_head.",)
_RENAMED = (
    ("model.visual.", "visual."),
    ("model.language_model.", "language_model."),
    ("visual.", "visual."),
    ("language_model.", "language_model."),
    ("model.", "language_model."),
)


def split(
    state: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """State dicts of transformers' `Qwen2VLModel` and of the head; raises ValueError."""
    backbone: dict[str, torch.Tensor] = {}
    head: dict[str, torch.Tensor] = {}
    for stored, tensor in state.items():
        key = stored.removeprefix("module.")
        if key.startswith(HEAD):
            head[key.removeprefix(HEAD)] = tensor
        elif not key.startswith(_DROPPED):
            backbone[_renamed(key)] = tensor
    if not head:
        raise ValueError(f"not an HPSv3 checkpoint: it has no {HEAD}* weights")
    return backbone, head


def _renamed(key: str) -> str:
    for old, new in _RENAMED:
        if key.startswith(old):
            return new + key.removeprefix(old)
    raise ValueError(f"not an HPSv3 checkpoint: unknown weight {key!r}")


def rank_head(hidden_size: int) -> torch.nn.Module:
    """Hidden state to (mu, sigma): hidden -> 1024 -> 16 -> 2, ReLU in between, always float32.

    The dropout of training takes part as a name only: it gives the layers their numbers.
    """
    from torch import nn

    return nn.Sequential(
        nn.Linear(hidden_size, 1024),
        nn.ReLU(),
        nn.Dropout(0.05),
        nn.Linear(1024, 16),
        nn.ReLU(),
        nn.Linear(16, 2),
    ).eval()


def load(
    folder: Path, checkpoint: str, dtype: torch.dtype, device: str
) -> tuple[Any, torch.nn.Module]:
    """Build backbone and head and fill them, strictly; raises ValueError.

    Returns:
        transformers' `Qwen2VLModel` without a language head, and the head.
    """
    from safetensors.torch import load_file
    from transformers import Qwen2VLConfig, Qwen2VLModel

    backbone_state, head_state = split(load_file(folder / checkpoint))
    config: Any = Qwen2VLConfig.from_pretrained(folder, local_files_only=True)
    embeddings = backbone_state.get("language_model.embed_tokens.weight")
    if embeddings is None:
        raise ValueError("not an HPSv3 checkpoint: it has no token embeddings")
    # Upstream cut the table to the tokenizer's length plus one when it added its token.
    config.text_config.vocab_size = embeddings.shape[0]
    loaded: Any = Qwen2VLModel.from_pretrained(
        None, config=config, state_dict=backbone_state, dtype=dtype, output_loading_info=True
    )
    backbone, found = loaded
    wrong = sorted([*found["missing_keys"], *found["unexpected_keys"]])
    if wrong:
        raise ValueError(
            f"checkpoint and config.json disagree: {len(wrong)} weights missing or unknown, such"
            f" as {wrong[0]}"
        )
    head = rank_head(config.text_config.hidden_size)
    try:
        head.load_state_dict(head_state)
    except RuntimeError as error:
        raise ValueError(f"not HPSv3's rank head: {' '.join(str(error).split())}") from error
    return backbone.eval().to(device), head.float().to(device)
