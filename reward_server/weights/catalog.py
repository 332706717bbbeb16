"""The weight files of the built-in scorers and their public sources.

`CATALOG` is the only place where a file is announced. A checksum stands here where its publisher
states one; for the others the first download records the checksum that the source itself sends.
"""

from __future__ import annotations

from dataclasses import dataclass

HUB = "https://huggingface.co"


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file of a set.

    Attributes:
        path: below the folder of the set, with '/' between folders.
        url: public source.
        sha256: hex digest as published; empty where the publisher states none.
    """

    path: str
    url: str
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class WeightSet:
    """What one scorer (or several that share a network) loads.

    Attributes:
        name: folder below the models directory, and the name on the command line.
        scorers: built-in scorers that need it.
        files: all of them are needed.
        license: as the publisher names it.
        size_gb: of all files together, rounded up (1e9 bytes).
    """

    name: str
    scorers: tuple[str, ...]
    files: tuple[WeightFile, ...]
    license: str
    size_gb: float


def hub_files(repository: str, revision: str, *paths: str) -> tuple[WeightFile, ...]:
    """Files of a model repository on the Hugging Face hub, at one revision."""
    return tuple(WeightFile(p, f"{HUB}/{repository}/resolve/{revision}/{p}") for p in paths)


_QWEN2_VL = ("config.json", "tokenizer.json", "tokenizer_config.json")
_DEQA = (
    *("config.json", "generation_config.json", "preprocessor_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "tokenizer.model"),
    *("configuration_mplug_owl2.py", "modeling_mplug_owl2.py", "modeling_llama2.py"),
    *("modeling_attn_mask_utils.py", "visual_encoder.py", "utils.py"),
    "model.safetensors.index.json",
    *(f"model-{shard:05d}-of-00004.safetensors" for shard in range(1, 5)),
)

CATALOG: dict[str, WeightSet] = {
    "deqa": WeightSet(
        name="deqa",
        scorers=("deqa",),
        files=hub_files("zhiyuanyou/DeQA-Score-Mix3", "main", *_DEQA),
        license="MIT (as its code repository says)",
        size_gb=17.0,
    ),
    "hpsv3": WeightSet(
        name="hpsv3",
        scorers=("hpsv3",),
        files=(
            *hub_files("MizzenAI/HPSv3", "main", "HPSv3.safetensors"),
            *hub_files("Qwen/Qwen2-VL-7B-Instruct", "main", *_QWEN2_VL),
        ),
        license="MIT (as its package says); Apache-2.0 (Qwen2-VL)",
        size_gb=17.0,
    ),
}
