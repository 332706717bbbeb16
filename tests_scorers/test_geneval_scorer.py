"""The `geneval` scorer with its real detector, on tiny weights in the official formats."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from geneval_tiny import (
    CHECKPOINT,
    clip_network,
    confident_checkpoint,
    pictures,
    save_openai_archive,
)

from reward_client.errors import Code
from reward_server.scorers import golden
from reward_server.scorers.base import ItemFailure, ItemScore, ScoreInput, SelfTestError
from reward_server.scorers.geneval import coco
from reward_server.scorers.geneval.coco_detector import CocoDetector
from reward_server.scorers.geneval.scorer import GenEvalScorer


@pytest.fixture(scope="module")
def clip_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_openai_archive(clip_network(), tmp_path_factory.mktemp("clip") / "ViT-L-14.pt")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return confident_checkpoint(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def scorer(clip_file: Path, checkpoint: Path) -> GenEvalScorer:
    return loaded(checkpoint, clip_file)


def loaded(checkpoint: Path, clip_file: Path, **options: str) -> GenEvalScorer:
    scorer = GenEvalScorer(
        "mask2former",
        str(checkpoint),
        str(clip_file),
        **options,  # pyright: ignore[reportArgumentType]
    )
    scorer.load("cpu")
    return scorer


@pytest.fixture(scope="module")
def seen(scorer: GenEvalScorer) -> tuple[str, str]:
    """A class of which the network sees exactly one object in the last picture, and its colour."""
    detector = scorer._detector
    assert isinstance(detector, CocoDetector)
    found = [d for d in detector.detect([pictures()[2]], [coco.CLASSES])[0] if d.score > 0.3]
    labels = [d.label for d in found]
    alone = next(d for d in found if labels.count(d.label) == 1)
    assert alone.color is not None
    return alone.label, alone.color


def row(label: str, color: str | None = None, count: int = 1) -> dict:
    clause = {"class": label, "count": count} | ({"color": color} if color else {})
    return {"tag": "colors", "include": [clause]}


def test_scores_real_detections_and_explains_them(
    scorer: GenEvalScorer, seen: tuple[str, str]
) -> None:
    picture, (label, color) = pictures()[2], seen
    other = next(c for c in coco.COLORS if c != color)
    rows = [row(label), row(label, color), row(label, other), row(label, None, 2)]
    outcomes = scorer.score([ScoreInput("", (picture,), spec=r) for r in rows], details=True)
    assert all(isinstance(outcome, ItemScore) for outcome in outcomes)
    scores = [outcome for outcome in outcomes if isinstance(outcome, ItemScore)]
    assert [s.components["strict"] for s in scores] == [1, 1, 0, 0]
    assert [s.raw for s in scores] == [1, 1, 0.5, 0.5]
    details = scores[2].details
    assert details is not None
    assert f"found 1 {color}" in details["reasons"][0]
    shown = next(o for o in details["objects"] if o["class"] == label)
    assert shown["color"] == color
    assert 0.1 <= shown["measured"]["color_share"] <= 1
    json.dumps(details, allow_nan=False)


def test_a_batch_is_its_items_one_by_one_in_order(
    scorer: GenEvalScorer, seen: tuple[str, str]
) -> None:
    label, color = seen
    items = [
        ScoreInput("", (picture,), spec=row(label, color if odd else None, 1 + odd))
        for odd, picture in enumerate([pictures()[0], pictures()[2]])
    ]
    together = scorer.score(items, details=False)
    assert together == [scorer.score([item], details=False)[0] for item in items]


BAD_ROWS = [
    (row("mouse"), ["include[0].class", "did you mean 'computer mouse'", "80 in all"]),
    (row("keyboard"), ["did you mean 'computer keyboard'"]),
    (row("Dog"), ["did you mean 'dog'"]),
    (row("dog", "grey"), ["include[0].color", "did you mean 'green'", "white"]),
    (row("dog", None, 0), ["include[0].count", "expected 1 to"]),
    ({"include": [{"class": "dog", "count": 1}]}, ["spec.tag: missing"]),
    (
        {
            "tag": "position",
            "include": [{"class": "dog", "count": 1, "position": ["left of", 1]}],
        },
        ["include[0].position[1]", "not an earlier clause"],
    ),
    (None, ["spec: missing"]),
]


def test_bad_rows_fail_alone(scorer: GenEvalScorer) -> None:
    picture = (np.zeros((16, 16, 3), np.uint8),)
    good = ScoreInput("", picture, spec=row("dog"))
    bad = [ScoreInput("", picture, spec=spec) for spec, _ in BAD_ROWS]
    *failed, scored = scorer.score([*bad, good], details=False)
    for outcome, (_, parts) in zip(failed, BAD_ROWS, strict=True):
        assert isinstance(outcome, ItemFailure)
        assert outcome.code is Code.INVALID_ARGUMENT
        assert all(part in outcome.message for part in parts), outcome.message
    assert isinstance(scored, ItemScore)


def test_self_test_compares_with_what_was_recorded(
    clip_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARD_MODELS_DIR", str(tmp_path))
    plain = loaded(CHECKPOINT, clip_file)
    found = golden.measure(plain)
    assert {"covered", *coco.COLORS} == set(found.components)
    entry = json.loads(json.dumps(asdict(found)))
    (tmp_path / "goldens.json").write_text(json.dumps({"geneval": {plain.weights_digest(): entry}}))
    plain.self_test()
    entry["components"]["red"][0] += 0.5
    (tmp_path / "goldens.json").write_text(json.dumps({"geneval": {plain.weights_digest(): entry}}))
    with pytest.raises(SelfTestError, match="red"):
        plain.self_test()


def test_fingerprint_changes_with_whatever_changes_a_score(
    scorer: GenEvalScorer, checkpoint: Path, clip_file: Path, tmp_path: Path
) -> None:
    swapped = loaded(checkpoint, clip_file, channel_order="flowgrpo")
    other_clip = clip_network()
    other_clip.visual.proj.data.mul_(2)
    variants = [
        scorer,
        swapped,
        loaded(CHECKPOINT, clip_file),
        loaded(checkpoint, save_openai_archive(other_clip, tmp_path / "other.pt")),
        loaded(checkpoint, clip_file, dtype="bfloat16"),
        loaded(checkpoint, clip_file, pipeline="mmdet3"),
    ]
    assert len({variant.fingerprint() for variant in variants}) == len(variants)
    assert loaded(checkpoint, clip_file).fingerprint() == scorer.fingerprint()
    # One golden entry per digest: a variant that is meant to change the scores has its own.
    assert swapped.weights_digest() != scorer.weights_digest()


def test_folders_work_like_files_and_missing_weights_say_what_to_do(
    checkpoint: Path, clip_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REWARD_MODELS_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="models pull geneval-mask2former"):
        GenEvalScorer("mask2former").load("cpu")
    with pytest.raises(FileNotFoundError, match="models pull openai-clip-vit-l-14"):
        GenEvalScorer("mask2former", weights=str(checkpoint)).load("cpu")
    scorer = GenEvalScorer("mask2former", str(checkpoint), str(clip_file.parent))
    scorer.load("cpu")
    assert len(scorer.weights_digest()) == 64
