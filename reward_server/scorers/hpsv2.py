"""Human Preference Score v2 and v2.1 (Wu et al. 2023, arXiv:2306.09341).

open_clip ViT-H-14 with the checkpoints of `xswu/HPSv2`: raw = cos(image, prompt) without the logit
scale, about 0.2 to 0.35. v2 and v2.1 are different weights; their numbers do not compare. The
package `hpsv2` is not needed (and pins protobuf below 4): its network has open_clip's keys, only
its preprocessing is its own (`pixels`, `letterbox`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from reward_server.scorers import clip_tools, pixels, torch_tools
from reward_server.scorers.base import ItemScore, ScoreInput, ScorerSpec, UInt8Image, raw
from reward_server.scorers.clip_tools import unit
from reward_server.scorers.network_scorer import NetworkScorer
from reward_server.scorers.pixels import Preparation
from reward_server.weights import store

if TYPE_CHECKING:
    import torch

ARCHITECTURE = "ViT-H-14"


class OpenClip:
    """An open_clip model and its tokenizer on a device."""

    def __init__(
        self, model: Any, architecture: str, preparation: Preparation, *, compile: bool
    ) -> None:
        import open_clip  # pyright: ignore[reportMissingImports]

        self._image = torch_tools.compiled(model.encode_image, compile)
        self._text = torch_tools.compiled(model.encode_text, compile)
        self._tokenizer = open_clip.get_tokenizer(architecture)
        self._architecture, self._preparation = architecture, preparation
        weight = model.visual.conv1.weight
        self._device, self._dtype = str(weight.device), weight.dtype

    def facts(self) -> Mapping[str, str]:
        import open_clip  # pyright: ignore[reportMissingImports]

        return {
            **self._preparation.facts(),
            "dtype": str(self._dtype),
            "open_clip": open_clip.__version__,
            "architecture": self._architecture,
        }

    def images(self, pictures: Sequence[UInt8Image]) -> torch.Tensor:
        """Embed pictures in one forward: (N, D) float32 of length 1."""
        batch = pixels.on_device(pictures, self._preparation, self._device, self._dtype)
        return unit(self._image(batch))

    def texts(self, prompts: Sequence[str]) -> torch.Tensor:
        """Embed prompts in one forward: (N, D) float32 of length 1."""
        ids = self._tokenizer(list(prompts))
        return unit(self._text(torch_tools.to_device(ids, self._device)))


class HpsV2Scorer(NetworkScorer[OpenClip]):
    """Cosine of picture and prompt under HPS v2."""

    checkpoint = "HPS_v2_compressed.pt"
    spec = ScorerSpec(
        name="hpsv2",
        version="1",
        inputs=("image", "prompt"),
        transforms={"raw": raw},
        default_transform="raw",
        output_range=(-1.0, 1.0),
    )

    def __init__(
        self,
        weights: str = "",
        dtype: str = "float32",
        compile: bool = False,
        antialias: bool = True,
        architecture: str = ARCHITECTURE,
    ) -> None:
        """Validate the options; `weights`, `dtype` and `compile` are those of `NetworkScorer`.

        With `antialias` pictures are resized as torchvision does since 0.17, else as it did before.
        `architecture` is the open_clip config that the checkpoint belongs to: its name, or a file
        `NAME.json` of open_clip's form, for fine-tunes of other networks.
        """
        super().__init__(weights=weights, dtype=dtype, compile=compile)
        self._preparation = "letterbox" if antialias else "letterbox_aliased"
        self._architecture = architecture

    def files(self) -> list[Path]:
        """The one checkpoint; configuration and vocabulary come with open_clip."""
        return [store.require(self.spec.name, self._weights, (self.checkpoint,)) / self.checkpoint]

    def open(self, device: str, dtype: torch.dtype) -> OpenClip:
        (path,) = self.files()
        architecture = _registered(self._architecture)
        model = _model(architecture)
        _load_checkpoint(model, path)
        size = model.visual.image_size
        size_px = int(size[0] if isinstance(size, tuple) else size)
        model = model.eval().requires_grad_(False).to(device, dtype)
        preparation = Preparation(self._preparation, size_px)
        return OpenClip(model, architecture, preparation, compile=self._compile)

    def modules(self) -> list[ModuleType]:
        return [clip_tools]

    def rows(self, items: Sequence[ScoreInput]) -> list[ItemScore]:
        images = self.network.images([item.images[0] for item in items])
        prompts = [item.prompt for item in items]
        found = clip_tools.pair_cosines(images, prompts, self.network.texts)
        return [ItemScore(value) for value in found]


class HpsV21Scorer(HpsV2Scorer):
    """Cosine of picture and prompt under HPS v2.1."""

    checkpoint = "HPS_v2.1_compressed.pt"
    spec = ScorerSpec(
        name="hpsv2.1",
        version="1",
        inputs=("image", "prompt"),
        transforms={"raw": raw},
        default_transform="raw",
        output_range=(-1.0, 1.0),
    )


def _registered(architecture: str) -> str:
    """The name of a config; a file is made known to open_clip under its name."""
    path = Path(architecture)
    if path.suffix != ".json":
        return architecture
    if not path.is_file():
        raise ValueError(f"architecture: no file {architecture}")
    import open_clip  # pyright: ignore[reportMissingImports]

    open_clip.add_model_config(path)
    return path.stem


def _model(architecture: str) -> Any:
    import open_clip  # pyright: ignore[reportMissingImports]

    config = open_clip.get_model_config(architecture)
    if config is None:
        raise ValueError(f"architecture {architecture!r}: open_clip has no such configuration")
    return torch_tools.unfilled(lambda: open_clip.CLIP(**config))


def _load_checkpoint(model: Any, path: Path) -> None:
    held = torch_tools.load_state(path)
    state = held.get("state_dict") if isinstance(held, dict) else None
    if not isinstance(state, dict):
        raise ValueError(f"{path}: has no 'state_dict'; not an HPS checkpoint")
    own = model.state_dict()
    odd = sorted(own.keys() ^ state.keys())
    odd += sorted(key for key in own.keys() & state.keys() if own[key].shape != state[key].shape)
    if odd:
        raise ValueError(f"{path}: another network than the architecture: {odd[0]} differs")
    model.load_state_dict(state)
