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


CATALOG: dict[str, WeightSet] = {
    "geneval-mask2former": WeightSet(
        name="geneval-mask2former",
        scorers=("geneval",),
        files=(
            # The publisher states the first eight digits of the sha256, in the name; the scorer
            # compares them when it loads the file.
            WeightFile(
                "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth",
                "https://download.openmmlab.com/mmdetection/v2.0/mask2former/"
                "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco/"
                "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco_20220504_001756-743b7d99.pth",
            ),
        ),
        license="Apache-2.0",
        size_gb=0.28,
    ),
    "openai-clip-vit-l-14": WeightSet(
        name="openai-clip-vit-l-14",
        scorers=("geneval",),
        files=(
            WeightFile(
                "ViT-L-14.pt",
                "https://openaipublic.azureedge.net/clip/models/"
                "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
                "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
            ),
        ),
        license="MIT",
        size_gb=0.94,
    ),
}
