"""OpenAI's CLIP from its own file, with the activation it was trained with.

The file `ViT-L-14.pt` is a TorchScript archive whose tensors say everything about the architecture
but the activation, which is QuickGELU. open_clip's plain `ViT-L-14` has GELU: the same tensors,
other results, no error. So the activation is checked here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ACTIVATION = "QuickGELU"


class WrongActivation(ValueError):
    """A CLIP whose activation is not QuickGELU."""


@dataclass(frozen=True, slots=True)
class Clip:
    """A loaded CLIP.

    Attributes:
        network: open_clip's module, float32, in evaluation mode.
        side_px: of the square pictures it takes.
        mean: (3,) of normalised pixels in [0, 1].
        std: (3,) likewise.
        context: tokens of a text, padding included.
        architecture: a line for people and fingerprints.
    """

    network: Any
    side_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    context: int
    architecture: str


def load(path: Path, device: str) -> Clip:
    """Build the network from OpenAI's archive, or from a file with the same tensors."""
    import open_clip  # pyright: ignore[reportMissingImports]  # in the scorers' environment

    network = open_clip.load_openai_model(str(path), precision="fp32", device="cpu")
    assert_quick_gelu(network)
    vision, text = network.visual, network.transformer
    side_px = int(vision.image_size[0])
    architecture = (
        f"vision {len(vision.transformer.resblocks)}x{vision.conv1.out_channels}"
        f"/{vision.conv1.kernel_size[0]}@{side_px},"
        f" text {len(text.resblocks)}x{network.ln_final.weight.shape[0]}, {ACTIVATION}"
    )
    mean, std = tuple(vision.image_mean), tuple(vision.image_std)
    context = int(network.positional_embedding.shape[0])
    return Clip(network.to(device).eval(), side_px, mean, std, context, architecture)


def assert_quick_gelu(network: nn.Module) -> None:
    """Check every block of both towers; raises WrongActivation."""
    found = [
        type(module).__name__
        for name, module in network.named_modules()
        if name.endswith(".mlp.gelu")
    ]
    wrong = sorted({name for name in found if name != ACTIVATION})
    if not found or wrong:
        raise WrongActivation(
            f"CLIP has activation {', '.join(wrong) or 'unknown'}, but OpenAI's weights need"
            f" {ACTIVATION} (open_clip's ViT-L-14-quickgelu)"
        )


@torch.inference_mode()
def encode_texts(clip: Clip, tokens: Tensor) -> Tensor:
    """Normalised embeddings (N, D) of texts, as `encode_text`, at a fraction of the cost.

    Attention is causal and the embedding is read at the end mark, so the padding behind the
    longest text changes nothing and is cut off: 77 tokens become about 12.

    Args:
        clip: the network.
        tokens: (N, context) token ids, padded with 0; the end mark has the highest id.
    """
    network = clip.network
    ends = tokens.argmax(-1)
    length = int(ends.max()) + 1
    states = network.token_embedding(tokens[:, :length]) + network.positional_embedding[:length]
    states = network.transformer(states, attn_mask=network.attn_mask[:length, :length])
    at_end = network.ln_final(states)[torch.arange(len(tokens), device=tokens.device), ends]
    return nn.functional.normalize(at_end @ network.text_projection, dim=-1)
