"""What the reward models on Qwen-VL share: options, loading, checks, passes of bounded size."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar

from reward_server.scorers import tools, torch_tools
from reward_server.scorers.base import ItemFailure, ItemScore, ScoreInput, UInt8Image
from reward_server.scorers.network_scorer import NetworkScorer
from reward_server.scorers.qwen_vl import instructions, network, pixels
from reward_server.scorers.qwen_vl.network import Query, QwenVL
from reward_server.weights import store

if TYPE_CHECKING:
    import torch

QWEN_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")


class QwenVLScorer(NetworkScorer[QwenVL]):
    """A scorer whose head reads the network at the tokens `marks`.

    Options:
        weights: folder with the checkpoint and `QWEN_FILES`; empty: the set of the scorer's name.
        dtype: of the backbone; the head is always float32.
        compile: `torch.compile` the backbone.
        batch_tokens: tokens per forward pass, padding included; bounds memory.
    """

    model_type: ClassVar[str] = "qwen2_vl"
    checkpoint: str
    further_files: ClassVar[tuple[str, ...]] = ()
    head_prefix: ClassVar[str] = "rm_head."
    marks: ClassVar[tuple[str, ...]] = (instructions.REWARD_TOKEN,)
    video: ClassVar[bool] = False
    max_tokens: ClassVar[int] = 8192

    def __init__(
        self,
        weights: str = "",
        dtype: str = "float32",
        compile: bool = False,
        batch_tokens: int = 16384,
    ) -> None:
        super().__init__(weights=weights, dtype=dtype, compile=compile)
        if batch_tokens < 1:
            raise ValueError(f"{self.spec.name}: batch_tokens must be at least 1")
        self._batch_tokens = batch_tokens

    @abstractmethod
    def head(self, state: Mapping[str, torch.Tensor], hidden_size: int) -> torch.nn.Module:
        """The head without its weights, which `state` are."""

    @abstractmethod
    def visuals_problem(self, item: ScoreInput) -> ItemFailure | None:
        """Why an item does not carry the pictures that `queries` needs, or None."""

    @abstractmethod
    def queries(self, item: ScoreInput) -> list[Query]:
        """What the network is asked about an item."""

    @abstractmethod
    def judged(self, item: ScoreInput, queries: list[Query], states: torch.Tensor) -> ItemScore:
        """The score from the states (queries, marks, hidden) of one item's queries."""

    def caption(self, item: ScoreInput) -> str:
        """The text that stands in the instruction."""
        return item.prompt

    def state(self) -> dict[str, torch.Tensor]:
        """The checkpoint; raises ValueError."""
        return network.read(self.files()[0])

    def files(self) -> list[Path]:
        names = (self.checkpoint, *self.further_files, *QWEN_FILES)
        folder = store.require(self.spec.name, self._weights, names)
        return [folder / name for name in names]

    def open(self, device: str, dtype: torch.dtype) -> QwenVL:
        """Load network and tokenizer, through as much host memory as the weights take."""
        folder = self.files()[-1].parent
        backbone_state, head_state = network.split(self.state(), self.head_prefix)
        backbone = network.load(folder, self.model_type, backbone_state, dtype, device)
        text = backbone.config.text_config
        head = network.filled(self.head(head_state, text.hidden_size), head_state, device)
        tokenizer = network.tokenizer(folder, self.marks, text.vocab_size)
        return QwenVL(
            torch_tools.compiled(backbone, self._compile),
            head,
            tokenizer,
            device,
            self.marks,
            tuple(tokenizer.get_added_vocab()),
            self._compile,
            self.video,
        )

    def modules(self) -> list[ModuleType]:
        return [network, pixels, instructions, sys.modules[__name__]]

    def problem(self, item: ScoreInput) -> ItemFailure | None:
        """Pictures that are no strips, and a prompt that is short enough and only text."""
        found = self.visuals_problem(item)
        if found is not None:
            return found
        caption, name = self.caption(item), self.spec.name
        control = next((token for token in self.network.control if token in caption), None)
        if control is not None:
            return tools.invalid(f"prompt: {control!r} is a control token of {name}'s network")
        tokens = max(len(query.ids) for query in self.queries(item))
        if tokens > self.max_tokens:
            return tools.invalid(
                f"prompt: {tokens} tokens with pictures and instruction; {name} takes"
                f" {self.max_tokens}"
            )
        return None

    def rows(self, items: Sequence[ScoreInput]) -> list[ItemScore]:
        asked = [self.queries(item) for item in items]
        states = self.network.states([q for queries in asked for q in queries], self._batch_tokens)
        parts = states.split([len(queries) for queries in asked])
        return [
            self.judged(item, queries, part)
            for item, queries, part in zip(items, asked, parts, strict=True)
        ]


def ratio_problem(image: UInt8Image, field: str, scorer: str) -> ItemFailure | None:
    """Why a picture is too long and thin for Qwen-VL, or None."""
    height, width = image.shape[:2]
    if max(height, width) <= pixels.MAX_RATIO * min(height, width):
        return None
    return tools.invalid(
        f"{field}: {width}x{height} px; {scorer} takes sides of at most {pixels.MAX_RATIO}:1"
    )
