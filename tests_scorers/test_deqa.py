"""DeQA: the definition, and loading a folder that brings its own network code.

The network of the test is ours, tiny, with the interface of the published one: it asks the hub for
its tokenizer under the published name while it is constructed, and is called with `input_ids` (-200
where the picture goes) and `images`. It runs with transformers 4.46 and 5.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_deqa
import torch
from PIL import Image
from tiny_deqa import CODE, SIDE
from transformers import PreTrainedTokenizerFast

from reward_client.errors import Code
from reward_server.scorers import deqa_maths
from reward_server.scorers.base import ItemFailure, ItemScore, Outcome, ScoreInput, SelfTestError
from reward_server.scorers.deqa import DeqaScorer, code_digest
from reward_server.weights.store import MissingWeights

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_deqa.write(tmp_path_factory.mktemp("DeQA-Score-Mix3"))


@pytest.fixture(scope="module")
def scorer(published: Path) -> DeqaScorer:
    return _loaded(published)


def _loaded(folder: Path, dtype: str = "float32") -> DeqaScorer:
    scorer = DeqaScorer(str(folder), dtype, True, code_digest(folder))
    scorer.load("cpu")
    return scorer


def _reference(folder: Path, image: np.ndarray) -> float:
    """The published formula, step by step, on the same weights."""
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    height, width = image.shape[:2]
    side = max(height, width)
    square = Image.new("RGB", (side, side), tuple(int(x * 255) for x in MEAN))
    square.paste(Image.fromarray(image), ((side - width) // 2, (side - height) // 2))
    small = square.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = (np.asarray(small, dtype=np.float64) / 255 - MEAN) / STD
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    before, after = deqa_maths.PROMPT.split("<|image|>")
    ids = tokenizer(before)["input_ids"], tokenizer(after)["input_ids"][1:]
    see = state["see.weight"].double() @ torch.from_numpy(pixels.mean((0, 1)))
    states = [state["embed.weight"][i].double() for i in (*ids[0], *ids[1])]
    summed = torch.stack(states).sum(0) + see + state["see.bias"].double()
    logits = state["lm_head.weight"].double() @ torch.tanh(summed)
    levels = [logits[tokenizer.convert_tokens_to_ids(word)] for word in deqa_maths.LEVELS]
    return float(torch.softmax(torch.stack(levels), 0) @ torch.tensor([5.0, 4, 3, 2, 1]).double())


def _images() -> list[np.ndarray]:
    rng = np.random.default_rng(2)
    sizes = [(40, 40), (64, 31), (17, 200), (1, 1)]
    return [rng.integers(0, 1 + 60 * (i + 1), (*s, 3), dtype=np.uint8) for i, s in enumerate(sizes)]


def _raw(outcomes: list[Outcome]) -> list[float]:
    failures = [o.message for o in outcomes if isinstance(o, ItemFailure)]
    assert not failures
    return [o.raw for o in outcomes if isinstance(o, ItemScore)]


def test_scores_equal_the_published_formula(scorer: DeqaScorer, published: Path) -> None:
    items = [ScoreInput("", (image,)) for image in _images()]
    expected = [_reference(published, image) for image in _images()]
    assert np.ptp(expected) > 0.01, "the pictures must differ"
    found = _raw(scorer.score(items, details=False))
    # Upstream's resize on float or on uint8 differs by less than half a level of 255.
    assert found == pytest.approx(expected, rel=1e-4)
    alone = [_raw(scorer.score([item], details=False))[0] for item in items]
    assert found == pytest.approx(alone, rel=1e-6)
    assert _raw(scorer.score(items[::-1], details=False)) == pytest.approx(found[::-1], rel=1e-6)
    half = _loaded(published, "bfloat16")
    assert _raw(half.score(items, details=False)) == pytest.approx(expected, rel=1e-2)
    assert half.fingerprint() != scorer.fingerprint()


def test_details_scale_and_failures(scorer: DeqaScorer) -> None:
    image = _images()[0]
    none, good = scorer.score([ScoreInput("", ()), ScoreInput("", (image,))], details=True)
    assert isinstance(none, ItemFailure)
    assert none.code is Code.INVALID_ARGUMENT
    assert isinstance(good, ItemScore)
    assert good.details is not None
    assert list(good.details) == list(deqa_maths.LEVELS)
    assert sum(good.details.values()) == pytest.approx(1.0, abs=1e-6)
    assert scorer.spec.transforms["fifth"](good) == pytest.approx(good.raw / 5)
    assert scorer.score([], details=False) == []


def test_code_runs_only_where_it_is_allowed_and_unchanged(published: Path, tmp_path: Path) -> None:
    digest = code_digest(published)
    refusals: list[tuple[dict[str, Any], str]] = [
        ({}, f"trust_remote_code = true and code_sha256 = '{digest}'"),
        ({"trust_remote_code": True}, f"code_sha256 is not set.*'{digest}'"),
        ({"code_sha256": digest}, "trust_remote_code = true"),
        ({"trust_remote_code": True, "code_sha256": "0" * 64}, "is of other code"),
    ]
    for options, says in refusals:
        with pytest.raises(PermissionError, match=says) as caught:
            DeqaScorer(str(published), **options).load("cpu")
        assert "\n" not in str(caught.value)
    trap = tmp_path / "ran"
    for file in published.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "modeling_tiny.py").write_text(f"open({str(trap)!r}, 'w')\n{CODE}")
    with pytest.raises(PermissionError, match="is of other code"):
        DeqaScorer(str(tmp_path), trust_remote_code=True, code_sha256=digest).load("cpu")
    assert not trap.exists()
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"]["AutoConfig"] = "someone/else--modeling_tiny.TinyConfig"
    (tmp_path / "config.json").write_text(json.dumps(config))
    changed = code_digest(tmp_path)
    with pytest.raises(PermissionError, match="code from another repository"):
        DeqaScorer(str(tmp_path), trust_remote_code=True, code_sha256=changed).load("cpu")
    assert not trap.exists()


def test_missing_files_and_golden(
    scorer: DeqaScorer, published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingWeights, match=r"config\.json"):
        DeqaScorer(str(tmp_path / "nowhere")).load("cpu")
    for file in published.iterdir():
        if file.is_file() and file.suffix != ".bin":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    bare = DeqaScorer(str(tmp_path), "float32", True, code_digest(tmp_path))
    with pytest.raises(MissingWeights, match=r"neither \.bin nor"):
        bare.load("cpu")
    with pytest.raises(ValueError, match="dtype 'int8'"):
        DeqaScorer(dtype="int8")
    monkeypatch.setenv("REWARD_MODELS_DIR", str(tmp_path))
    with pytest.raises(SelfTestError, match="no golden scores for weights"):
        scorer.self_test()


def test_loading_leaves_the_working_directory_alone(scorer: DeqaScorer) -> None:
    assert scorer.weights_digest()
    assert Path.cwd().joinpath("pyproject.toml").is_file()


@pytest.mark.parametrize("size", [(3, 3), (5, 2), (2, 5), (1, 4), (40, 39)])
def test_padding_equals_upstreams_paste(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    side = max(size)
    expected = Image.new("RGB", (side, side), tuple(int(x * 255) for x in MEAN))
    expected.paste(Image.fromarray(image), ((side - size[1]) // 2, (side - size[0]) // 2))
    np.testing.assert_array_equal(deqa_maths.padded_to_square(image, MEAN), np.asarray(expected))


def test_prompt_and_level_tokens() -> None:
    table = {word: [1, 10 + i] for i, word in enumerate(deqa_maths.LEVELS)}
    before, after = deqa_maths.PROMPT.split("<|image|>")
    table |= {before: [1, 5, 6], after: [1, 7]}
    assert before == "USER: How would you rate the quality of this image?\n"
    assert after == "\nASSISTANT: The quality of the image is"
    assert deqa_maths.prompt_ids(table.__getitem__, 1) == [1, 5, 6, -200, 7]
    assert deqa_maths.level_ids(table.__getitem__, 1) == [10, 11, 12, 13, 14]
    with pytest.raises(ValueError, match="not DeQA's tokenizer"):
        deqa_maths.level_ids(lambda _: [1, 9], 1)


def test_expected_level_is_between_bad_and_excellent() -> None:
    sure = torch.eye(5) * 1e4
    found = deqa_maths.expected_level(deqa_maths.level_probabilities(sure))
    assert found.tolist() == [5.0, 4.0, 3.0, 2.0, 1.0]
    even = deqa_maths.expected_level(deqa_maths.level_probabilities(torch.zeros(2, 5).half()))
    assert even.tolist() == pytest.approx([3.0, 3.0])
