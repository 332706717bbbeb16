"""The vocabulary and the options of the `geneval` scorer, without torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from reward_client import geneval_spec as spec
from reward_server.scorers.geneval import coco
from reward_server.scorers.geneval.scorer import GenEvalScorer
from reward_server.weights.catalog import CATALOG

# From the benchmark's 553 rows (djghosh13/geneval, evaluation_metadata.jsonl), one of each kind.
OFFICIAL_ROWS: list[dict[str, Any]] = [
    {"tag": "single_object", "include": [{"class": "bench", "count": 1}]},
    {
        "tag": "counting",
        "include": [{"class": "clock", "count": 2}],
        "exclude": [{"class": "clock", "count": 3}],
    },
    {"tag": "colors", "include": [{"class": "tv remote", "count": 1, "color": "pink"}]},
    {
        "tag": "position",
        "include": [
            {"class": "potted plant", "count": 1},
            {"class": "computer mouse", "count": 1, "position": ["left of", 0]},
        ],
    },
    {
        "tag": "color_attr",
        "include": [
            {"class": "hair drier", "count": 1, "color": "orange"},
            {"class": "computer keyboard", "count": 1, "color": "white"},
        ],
    },
]


def test_vocabulary_is_the_benchmarks() -> None:
    assert len(coco.CLASSES) == len(set(coco.CLASSES)) == 80
    assert len(coco.COLORS) == 10
    assert coco.CLASSES[:3] == ("person", "bicycle", "car")
    # Where the benchmark's names differ from COCO's; the index is the network's label.
    renamed = {64: "computer mouse", 65: "tv remote", 66: "computer keyboard"}
    assert {index: coco.CLASSES[index] for index in renamed} == renamed
    assert coco.CLASSES[79] == "toothbrush"
    assert all(name == name.strip() != "" for name in coco.CLASSES)


@pytest.mark.parametrize("row", OFFICIAL_ROWS, ids=lambda row: row["tag"])
def test_official_rows_are_understood(row: dict[str, Any]) -> None:
    task = spec.parse({**row, "prompt": "a photo"}, coco.CLASSES, coco.COLORS)
    assert [clause.name for clause in task.include] == [c["class"] for c in row["include"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"detector": "yolo"}, "unknown detector 'yolo'; known: shapes, mask2former, mmdet"),
        ({"dtype": "int8", "detector": "mask2former"}, "dtype 'int8'"),
        ({"channel_order": "bgr", "detector": "mask2former"}, "official, flowgrpo"),
        ({"pipeline": "new", "detector": "mask2former"}, "mmdet2, mmdet3"),
        ({"weights": "x.pth"}, "detector 'shapes' has no option 'weights'"),
        ({"detector": "mmdet", "pipeline": "mmdet3"}, "'mmdet' has no option 'pipeline'"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        GenEvalScorer(**options)
    assert "\n" not in str(caught.value)


def test_construction_imports_no_torch() -> None:
    code = (
        "import sys; from reward_server.scorers.geneval.scorer import GenEvalScorer;"
        "[GenEvalScorer(d) for d in ('shapes', 'mask2former', 'mmdet')];"
        "sys.exit(any(m in sys.modules for m in ('torch', 'open_clip', 'transformers', 'mmdet')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_detector_without_weights_has_nothing_to_bless() -> None:
    scorer = GenEvalScorer("shapes")
    scorer.load("cpu")
    with pytest.raises(LookupError, match="nothing to bless"):
        scorer.golden_subject()


def test_missing_mmdet_is_named() -> None:
    scorer = GenEvalScorer("mmdet")
    with pytest.raises(LookupError, match="needs the package"):
        scorer.load("cpu")


def test_weight_sets_are_announced() -> None:
    names = {file.path: file for name in CATALOG for file in CATALOG[name].files}
    clip = names["ViT-L-14.pt"]
    assert clip.sha256 in clip.url
    assert "geneval" in CATALOG["geneval-mask2former"].scorers
