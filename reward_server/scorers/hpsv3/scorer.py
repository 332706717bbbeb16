"""HPSv3 as a scorer: the mean of a preference distribution, read at a token of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reward_server.scorers import golden, tools, torch_tools
from reward_server.scorers.base import ItemFailure, ItemScore, Outcome, ScoreInput, ScorerSpec, raw
from reward_server.scorers.hpsv3 import network, pixels, template
from reward_server.weights import store

CHECKPOINT = "HPSv3.safetensors"
FILES = (CHECKPOINT, "config.json", "tokenizer.json", "tokenizer_config.json")
MAX_TOKENS = 8192


def tenth(score: ItemScore) -> float:
    """Raw / 10 (verl-omni)."""
    return score.raw * 0.1


@dataclass(frozen=True, slots=True)
class _Prepared:
    """One item ready for the network: token ids, uint8 patches and their grid."""

    ids: list[int]
    cut: NDArray[np.uint8]
    grid: tuple[int, int]


class HpsV3Scorer:
    """Human preference by Qwen2-VL-7B with a rank head; raw value mu, unbounded, about 0 to 15.

    Args:
        weights: folder with `FILES`; empty: the set `hpsv3` of the models directory.
        dtype: of the backbone; the head is always float32.
        compile: `torch.compile` the backbone.
        batch_tokens: tokens per forward pass, padding included; bounds memory.

    Raises:
        ValueError: an option is wrong.
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
        if batch_tokens < 1:
            raise ValueError("hpsv3: batch_tokens must be at least 1")
        self._weights = weights
        self._dtype = torch_tools.check_dtype("hpsv3", dtype)
        self._compile = compile
        self._batch_tokens = batch_tokens
        tolerance = torch_tools.tolerance(dtype)
        self.golden_tolerance, self.company_tolerance = tolerance.recorded, tolerance.company
        self._folder = Path()
        self._digest = ""
        self._device = "cpu"
        self._backbone: Any = None
        self._head: Any = None
        self._tokenizer: Any = None
        self._control: tuple[str, ...] = ()
        self._facts: dict[str, str] = {}

    def load(self, device: str) -> None:
        """Load network and tokenizer; needs as much host memory as the weights take.

        Raises:
            MissingWeights: a file is not there.
            ValueError: the files do not belong together; one line.
        """
        torch_tools.prepare_torchvision()
        import torch
        import transformers

        self._folder = store.require("hpsv3", self._weights, FILES)
        self._digest = store.digest_of(self._folder / name for name in FILES)
        dtype = torch_tools.set_precision(self._dtype)
        backbone, self._head = network.load(self._folder, CHECKPOINT, dtype, device)
        self._tokenizer = _tokenizer(self._folder, backbone.config.text_config.vocab_size)
        self._control = tuple(self._tokenizer.get_added_vocab())
        self._backbone = torch_tools.compiled(backbone, self._compile)
        self._device = device
        self._facts = {
            "dtype": str(dtype),
            "compile": str(self._compile),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def weights_digest(self) -> str:
        """Digest over checkpoint, config and tokenizer."""
        return self._digest

    def fingerprint(self) -> str:
        """Digest over code, weights, types and library versions."""
        facts = {"version": self.spec.version, "weights": self._digest, **self._facts}
        modules = [network, pixels, template, sys.modules[__name__]]
        return tools.digest(modules, facts)

    def golden_items(self) -> list[ScoreInput]:
        """Four drawings with captions of different lengths."""
        captions = ("", "a red disc on a light background", "stripes", "grey noise " * 20)
        return [
            ScoreInput(caption, (picture,))
            for caption, picture in zip(captions, golden.pictures(), strict=True)
        ]

    def self_test(self) -> None:
        """Compare with the blessed scores.

        Raises:
            SelfTestError: see `golden.self_test`.
        """
        golden.self_test(self)

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        """Score items in as few forward passes as `batch_tokens` allows."""
        outcomes: list[Outcome | _Prepared] = [self._prepared(item) for item in batch]
        todo = [i for i, found in enumerate(outcomes) if isinstance(found, _Prepared)]
        ready = [found for found in outcomes if isinstance(found, _Prepared)]
        for group in groups([len(p.ids) for p in ready], self._batch_tokens):
            values = self._forward([ready[i] for i in group])
            for i, (mu, sigma) in zip(group, values, strict=True):
                shown = {"tokens": len(ready[i].ids), "patches": list(ready[i].grid)}
                outcomes[todo[i]] = ItemScore(mu, {"sigma": sigma}, shown if details else None)
        return [found for found in outcomes if not isinstance(found, _Prepared)]

    def _prepared(self, item: ScoreInput) -> _Prepared | ItemFailure:
        problem = tools.image_problem(item, "hpsv3")
        if problem is not None:
            return problem
        height, width = item.images[0].shape[:2]
        if max(height, width) > pixels.MAX_RATIO * min(height, width):
            return tools.invalid(
                f"images[0]: {width}x{height} px; hpsv3 takes sides of at most {pixels.MAX_RATIO}:1"
            )
        control = next((token for token in self._control if token in item.prompt), None)
        if control is not None:
            return tools.invalid(f"prompt: {control!r} is a control token of hpsv3's network")
        cut, grid = pixels.patches(item.images[0])
        (places,) = pixels.tokens_of([grid])
        text = template.conversation(item.prompt, places)
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) > MAX_TOKENS:
            return tools.invalid(
                f"prompt: {len(ids)} tokens with picture and instruction; hpsv3 takes {MAX_TOKENS}"
            )
        return _Prepared(ids, cut, grid)

    def _forward(self, items: Sequence[_Prepared]) -> list[tuple[float, float]]:
        import torch

        length = max(len(item.ids) for item in items)
        pad = self._tokenizer.pad_token_id
        padded = [item.ids + [pad] * (length - len(item.ids)) for item in items]
        ids = torch_tools.to_device(torch.tensor(padded), self._device)
        lengths = torch.tensor([len(item.ids) for item in items], device=self._device)
        mask = (torch.arange(length, device=self._device) < lengths[:, None]).long()
        cut = torch_tools.to_device(
            torch.from_numpy(np.concatenate([item.cut for item in items])), self._device
        )
        grids = torch.tensor([(1, *item.grid) for item in items], device=self._device)
        reward_id = self._tokenizer.convert_tokens_to_ids(template.REWARD_TOKEN)
        with torch.inference_mode():
            hidden = self._backbone(
                input_ids=ids,
                attention_mask=mask,
                pixel_values=pixels.pixel_values(cut),
                image_grid_thw=grids,
                mm_token_type_ids=(ids == self._backbone.config.image_token_id).int(),
                use_cache=False,
            ).last_hidden_state
            at_reward = hidden[ids == reward_id]  # (N, hidden): one per item, in order
            return [(mu, sigma) for mu, sigma in self._head(at_reward.float()).tolist()]


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
