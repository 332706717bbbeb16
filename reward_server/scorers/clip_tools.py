"""CLIP as the preference scorers use it: two towers, unit embeddings, cosines of pairs.

The towers of transformers' CLIPModel are called one by one: what `get_image_features` returns
changed with transformers 5. Prompts are tokenised by the repository's own `tokenizer.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reward_server.scorers import pixels, torch_tools
from reward_server.scorers.base import UInt8Image
from reward_server.scorers.pixels import Preparation
from reward_server.weights import store

if TYPE_CHECKING:
    import torch

VIT_L_14 = "clip-vit-large-patch14"
CLIP_FILES = ("config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors")


class Clip:
    """The towers of a CLIPModel of transformers on a device; without text until it is added."""

    def __init__(self, model: Any, *, device: str, dtype: torch.dtype, compile: bool) -> None:
        # Before the weights lose precision: 4.6052 in bfloat16 is off by 1 % after exp.
        self.logit_scale = float(model.logit_scale.detach().float().exp())
        self.width = int(model.config.projection_dim)
        self.size_px = int(model.config.vision_config.image_size)
        self._device, self._dtype, self._compile = device, dtype, compile
        self._vision = self._tower(model.vision_model)
        self._project_picture = self._placed(model.visual_projection)
        self._tokenizer: Any = None

    @property
    def has_text(self) -> bool:
        return self._tokenizer is not None

    def add_text(self, model: Any, tokenizer: Any) -> None:
        self._text = self._tower(model.text_model)
        self._project_text = self._placed(model.text_projection)
        self._tokenizer = tokenizer

    def facts(self) -> Mapping[str, str]:
        import tokenizers
        import transformers

        return {
            "dtype": str(self._dtype),
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        }

    def images(self, pictures: Sequence[UInt8Image], preparation: Preparation) -> torch.Tensor:
        """Embed pictures in one forward: (N, D) float32 of length 1."""
        batch = pixels.on_device(pictures, preparation, self._device, self._dtype)
        return unit(self._project_picture(self._vision(pixel_values=batch).pooler_output))

    def texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embed prompts in one forward: (N, D) float32 of length 1.

        The text tower is causal and read at the first end token, so padding needs no mask.
        """
        ids = torch_tools.to_device(token_ids(self._tokenizer, prompts), self._device)
        return unit(self._project_text(self._text(input_ids=ids).pooler_output))

    def _placed(self, module: Any) -> Any:
        return module.eval().requires_grad_(False).to(self._device, self._dtype)

    def _tower(self, module: Any) -> Any:
        return torch_tools.compiled(self._placed(module), self._compile)


def clip_files(name: str, weights: str) -> list[Path]:
    """A CLIP repository's files; an older `pytorch_model.bin` will do. Raises MissingWeights."""
    folder = Path(weights).expanduser() if weights else store.models_dir() / name
    *others, checkpoint = CLIP_FILES
    older = "pytorch_model.bin"
    if not (folder / checkpoint).is_file() and (folder / older).is_file():
        checkpoint = older
    wanted = (*others, checkpoint)
    found = store.require(name, weights, wanted)
    return [found / path for path in wanted]


def load_clip(
    folder: Path, *, device: str, dtype: torch.dtype, compile: bool, with_text: bool
) -> Clip:
    model = _model(folder)
    clip = Clip(model, device=device, dtype=dtype, compile=compile)
    _check_preprocessor(folder / "preprocessor_config.json", clip.size_px)
    if with_text:
        add_text(clip, folder, model)
    return clip


def add_text(clip: Clip, folder: Path, model: Any = None) -> None:
    """Give a network that was loaded for pictures alone its text tower; raises ValueError."""
    model = model or _model(folder)
    text = model.config.text_config
    tokenizer = load_tokenizer(folder / "tokenizer.json", text.max_position_embeddings)
    if tokenizer.get_vocab_size() > text.vocab_size:
        raise ValueError(f"{folder}: tokenizer.json has more tokens than the network knows")
    clip.add_text(model, tokenizer)


def _model(folder: Path) -> Any:
    from transformers import CLIPModel

    loaded: Any = CLIPModel.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise ValueError(f"{folder}: not a whole CLIP checkpoint: {missing[0]} is not in it")
    return model


def load_tokenizer(path: Path, length: int, pad: str = "<|endoftext|>") -> Any:
    """A tokenizer that truncates to `length` tokens and pads to the longest text of a batch."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(max_length=length)
    pad_id = tokenizer.token_to_id(pad)
    if pad_id is None:
        raise ValueError(f"{path}: has no token {pad!r}")
    tokenizer.enable_padding(pad_id=pad_id, pad_token=pad)
    return tokenizer


def token_ids(tokenizer: Any, prompts: Sequence[str]) -> torch.Tensor:
    """(N, L) int64 token ids."""
    import torch

    return torch.tensor([encoded.ids for encoded in tokenizer.encode_batch(list(prompts))])


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Vectors (N, D) in float32, each divided by its length."""
    vectors = vectors.float()
    return vectors / vectors.norm(dim=-1, keepdim=True)


def distinct(prompts: Sequence[str]) -> tuple[list[str], list[int]]:
    """The different prompts in order, and for every prompt its place among them."""
    unique = list(dict.fromkeys(prompts))
    place = {prompt: index for index, prompt in enumerate(unique)}
    return unique, [place[prompt] for prompt in prompts]


def pair_cosines(
    images: torch.Tensor,
    prompts: Sequence[str],
    embed: Callable[[Sequence[str]], torch.Tensor],
) -> list[float]:
    """Cosines of embedded pictures (N, D) and their N prompts, each different one embedded once."""
    unique, places = distinct(prompts)
    return cosines(images, embed(unique)[places])


def cosines(a: torch.Tensor, b: torch.Tensor) -> list[float]:
    """Row-wise cosines of unit vectors (N, D), freed of rounding beyond [-1, 1]."""
    return (a * b).sum(dim=-1).clamp(-1, 1).tolist()


def _check_preprocessor(path: Path, size_px: int) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    crop = config.get("crop_size", size_px)
    crop_px = crop["height"] if isinstance(crop, dict) else crop
    found = (crop_px, config.get("resample", 3), config.get("image_mean"), config.get("image_std"))
    expected = (size_px, 3, list(pixels.CLIP_MEAN), list(pixels.CLIP_STD))
    for what, have, want in zip(("crop", "resample", "mean", "std"), found, expected, strict=True):
        if have != want:
            raise ValueError(f"{path}: {what} is {have}, CLIP's is {want}; another network?")
