"""Qwen2-VL and Qwen2.5-VL of transformers without their language head, from reward checkpoints.

The checkpoints have the key names of transformers 4.4x ("visual.", "model.", "lm_head.") or of
later versions, which moved both parts below "model."; either form loads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reward_server.scorers import torch_tools
from reward_server.scorers.qwen_vl import pixels
from reward_server.scorers.qwen_vl.pixels import Visual

if TYPE_CHECKING:
    import torch

_DROPPED = ("lm_head.",)
_RENAMED = (
    ("model.visual.", "visual."),
    ("model.language_model.", "language_model."),
    ("visual.", "visual."),
    ("language_model.", "language_model."),
    ("model.", "language_model."),
)
_IMAGE, _VIDEO = "<|image_pad|>", "<|video_pad|>"
_CHAT = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\n{visuals}{text}<|im_end|>\n<|im_start|>assistant\n"
)


@dataclass(frozen=True, slots=True)
class Query:
    """One sequence for the network: token ids, and what the places among them stand for."""

    ids: list[int]
    visuals: tuple[Visual, ...]


@dataclass(frozen=True, slots=True)
class QwenVL:
    """Backbone, head and tokenizer on a device.

    Attributes:
        marks: the tokens at which the head reads, each once in every query.
        control: what a caption must not contain.
        video: whether visuals are clips.
    """

    backbone: Any
    head: Any
    tokenizer: Any
    device: str
    marks: tuple[str, ...]
    control: tuple[str, ...]
    compile: bool
    video: bool

    def facts(self) -> Mapping[str, str]:
        import torch
        import transformers

        return {
            "dtype": str(self.backbone.dtype),
            "compile": str(self.compile),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def query(self, text: str, visuals: Sequence[Visual]) -> Query:
        """A user's message in Qwen-VL's chat: the visuals, then the text."""
        mark = _VIDEO if self.video else _IMAGE
        shown = "".join(f"<|vision_start|>{mark * v.tokens}<|vision_end|>" for v in visuals)
        chat = _CHAT.replace("{visuals}", shown).replace("{text}", text)
        ids = self.tokenizer(chat, add_special_tokens=False)["input_ids"]
        return Query(ids, tuple(visuals))

    def states(self, queries: Sequence[Query], budget_tokens: int) -> torch.Tensor:
        """Last hidden states at the marks, in order of the text: (N, marks, hidden) float32."""
        import torch

        found: dict[int, torch.Tensor] = {}
        for group in groups([len(query.ids) for query in queries], budget_tokens):
            found.update(zip(group, self._forward([queries[i] for i in group]), strict=True))
        return torch.stack([found[i] for i in range(len(queries))])

    def _forward(self, queries: Sequence[Query]) -> torch.Tensor:
        import torch

        device, length = self.device, max(len(query.ids) for query in queries)
        pad = self.tokenizer.pad_token_id
        padded = torch.tensor([q.ids + [pad] * (length - len(q.ids)) for q in queries])
        ids = torch_tools.to_device(padded, device)
        lengths = torch.tensor([len(query.ids) for query in queries], device=device)
        places = torch.arange(length, device=device)
        visuals = [visual for query in queries for visual in query.visuals]
        cut = torch.from_numpy(np.concatenate([visual.patches() for visual in visuals]))
        pixel, grid = (
            ("pixel_values_videos", "video_grid_thw")
            if self.video
            else ("pixel_values", "image_grid_thw")
        )
        hidden = self.backbone(
            input_ids=ids,
            attention_mask=(places < lengths[:, None]).long(),
            # The reward models were trained and are run with a text's positions in all three axes:
            # they call the decoder without positions and without the grids of their pictures.
            position_ids=places.expand(3, len(queries), length),
            use_cache=False,
            **{
                pixel: pixels.pixel_values(torch_tools.to_device(cut, device)),
                grid: torch.tensor([visual.grid for visual in visuals], device=device),
            },
        ).last_hidden_state
        marks = torch.tensor(self.tokenizer.convert_tokens_to_ids(list(self.marks)), device=device)
        return hidden[torch.isin(ids, marks)].float().view(len(queries), len(marks), -1)


def read(path: Path) -> dict[str, torch.Tensor]:
    """A checkpoint of either kind, without running its code; raises ValueError."""
    from safetensors.torch import load_file

    if path.suffix == ".safetensors":
        return load_file(path)
    state = torch_tools.load_state(path)
    return state.get("model", state)


def split(
    state: Mapping[str, torch.Tensor], head: str
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """State dicts of the backbone and of the head, whose keys begin with `head`; ValueError."""
    backbone: dict[str, torch.Tensor] = {}
    own: dict[str, torch.Tensor] = {}
    for stored, tensor in state.items():
        key = stored.removeprefix("module.")
        if key.startswith(head):
            own[key.removeprefix(head)] = tensor
        elif not key.startswith(_DROPPED):
            backbone[_renamed(key)] = tensor
    if not own:
        raise ValueError(f"not a reward checkpoint of this scorer: it has no {head}* weights")
    return backbone, own


def _renamed(key: str) -> str:
    for old, new in _RENAMED:
        if key.startswith(old):
            return new + key.removeprefix(old)
    raise ValueError(f"not a checkpoint of Qwen-VL: unknown weight {key!r}")


def rank_head(hidden_size: int) -> torch.nn.Module:
    """Hidden state to two numbers: hidden -> 1024 -> 16 -> 2, ReLU in between.

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
    folder: Path,
    model_type: str,
    backbone_state: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    device: str,
) -> Any:
    """Build the backbone that `config.json` describes and fill it, strictly; raises ValueError."""
    from transformers import AutoConfig
    from transformers.models.auto import MODEL_MAPPING

    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type != model_type:
        raise ValueError(f"{folder}/config.json is of {config.model_type!r}, not {model_type!r}")
    embeddings = backbone_state.get("language_model.embed_tokens.weight")
    if embeddings is None:
        raise ValueError("not a checkpoint of Qwen-VL: it has no token embeddings")
    # Upstream cut the table to the tokenizer's length when it added its tokens.
    config.text_config.vocab_size = embeddings.shape[0]
    model: Any = MODEL_MAPPING[type(config)]
    loaded: Any = model.from_pretrained(
        None, config=config, state_dict=backbone_state, dtype=dtype, output_loading_info=True
    )
    backbone, found = loaded
    wrong = sorted([*found["missing_keys"], *found["unexpected_keys"]])
    if wrong:
        raise ValueError(
            f"checkpoint and config.json disagree: {len(wrong)} weights missing or unknown, such"
            f" as {wrong[0]}"
        )
    return backbone.eval().to(device)


def filled(
    head: torch.nn.Module, state: Mapping[str, torch.Tensor], device: str
) -> torch.nn.Module:
    """A head with its weights, always float32; raises ValueError."""
    try:
        head.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"not this scorer's head: {' '.join(str(error).split())}") from error
    return head.eval().float().to(device)


def tokenizer(folder: Path, marks: Sequence[str], embeddings: int) -> Any:
    """Qwen-VL's tokenizer with the marks added, as upstream adds them; raises ValueError."""
    from transformers import AddedToken, AutoTokenizer

    found = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    found.add_tokens([AddedToken(mark, special=True, normalized=False) for mark in marks])
    last = found.convert_tokens_to_ids(marks[-1])
    if last >= embeddings:
        raise ValueError(
            f"tokenizer and checkpoint disagree: {marks[-1]} is token {last}, but the checkpoint"
            f" has {embeddings}"
        )
    for mark in (_IMAGE, _VIDEO):
        if len(found.encode(mark, add_special_tokens=False)) != 1:
            raise ValueError(f"not Qwen-VL's tokenizer: it has no {mark}")
    return found


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
