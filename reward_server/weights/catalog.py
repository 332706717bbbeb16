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
        hub: repository and commit on the Hugging Face hub; None for other sources.
    """

    path: str
    url: str
    sha256: str = ""
    hub: tuple[str, str] | None = None


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
    """Files of a model repository on the Hugging Face hub, at one commit."""
    return tuple(
        WeightFile(p, f"{HUB}/{repository}/resolve/{revision}/{p}", hub=(repository, revision))
        for p in paths
    )


_QWEN_VL = ("config.json", "tokenizer.json", "tokenizer_config.json")
_DEQA_FILES = (
    *("config.json", "generation_config.json", "preprocessor_config.json"),
    *("tokenizer_config.json", "special_tokens_map.json", "tokenizer.model"),
    *("configuration_mplug_owl2.py", "modeling_mplug_owl2.py", "modeling_llama2.py"),
    *("modeling_attn_mask_utils.py", "visual_encoder.py", "utils.py"),
    "model.safetensors.index.json",
    *(f"model-{shard:05d}-of-00004.safetensors" for shard in range(1, 5)),
)

# The published code asks the hub for its own tokenizer under this name.
DEQA_REPOSITORY = "zhiyuanyou/DeQA-Score-Mix3"
_DEQA = WeightSet(
    name="deqa",
    scorers=("deqa",),
    files=hub_files(DEQA_REPOSITORY, "246e219b7e3bc9b5dff5269c1a8564087aefca3f", *_DEQA_FILES),
    license="MIT (as its code repository says)",
    size_gb=17.0,
)
_HPSV3 = WeightSet(
    name="hpsv3",
    scorers=("hpsv3",),
    files=(
        *hub_files(
            "MizzenAI/HPSv3", "4f81e3e09edd82fe3c5f636444c721b592a735ca", "HPSv3.safetensors"
        ),
        *hub_files(
            "Qwen/Qwen2-VL-7B-Instruct", "eed13092ef92e448dd6875b2a00151bd3f7db0ac", *_QWEN_VL
        ),
    ),
    license="MIT (as its package says); Apache-2.0 (Qwen2-VL)",
    size_gb=17.0,
)
_EDITREWARD = WeightSet(
    name="editreward",
    scorers=("editreward",),
    files=(
        *hub_files(
            "TIGER-Lab/EditReward-Qwen2.5-VL-7B",
            "51b92ab5246295637c4ab3bd71e54a26f0a5189d",
            "model.safetensors",
        ),
        *hub_files(
            "Qwen/Qwen2.5-VL-7B-Instruct", "cc594898137f460bfe9f0759e9844b3ce807cfb5", *_QWEN_VL
        ),
    ),
    license="MIT (as its code repository says); Apache-2.0 (Qwen2.5-VL)",
    size_gb=17.0,
)
_VIDEOALIGN = WeightSet(
    name="videoalign",
    scorers=("videoalign",),
    files=(
        *hub_files(
            "KlingTeam/VideoReward",
            "b8e421fe21aec3dde5f61fdd1dc44e1d603b9727",
            "checkpoint-11352/model.pth",
            "model_config.json",
        ),
        *hub_files(
            "Qwen/Qwen2-VL-2B-Instruct", "895c3a49bc3fa70a340399125c650a463535e71c", *_QWEN_VL
        ),
    ),
    license="Apache-2.0",
    size_gb=5.1,
)
_CLIP_L = WeightSet(
    name="clip-vit-large-patch14",
    scorers=("aesthetic", "clipscore", "image_similarity"),
    files=hub_files(
        "openai/clip-vit-large-patch14",
        "32bd64288804d66eefd0ccbe215aa642df71cc41",
        "config.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "model.safetensors",
    ),
    license="MIT",
    size_gb=1.8,
)
_DINOV2 = WeightSet(
    name="dinov2-base",
    scorers=("dino_similarity",),
    files=hub_files(
        "facebook/dinov2-base",
        "f9e44c814b77203eaa57a6bdbbd535f21ede1415",
        "config.json",
        "model.safetensors",
    ),
    license="Apache-2.0",
    size_gb=0.4,
)
_AESTHETIC_HEAD = WeightSet(
    name="aesthetic-head",
    scorers=("aesthetic",),
    files=(
        WeightFile(
            "sac+logos+ava1-l14-linearMSE.pth",
            "https://github.com/christophschuhmann/improved-aesthetic-predictor/raw/main/"
            "sac%2Blogos%2Bava1-l14-linearMSE.pth",
        ),
    ),
    license="Apache-2.0",
    size_gb=0.1,
)
_PICKSCORE = WeightSet(
    name="pickscore",
    scorers=("pickscore",),
    files=(
        *hub_files(
            "yuvalkirstain/PickScore_v1",
            "a4e4367c6dfa7288a00c550414478f865b875800",
            "config.json",
            "model.safetensors",
        ),
        *hub_files(
            "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
            "1c2b8495b28150b8a4922ee1c8edee224c284c0c",
            "preprocessor_config.json",
            "tokenizer.json",
        ),
    ),
    license="unstated (PickScore_v1), MIT (processor)",
    size_gb=4.0,
)
_HPS_REPOSITORY = ("xswu/HPSv2", "697403c78157020a1ae59d23f111aa58ced35b0a")
_HPSV2 = WeightSet(
    name="hpsv2",
    scorers=("hpsv2",),
    files=hub_files(*_HPS_REPOSITORY, "HPS_v2_compressed.pt"),
    license="Apache-2.0",
    size_gb=4.0,
)
_HPSV2_1 = WeightSet(
    name="hpsv2.1",
    scorers=("hpsv2.1",),
    files=hub_files(*_HPS_REPOSITORY, "HPS_v2.1_compressed.pt"),
    license="Apache-2.0",
    size_gb=4.0,
)
_IMAGEREWARD = WeightSet(
    name="imagereward",
    scorers=("imagereward",),
    files=(
        *hub_files(
            "THUDM/ImageReward",
            "5736be03b2652728fb87788c9797b0570450ab72",
            "ImageReward.pt",
            "med_config.json",
        ),
        *hub_files(
            "google-bert/bert-base-uncased",
            "86b5e0934494bd15c9632b12f734a8a67f723594",
            "tokenizer.json",
        ),
    ),
    license="Apache-2.0",
    size_gb=1.8,
)

_MASK2FORMER = "mask2former_swin-s-p4-w7-224_lsj_8x2_50e_coco"
_GENEVAL_MASK2FORMER = WeightSet(
    name="geneval-mask2former",
    scorers=("geneval",),
    files=(
        # The publisher states the first eight digits of the sha256, in the name; the scorer
        # compares them when it loads the file.
        WeightFile(
            f"{_MASK2FORMER}_20220504_001756-743b7d99.pth",
            "https://download.openmmlab.com/mmdetection/v2.0/mask2former/"
            f"{_MASK2FORMER}/{_MASK2FORMER}_20220504_001756-743b7d99.pth",
        ),
    ),
    license="Apache-2.0",
    size_gb=0.3,
)
_VIT_L_14_SHA256 = "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"
_OPENAI_CLIP = WeightSet(
    name="openai-clip-vit-l-14",
    scorers=("geneval",),
    files=(
        WeightFile(
            "ViT-L-14.pt",
            f"https://openaipublic.azureedge.net/clip/models/{_VIT_L_14_SHA256}/ViT-L-14.pt",
            _VIT_L_14_SHA256,
        ),
    ),
    license="MIT",
    size_gb=1.0,
)

CATALOG: dict[str, WeightSet] = {
    weights.name: weights
    for weights in (
        _AESTHETIC_HEAD,
        _CLIP_L,
        _DEQA,
        _DINOV2,
        _EDITREWARD,
        _GENEVAL_MASK2FORMER,
        _HPSV2,
        _HPSV2_1,
        _HPSV3,
        _IMAGEREWARD,
        _OPENAI_CLIP,
        _PICKSCORE,
        _VIDEOALIGN,
    )
}
