"""HPSv3 as a scorer: the mean of a preference distribution, read at a token of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from reward_server.scorers import tools, torch_tools
from reward_server.scorers.base import ItemFailure, ItemScore, ScoreInput, ScorerSpec, raw
from reward_server.scorers.hpsv3 import network, pixels, template
from reward_server.scorers.network_scorer import NetworkScorer
from reward_server.weights import store

if TYPE_CHECKING:
    import torch

CHECKPOINT = "HPSv3.safetensors"
FILES = (CHECKPOINT, "config.json", "tokenizer.json", "tokenizer_config.json")
MAX_TOKENS = 8192


def tenth(score: ItemScore) -> float:
    """Raw / 10 (verl-omni)."""
    return score.raw * 0.1


@dataclass(frozen=True, slots=True)
class HpsV3:
    """Backbone, head and tokenizer on a device."""

    backbone: Any
    head: Any
    tokenizer: Any
    device: str
    control: tuple[str, ...]
    compile: bool

    def facts(self) -> Mapping[str, str]:
        import torch
        import transformers

        return {
            "dtype": str(self.backbone.dtype),
            "compile": str(self.compile),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def ids(self, item: ScoreInput) -> list[int]:
        """Token ids of one item, with as many places for its picture as that takes."""
        (places,) = pixels.tokens_of([pixels.grid_of(item.images[0])])
        text = template.conversation(item.prompt, places)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def forward(
        self,
        texts: Sequence[list[int]],
        cuts: Sequence[NDArray[np.uint8]],
        grids: Sequence[tuple[int, int]],
    ) -> list[tuple[float, float]]:
        """(mu, sigma) of N items, from their token ids, uint8 patches and grids of patches."""
        import torch

        length = max(map(len, texts))
        pad = self.tokenizer.pad_token_id
        padded = torch.tensor([ids + [pad] * (length - len(ids)) for ids in texts])
        ids = torch_tools.to_device(padded, self.device)
        lengths = torch.tensor([len(ids) for ids in texts], device=self.device)
        cut = torch_tools.to_device(torch.from_numpy(np.concatenate(cuts)), self.device)
        hidden = self.backbone(
            input_ids=ids,
            attention_mask=(torch.arange(length, device=self.device) < lengths[:, None]).long(),
            pixel_values=pixels.pixel_values(cut),
            image_grid_thw=torch.tensor([(1, *grid) for grid in grids], device=self.device),
            mm_token_type_ids=(ids == self.backbone.config.image_token_id).int(),
            use_cache=False,
        ).last_hidden_state
        reward_id = self.tokenizer.convert_tokens_to_ids(template.REWARD_TOKEN)
        at_reward = hidden[ids == reward_id]  # (N, hidden): one per item, in order
        return [(mu, sigma) for mu, sigma in self.head(at_reward.float()).tolist()]


class HpsV3Scorer(NetworkScorer[HpsV3]):
    """Human preference by Qwen2-VL-7B with a rank head; raw value mu, unbounded, about 0 to 15.

    Args:
        weights: folder with `FILES`; empty: the set `hpsv3` of the models directory.
        dtype: of the backbone; the head is always float32.
        compile: `torch.compile` the backbone.
        batch_tokens: tokens per forward pass, padding included; bounds memory.
    """

    spec = ScorerSpec(
        name="hpsv3",
        version="3.0",
        inputs=("image", "prompt"),
        transforms={"raw": raw, "verlomni": tenth},
        default_transform="raw",
        output_range=(float("-inf"), float("inf")),
    )

    def __init__(
        self,
        weights: str = "",
        dtype: str = "float32",
        compile: bool = False,
        batch_tokens: int = 16384,
    ) -> None:
        super().__init__(weights=weights, dtype=dtype, compile=compile)
        if batch_tokens < 1:
            raise ValueError("hpsv3: batch_tokens must be at least 1")
        self._batch_tokens = batch_tokens

    def files(self) -> list[Path]:
        folder = store.require("hpsv3", self._weights, FILES)
        return [folder / name for name in FILES]

    def open(self, device: str, dtype: torch.dtype) -> HpsV3:
        """Load network and tokenizer, through as much host memory as the weights take."""
        folder = self.files()[0].parent
        backbone, head = network.load(folder, CHECKPOINT, dtype, device)
        tokenizer = _tokenizer(folder, backbone.config.text_config.vocab_size)
        control = tuple(tokenizer.get_added_vocab())
        backbone = torch_tools.compiled(backbone, self._compile)
        return HpsV3(backbone, head, tokenizer, device, control, self._compile)

    def modules(self) -> list[ModuleType]:
        return [network, pixels, template]

    def problem(self, item: ScoreInput) -> ItemFailure | None:
        """One picture that is no strip, and a prompt that is short enough and only text."""
        problem = tools.image_problem(item, "hpsv3")
        if problem is not None:
            return problem
        height, width = item.images[0].shape[:2]
        if max(height, width) > pixels.MAX_RATIO * min(height, width):
            return tools.invalid(
                f"images[0]: {width}x{height} px; hpsv3 takes sides of at most {pixels.MAX_RATIO}:1"
            )
        control = next((token for token in self.network.control if token in item.prompt), None)
        if control is not None:
            return tools.invalid(f"prompt: {control!r} is a control token of hpsv3's network")
        if (tokens := len(self.network.ids(item))) > MAX_TOKENS:
            return tools.invalid(
                f"prompt: {tokens} tokens with picture and instruction; hpsv3 takes {MAX_TOKENS}"
            )
        return None

    def rows(self, items: Sequence[ScoreInput]) -> list[ItemScore]:
        texts = [self.network.ids(item) for item in items]
        scores: dict[int, ItemScore] = {}
        for group in groups([len(ids) for ids in texts], self._batch_tokens):
            cuts, grids = zip(*(pixels.patches(items[i].images[0]) for i in group), strict=True)
            values = self.network.forward([texts[i] for i in group], cuts, grids)
            for i, grid, (mu, sigma) in zip(group, grids, values, strict=True):
                details = {"tokens": len(texts[i]), "patches": list(grid)}
                scores[i] = ItemScore(mu, {"sigma": sigma}, details)
        return [scores[i] for i in range(len(items))]


def _tokenizer(folder: Path, embeddings: int) -> Any:
    from transformers import AddedToken, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    tokenizer.add_tokens([AddedToken(template.REWARD_TOKEN, special=True, normalized=False)])
    reward_id = tokenizer.convert_tokens_to_ids(template.REWARD_TOKEN)
    if reward_id >= embeddings:
        raise ValueError(
            f"tokenizer and checkpoint disagree: {template.REWARD_TOKEN} is token {reward_id}, but"
            f" the checkpoint has {embeddings}"
        )
    if len(tokenizer.encode(template.IMAGE_TOKEN, add_special_tokens=False)) != 1:
        raise ValueError(f"not Qwen2-VL's tokenizer: it has no {template.IMAGE_TOKEN}")
    return tokenizer


def groups(lengths: Sequence[int], budget_tokens: int) -> list[list[int]]:
    """Indices of items that share a forward pass, longest first; padded tokens bound its memory.

    Args:
        lengths: tokens per item.
        budget_tokens: most that a group may hold after padding to its longest item; an item beyond
            it runs alone.

    Returns:
        Every index exactly once.
    """
    found: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not found or (len(found[-1]) + 1) * longest > budget_tokens:
            found.append([])
            longest = lengths[index]
        found[-1].append(index)
    return found
