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
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from reward_server.scorers import deqa_maths, golden, tools, torch_tools
from reward_server.scorers.base import ItemScore, Outcome, ScoreInput, ScorerSpec, UInt8Image, raw
from reward_server.weights import store

# The published code asks the hub for its own tokenizer under this name.
REPOSITORY = "zhiyuanyou/DeQA-Score-Mix3"
REQUIRED = ("config.json", "preprocessor_config.json", "tokenizer_config.json")
_WEIGHT_ENDINGS = (".bin", ".safetensors")


def fifth(score: ItemScore) -> float:
    """Raw / 5, so that 1 to 5 becomes 0.2 to 1 (yifan123/reward-server)."""
    return score.raw / 5.0


class DeqaScorer:
    """Expected quality level, 1 (bad) to 5 (excellent).

    Args:
        weights: the folder of the model; empty: the set `deqa` of the models directory.
        dtype: one of `torch_tools.DTYPES`; published numbers are those of float16.
        trust_remote_code: allow the Python files in the folder to run.
        code_sha256: digest of these files, as the message says that refuses them without it.

    Raises:
        ValueError: an option is wrong.
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
        self._weights = weights
        self._dtype = torch_tools.check_dtype("deqa", dtype)
        self._trusted = trust_remote_code
        self._code_sha256 = code_sha256.strip().lower()
        tolerance = torch_tools.tolerance(dtype)
        self.golden_tolerance, self.company_tolerance = tolerance.recorded, tolerance.company
        self._device = "cpu"
        self._digest = ""
        self._model: Any = None
        self._processor: Any = None
        self._prompt: list[int] = []
        self._levels: list[int] = []
        self._facts: dict[str, str] = {}

    def load(self, device: str) -> None:
        """Check the folder, then run its code and load its weights; never asks the network.

        Raises:
            MissingWeights: a file is not there.
            PermissionError: its code may not run, or is not the code that was allowed; one line.
        """
        folder = store.require("deqa", self._weights, REQUIRED).resolve()
        code = code_digest(folder)
        self._check_trust(folder, code)
        _check_own_code(folder)
        weights = [path for path in folder.iterdir() if path.suffix in _WEIGHT_ENDINGS]
        if not weights:
            raise store.MissingWeights(
                f"no weights of deqa: {folder} holds neither .bin nor .safetensors files"
            )
        self._digest = store.digest_of(path for path in folder.iterdir() if path.is_file())
        # Both are read when transformers is imported: the folder is all there is.
        os.environ["HF_HUB_OFFLINE"] = os.environ["TRANSFORMERS_OFFLINE"] = "1"
        torch_tools.prepare_torchvision()
        import torch
        import transformers

        self._model = _model(folder, torch_tools.set_precision(self._dtype)).to(device).eval()
        tokenizer = _tokenizer(folder)
        self._processor = transformers.CLIPImageProcessor.from_pretrained(
            folder, local_files_only=True
        )

        def encode(text: str) -> list[int]:
            return list(tokenizer(text)["input_ids"])

        self._prompt = deqa_maths.prompt_ids(encode, tokenizer.bos_token_id)
        self._levels = deqa_maths.level_ids(encode, tokenizer.bos_token_id)
        self._device = device
        self._facts = {
            "dtype": self._dtype,
            "code": code,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "mean": str(tuple(self._processor.image_mean)),
        }

    def weights_digest(self) -> str:
        """Digest over all files of the folder."""
        return self._digest

    def fingerprint(self) -> str:
        """Digest over this code, the folder's code and weights, types and library versions."""
        facts = {"version": self.spec.version, "weights": self._digest, **self._facts}
        return tools.digest([deqa_maths, sys.modules[__name__]], facts)

    def golden_items(self) -> list[ScoreInput]:
        """Four drawings; one is not square."""
        flat, *others = golden.pictures()
        return [ScoreInput("", (picture,)) for picture in (flat[:160], *others)]

    def self_test(self) -> None:
        """Compare with the blessed scores.

        Raises:
            SelfTestError: see `golden.self_test`.
        """
        golden.self_test(self)

    def score(self, batch: Sequence[ScoreInput], *, details: bool) -> list[Outcome]:
        """Score all pictures in one forward pass; the prompt plays no part."""
        outcomes: list[Outcome | None] = [tools.image_problem(item, "deqa") for item in batch]
        todo = [index for index, problem in enumerate(outcomes) if problem is None]
        if todo:
            rows = self._probabilities([batch[index].images[0] for index in todo])
            values = deqa_maths.expected_level(rows)
            for index, value, row in zip(todo, values.tolist(), rows.tolist(), strict=True):
                shown = dict(zip(deqa_maths.LEVELS, row, strict=True)) if details else None
                outcomes[index] = ItemScore(value, details=shown)
        return [outcome for outcome in outcomes if outcome is not None]

    def _probabilities(self, images: Sequence[UInt8Image]) -> Any:
        import torch

        mean = self._processor.image_mean
        squares = [deqa_maths.padded_to_square(np.asarray(image), mean) for image in images]
        pixels = self._processor.preprocess(
            [Image.fromarray(square) for square in squares], return_tensors="pt"
        )["pixel_values"]
        ids = torch.tensor(self._prompt, device=self._device).repeat(len(images), 1)
        with torch.inference_mode():
            answer = self._model(
                input_ids=ids,
                images=torch_tools.to_device(pixels, self._device).to(self._model.dtype),
            )
            return deqa_maths.level_probabilities(answer["logits"][:, -1, self._levels])

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
    """Digest over the paths and contents of all Python files below a folder.

    Raises:
        OSError: one cannot be read.
    """
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
            REPOSITORY,
            trust_remote_code=True,
            local_files_only=True,
            attn_implementation="eager",
            **typed,
        )


def _tokenizer(folder: Path) -> Any:
    import transformers

    return transformers.AutoTokenizer.from_pretrained(folder, use_fast=False, local_files_only=True)


@contextlib.contextmanager
def _found_under_its_own_name(folder: Path) -> Iterator[None]:
    """Make `REPOSITORY` a path to the folder: a relative path comes before the hub's names.

    The published code loads a tokenizer by this name while it is constructed. The working directory
    belongs to the whole process; a worker holds one scorer and loads it before anything else.
    """
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as place:
        link = Path(place) / REPOSITORY
        link.parent.mkdir(parents=True)
        link.symlink_to(folder, target_is_directory=True)
        os.chdir(place)
        try:
            yield
        finally:
            os.chdir(before)
