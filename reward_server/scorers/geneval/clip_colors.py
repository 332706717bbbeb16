"""Which of GenEval's ten colours an object has, by CLIP; all objects of a batch together.

As djghosh13/geneval `color_classification` (clip_benchmark's zero-shot classifier): three templates
per colour and class, embeddings normalised, averaged and normalised again; arg-max of the cosine
with the embedded crop. The reference server starts a DataLoader with four workers for every
coloured class of every image and runs CLIP on each alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip  # pyright: ignore[reportMissingImports]  # in the scorers' environment
import PIL
import torch
from torch import Tensor
from torch.nn import functional as F

from reward_server.scorers import torch_tools
from reward_server.scorers.base import UInt8Image
from reward_server.scorers.geneval import clip_model, coco, crops

TEMPLATES = (
    "a photo of a {color} {label}",
    "a photo of a {color}-colored {label}",
    "a photo of a {color} object",
)
CROPS_PER_FORWARD = 256
_TEXTS_PER_FORWARD = 512
# CLIP's learned temperature, which clip_benchmark writes as a constant.
_TEMPERATURE = 100.0


@dataclass(frozen=True, slots=True)
class ColorGuess:
    color: str
    share: float
    cosines: np.ndarray[Any, np.dtype[np.float32]]


class ColorClassifier:
    modules = (sys.modules[__name__], clip_model, coco, crops)

    def __init__(
        self,
        weights: Path,
        *,
        dtype: str = "float32",
        compiled: bool = False,
        crops_per_forward: int = CROPS_PER_FORWARD,
    ) -> None:
        self.checkpoint = weights
        self._dtype_option = dtype
        self._compiled = compiled
        self._crops_per_forward = crops_per_forward
        self._clip: clip_model.Clip | None = None
        self._encode_image: Any = None
        self._device = "cpu"
        self._dtype = torch.float32
        self._embeddings: dict[str, Tensor] = {}

    def load(self, device: str) -> None:
        """Load CLIP; on a GPU also embed the texts of all classes.

        On a CPU 1,610 texts take minutes, so there a class is embedded when it is first asked for.
        """
        self._clip = clip_model.load(self.checkpoint, device)
        self._device, self._dtype = device, torch_tools.set_precision(self._dtype_option)
        self._encode_image = torch_tools.compiled(self._clip.network.encode_image, self._compiled)
        if device.startswith("cuda"):
            self.embeddings(coco.CLASSES)

    def facts(self) -> Mapping[str, str]:
        return {
            "clip": self._loaded().architecture,
            "clip_dtype": str(self._dtype),
            "clip_compile": str(self._compiled),
            "open_clip": open_clip.__version__,
            "pillow": PIL.__version__,
        }

    def classify(self, objects: Sequence[UInt8Image], labels: Sequence[str]) -> list[ColorGuess]:
        """The colour of every object; one forward for all of them (256 at a time)."""
        if not objects:
            return []
        features = self.encode(objects)
        texts = torch.stack(self.embeddings(labels))
        cosines = torch.einsum("nd,ncd->nc", features, texts)
        shares = (_TEMPERATURE * cosines).softmax(-1)
        best = cosines.argmax(-1).tolist()
        return [
            ColorGuess(coco.COLORS[index], float(share[index]), row)
            for index, share, row in zip(
                best, shares.cpu().numpy(), cosines.cpu().numpy(), strict=True
            )
        ]

    @torch.inference_mode()
    def encode(self, objects: Sequence[UInt8Image]) -> Tensor:
        """Normalised image embeddings (N, D) float32 of pictures of any sizes."""
        clip = self._loaded()
        pixels = np.stack([crops.fitted(picture, clip.side_px) for picture in objects])
        batch = torch_tools.to_device(torch.from_numpy(pixels), self._device)
        mean, std = (torch.tensor(v, device=batch.device) for v in (clip.mean, clip.std))
        kind = self._device.partition(":")[0]
        features = []
        for part in batch.split(self._crops_per_forward):
            normalised = ((part.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
            with torch.autocast(kind, self._dtype, enabled=self._dtype != torch.float32):
                features.append(self._encode_image(normalised).float())
        return F.normalize(torch.cat(features), dim=-1)

    def embeddings(self, labels: Sequence[str]) -> list[Tensor]:
        """Text embeddings (10, D) of the colours of each class; kept once computed."""
        missing = [label for label in dict.fromkeys(labels) if label not in self._embeddings]
        if missing:
            self._embed(missing)
        return [self._embeddings[label] for label in labels]

    def _embed(self, labels: Sequence[str]) -> None:
        clip = self._loaded()
        wanted = [
            [[t.format(color=color, label=label) for t in TEMPLATES] for color in coco.COLORS]
            for label in labels
        ]
        # The third template does not name the class, so it is shared by all of them.
        texts = list(dict.fromkeys(t for table in wanted for row in table for t in row))
        tokens = open_clip.tokenize(texts, clip.context).to(self._device)
        parts = tokens.split(_TEXTS_PER_FORWARD)
        encoded = torch.cat([clip_model.encode_texts(clip, part) for part in parts])
        place = {text: index for index, text in enumerate(texts)}
        for label, table in zip(labels, wanted, strict=True):
            rows = torch.tensor([[place[t] for t in row] for row in table], device=encoded.device)
            self._embeddings[label] = F.normalize(encoded[rows].mean(dim=1), dim=-1)

    def _loaded(self) -> clip_model.Clip:
        if self._clip is None:
            raise RuntimeError("the colour classifier was not loaded: call load() first")
        return self._clip
