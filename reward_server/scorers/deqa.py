"""DeQA-Score (You et al. 2025, arXiv:2501.11561): picture quality by mPLUG-Owl2-7B.

The network's code is published beside its weights and belongs to transformers 4.36 to 4.46, so this
scorer runs in an environment of its own (`python = ...`). That code is executed only from a local
folder, only where the config allows it, and only as long as it is the reviewed code.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from reward_server.scorers import deqa_maths, tools, torch_tools
from reward_server.scorers.base import ItemFailure, ItemScore, ScoreInput, ScorerSpec, raw
from reward_server.scorers.network_scorer import NetworkScorer
from reward_server.weights import store
from reward_server.weights.catalog import DEQA_REPOSITORY

if TYPE_CHECKING:
    import torch

REQUIRED = ("config.json", "preprocessor_config.json", "tokenizer_config.json")
_WEIGHT_ENDINGS = (".bin", ".safetensors")


def fifth(score: ItemScore) -> float:
    """Raw / 5, so that 1 to 5 becomes 0.2 to 1 (yifan123/reward-server)."""
    return score.raw / 5.0


@dataclass(frozen=True, slots=True)
class Deqa:
    """The loaded network, its processor, and the token ids that put the question."""

    model: Any
    processor: Any
    prompt: list[int]
    levels: list[int]
    code: str

    def facts(self) -> Mapping[str, str]:
        import torch
        import transformers

        return {
            "dtype": str(self.model.dtype),
            "code": self.code,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "mean": str(tuple(self.processor.image_mean)),
        }


class DeqaScorer(NetworkScorer[Deqa]):
    """Expected quality level, 1 (bad) to 5 (excellent).

    Args:
        weights: the folder of the model; empty: the set `deqa` of the models directory.
        dtype: one of `torch_tools.DTYPES`; published numbers are those of float16.
        trust_remote_code: allow the Python files in the folder to run.
        code_sha256: digest of these files, as the message says that refuses them without it.
    """

    spec = ScorerSpec(
        name="deqa",
        version="mix3",
        inputs=("image",),
        transforms={"fifth": fifth, "raw": raw},
        default_transform="fifth",
        output_range=(0.2, 1.0),
    )

    def __init__(
        self,
        weights: str = "",
        dtype: str = "float32",
        trust_remote_code: bool = False,
        code_sha256: str = "",
    ) -> None:
        super().__init__(weights=weights, dtype=dtype, compile=False)
        self._trusted = trust_remote_code
        self._code_sha256 = code_sha256.strip().lower()

    def files(self) -> list[Path]:
        """All files of the folder, whose code may run.

        Raises:
            MissingWeights: a file is not there.
            PermissionError: its code may not run, or is not the code that was allowed; one line.
        """
        folder = self._folder()
        self._check_trust(folder, code_digest(folder))
        files = [path for path in folder.iterdir() if path.is_file()]
        if not any(path.suffix in _WEIGHT_ENDINGS for path in files):
            raise store.MissingWeights(
                f"no weights of deqa: {folder} holds neither .bin nor .safetensors files"
            )
        return files

    def open(self, device: str, dtype: torch.dtype) -> Deqa:
        """Run the folder's code and load its weights; never asks the network."""
        # Both are read when transformers is imported: the folder is all there is.
        os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
        import transformers

        folder = self._folder()
        model = _model(folder, dtype).to(device).eval()
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(
            folder, use_fast=False, local_files_only=True
        )
        processor = transformers.CLIPImageProcessor.from_pretrained(folder, local_files_only=True)

        def encode(text: str) -> list[int]:
            return list(tokenizer(text)["input_ids"])

        return Deqa(
            model,
            processor,
            deqa_maths.prompt_ids(encode, tokenizer.bos_token_id),
            deqa_maths.level_ids(encode, tokenizer.bos_token_id),
            code_digest(folder),
        )

    def modules(self) -> list[ModuleType]:
        return [deqa_maths]

    def problem(self, item: ScoreInput) -> ItemFailure | None:
        """Exactly one picture, of any shape."""
        return tools.image_problem(item, "deqa")

    def rows(self, items: Sequence[ScoreInput]) -> list[ItemScore]:
        """Score all pictures in one forward pass; the prompt plays no part."""
        import torch

        network, mean = self.network, self.network.processor.image_mean
        squares = [deqa_maths.padded_to_square(np.asarray(i.images[0]), mean) for i in items]
        pixels = network.processor.preprocess(
            [Image.fromarray(square) for square in squares], return_tensors="pt"
        )["pixel_values"]
        device = str(network.model.device)
        answer = network.model(
            input_ids=torch.tensor(network.prompt, device=device).repeat(len(items), 1),
            images=torch_tools.to_device(pixels, device).to(network.model.dtype),
        )
        levels = deqa_maths.level_probabilities(answer["logits"][:, -1, network.levels])
        values = deqa_maths.expected_level(levels)
        return [
            ItemScore(value, details=dict(zip(deqa_maths.LEVELS, row, strict=True)))
            for value, row in zip(values.tolist(), levels.tolist(), strict=True)
        ]

    def _folder(self) -> Path:
        folder = store.require("deqa", self._weights, REQUIRED).resolve()
        _check_own_code(folder)
        return folder

    def _check_trust(self, folder: Path, code: str) -> None:
        if not self._trusted:
            raise PermissionError(
                "deqa: its network comes as Python code beside the weights; to run it, read"
                f" {folder}/*.py and set trust_remote_code = true and code_sha256 = {code!r}"
            )
        if self._code_sha256 != code:
            found = "is not set" if not self._code_sha256 else "is of other code"
            raise PermissionError(
                f"deqa: code_sha256 {found}; read {folder}/*.py, whose digest is {code!r}"
            )


def code_digest(folder: Path) -> str:
    """Digest over the paths and contents of all Python files below a folder; raises OSError."""
    sha = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        sha.update(f"{path.relative_to(folder)}={store.sha256_of(path)}\n".encode())
    return sha.hexdigest()


def _check_own_code(folder: Path) -> None:
    """Code of another repository, named as "owner/name--module.Class", would escape the digest."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = str(config.get("auto_map", ""))
    if "--" in named:
        raise PermissionError(
            f"deqa: {folder / 'config.json'} takes code from another repository: {named}"
        )


def _model(folder: Path, dtype: Any) -> Any:
    import transformers

    # The argument was renamed when 5.0 came; each name is unknown to the other side.
    major = int(transformers.__version__.split(".")[0])
    typed: dict[str, Any] = {"dtype" if major >= 5 else "torch_dtype": dtype}
    with _found_under_its_own_name(folder):
        return transformers.AutoModelForCausalLM.from_pretrained(
            DEQA_REPOSITORY,
            trust_remote_code=True,
            local_files_only=True,
            attn_implementation="eager",
            **typed,
        )


@contextlib.contextmanager
def _found_under_its_own_name(folder: Path) -> Iterator[None]:
    """Make `DEQA_REPOSITORY` a path to the folder: a relative path comes before the hub's names.

    The published code loads a tokenizer by this name while it is constructed. The working directory
    belongs to the whole process; a worker holds one scorer and loads it before anything else.
    """
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as place:
        link = Path(place) / DEQA_REPOSITORY
        link.parent.mkdir(parents=True)
        link.symlink_to(folder, target_is_directory=True)
        os.chdir(place)
        try:
            yield
        finally:
            os.chdir(before)
