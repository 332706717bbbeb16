"""The shapes of a model: from its folder, the hub's cache, or as published. Never weights."""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.models.loading import INDEX, model_folders, weight_files
from trainer.models.published import PUBLISHED

CLIP_TOKENS = 77


@dataclass(frozen=True, slots=True)
class Architecture:
    """What the cost of a model depends on.

    Attributes:
        source: Where the shapes come from, for people.
        matrices: (outputs, inputs) of every weight matrix of the network, by name.
        parameters: Of the network.
        hidden: Width of the network.
        blocks: How many blocks it has.
        patch: Latent elements along the side of a token.
        scale: Pixels along the side of a latent element.
        frames_scale: Frames per latent frame; 1 for images.
        encoder_parameters: Of the text encoders.
        vae_parameters: Of the autoencoder.
        vae_width: Channels of its decoder at full resolution, at most.
        cross_attention: The text is only attended to, it does not run through the network.
        clip_tokens: Tokens of the CLIP encoders that come before the language encoder's; 0 where
            the network does not see them.
    """

    source: str
    matrices: Mapping[str, tuple[int, int]]
    parameters: int
    hidden: int
    blocks: int
    patch: int
    scale: int
    frames_scale: int
    encoder_parameters: float
    vae_parameters: float
    vae_width: int
    cross_attention: bool
    clip_tokens: int

    def image_tokens(self, height_px: int, width_px: int, num_frames: int) -> int:
        """Tokens of one image or video."""
        side = self.patch * self.scale
        frames = (num_frames - 1) // self.frames_scale + 1
        return frames * (height_px // side) * (width_px // side)

    def adapter_parameters(self, rank: int, targets: Sequence[str]) -> int:
        """Parameters of low-rank adapters on the matrices whose layers have these endings."""
        return sum(
            rank * (outputs + inputs)
            for name, (outputs, inputs) in self.matrices.items()
            if any(f".{name.removesuffix('.weight')}".endswith(f".{target}") for target in targets)
        )


def find(path_or_id: str | Path) -> Architecture | None:
    """The shapes of a pipeline folder or hub id; None where nothing is known of it.

    Raises:
        ValueError: A folder that is no pipeline, or damaged.
    """
    folder = Path(path_or_id)
    if folder.is_dir():
        return _of_folder(folder)
    cached = in_cache(str(path_or_id))
    try:
        return _published(str(path_or_id)) if cached is None else _of_folder(cached)
    except ValueError:
        # An interrupted download: a run would fetch the rest.
        return _published(str(path_or_id))


def _of_folder(folder: Path) -> Architecture:
    try:
        config = _json(folder / "transformer" / "config.json")
        vae = _json(folder / "vae" / "config.json")
        index = _json(folder / INDEX)
        encoders = [n for n, e in index.items() if n.startswith("text_encoder") and e != [None] * 2]
        for component in model_folders(folder):
            weight_files(component)
        return described(
            str(folder),
            config["_class_name"],
            config,
            encoder_parameters=sum(_stored(folder / name) for name in encoders),
            vae_parameters=_stored(folder / "vae"),
            vae=vae,
            clip_tokens=_clip_tokens(folder),
        )
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder} is not a whole pipeline folder ({error})") from error


def _published(name: str) -> Architecture | None:
    known = PUBLISHED.get(name)
    if known is None:
        return None
    return described(
        "the published shapes",
        known.transformer,
        known.config,
        encoder_parameters=known.encoder_parameters,
        vae_parameters=known.vae_parameters,
        vae={},
        clip_tokens=CLIP_TOKENS,
    )


def described(
    source: str,
    transformer: str,
    config: Mapping[str, Any],
    *,
    encoder_parameters: float,
    vae_parameters: float,
    vae: Mapping[str, Any],
    clip_tokens: int,
) -> Architecture:
    """The shapes of a network, made of its class and configuration without any memory.

    Args:
        source: where they come from.
        transformer: class in diffusers.
        config: of the network.
        encoder_parameters: of the text encoders.
        vae_parameters: of the autoencoder.
        vae: configuration of the autoencoder.
        clip_tokens: of its CLIP encoders.
    """
    import diffusers
    import torch

    with torch.device("meta"):
        network: Any = getattr(diffusers, transformer).from_config(dict(config))
    whole = network.config
    patch = whole.patch_size
    # FLUX packs 2x2 latents outside of the network; videos state frames, height and width.
    patch = 2 if transformer == "FluxTransformer2DModel" else patch
    widths = vae.get("block_out_channels", (128, 256, 512, 512))
    video = "Wan" in transformer
    hidden = whole.num_attention_heads * whole.attention_head_dim
    return Architecture(
        source=source,
        matrices={
            name: (weight.shape[0], weight.numel() // weight.shape[0])
            for name, weight in network.named_parameters()
            if weight.dim() >= 2 and name.endswith("weight")
        },
        parameters=sum(weight.numel() for weight in network.parameters()),
        hidden=hidden,
        blocks=whole.num_layers + getattr(whole, "num_single_layers", 0),
        patch=patch[-1] if isinstance(patch, (tuple, list)) else patch,
        scale=2 ** (len(widths) - 1),
        frames_scale=4 if video else 1,
        encoder_parameters=encoder_parameters,
        vae_parameters=vae_parameters,
        vae_width=widths[1] if len(widths) > 1 else widths[0],
        cross_attention=video,
        clip_tokens=clip_tokens if transformer == "SD3Transformer2DModel" else 0,
    )


def _clip_tokens(folder: Path) -> int:
    config = folder / "text_encoder" / "config.json"
    return _json(config).get("max_position_embeddings", CLIP_TOKENS) if config.is_file() else 0


def _stored(folder: Path) -> int:
    """Parameters in the safetensors files of a component, from their headers alone."""
    return sum(_elements(path) for path in weight_files(folder)[1] if path.suffix != ".bin")


def _elements(path: Path) -> int:
    with path.open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        if size > path.stat().st_size:
            raise ValueError(f"{path.name} is damaged")
        header = json.loads(file.read(size))
    total = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            count = 1
            for side in tensor["shape"]:
                count *= side
            total += count
    return total


def in_cache(name: str) -> Path | None:
    """The folder of a hub id that has been downloaded; never reaches the network."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, INDEX)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))
