"""HPSv3 on a tiny network in the published file format, against transformers' own pipeline."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_hpsv3
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Qwen2Tokenizer, Qwen2VLConfig, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from reward_client.errors import Code
from reward_server.scorers.base import ItemFailure, ItemScore, Outcome, ScoreInput, SelfTestError
from reward_server.scorers.hpsv3 import network, pixels, template
from reward_server.scorers.hpsv3.scorer import FILES, HpsV3Scorer, groups
from reward_server.weights.store import MissingWeights

# The chat template of Qwen/Qwen2-VL-7B-Instruct, without its branch for videos.
CHAT = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>"
    "system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}<|vision_start|>"
    "<|image_pad|><|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% endif %}"
)
# SHA-256 of `INSTRUCTION` + `prompt_with_special_token` as MizzenAI/HPSv3 publishes them.
PUBLISHED_TEMPLATE = "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c"


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hpsv3.write(tmp_path_factory.mktemp("hpsv3"))


@pytest.fixture(scope="module")
def scorer(official: Path) -> HpsV3Scorer:
    scorer = HpsV3Scorer(weights=str(official), dtype="float32")
    scorer.load("cpu")
    return scorer


def _items() -> list[ScoreInput]:
    rng = np.random.default_rng(1)
    sizes = [(64, 64), (300, 200), (1, 1), (31, 500), (777, 333)]
    prompts = ["a cat", "", 'a sign "STOP" 🐈 {text_prompt} {0}', "word " * 300, "ünï\ncode"]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    return [ScoreInput(p, (image,)) for p, image in zip(prompts, images, strict=True)]


def _smart_resize(height: int, width: int) -> tuple[int, int]:
    """qwen_vl_utils' rule, as published, for min_pixels = max_pixels = 256 * 28 * 28."""
    area = 256 * 28 * 28
    h, w = max(28, round(height / 28) * 28), max(28, round(width / 28) * 28)
    if h * w > area:
        beta = (height * width / area) ** 0.5
        h, w = int(height / beta // 28) * 28, int(width / beta // 28) * 28
    elif h * w < area:
        beta = (area / (height * width)) ** 0.5
        h, w = -int(-height * beta // 28) * 28, -int(-width * beta // 28) * 28
    return h, w


def _reference(folder: Path) -> Callable[[ScoreInput], tuple[float, float]]:
    """Upstream's pipeline, one item at a time, from transformers' processors and full model."""
    import jinja2

    state = load_file(folder / "HPSv3.safetensors")
    tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
    config: Any = Qwen2VLConfig.from_pretrained(folder)
    config.text_config.vocab_size = len(tokenizer)
    model = Qwen2VLForConditionalGeneration(config).eval()
    new = {
        key.replace("visual.", "model.visual.")
        if key.startswith("visual.")
        else key.replace("model.", "model.language_model.", 1): value
        for key, value in state.items()
        if not key.startswith("rm_head.")
    }
    model.load_state_dict(new, strict=True)
    processor = Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=12845056)

    def score(item: ScoreInput) -> tuple[float, float]:
        text = template.INSTRUCTION.replace("{text_prompt}", "{}").format(item.prompt)
        message = {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": text + template.QUESTION}],
        }
        said = jinja2.Template(CHAT, keep_trailing_newline=True).render(
            messages=[message], add_generation_prompt=True
        )
        height, width = _smart_resize(*item.images[0].shape[:2])
        resized = Image.fromarray(item.images[0]).resize((width, height), Image.Resampling.BICUBIC)
        seen = processor(images=[resized], return_tensors="pt")
        places = int(seen["image_grid_thw"].prod()) // 4
        ids = tokenizer(said.replace("<|image_pad|>", "<|image_pad|>" * places))["input_ids"]
        row = torch.tensor([ids])
        with torch.no_grad():
            hidden = model.model(
                input_ids=row,
                attention_mask=torch.ones_like(row),
                pixel_values=seen["pixel_values"],
                image_grid_thw=seen["image_grid_thw"],
                mm_token_type_ids=(row == config.image_token_id).int(),
            ).last_hidden_state[0]
        at = ids.index(tokenizer.convert_tokens_to_ids("<|Reward|>"))
        values = hidden[at].double()
        for layer in (0, 3, 5):
            weight, bias = (
                state[f"rm_head.{layer}.{part}"].double() for part in ("weight", "bias")
            )
            values = weight @ values + bias
            values = values.clamp(min=0) if layer < 5 else values
        return float(values[0]), float(values[1])

    return score


def _pairs(outcomes: list[Outcome]) -> np.ndarray:
    failures = [o.message for o in outcomes if isinstance(o, ItemFailure)]
    assert not failures
    return np.array([(o.raw, o.components["sigma"]) for o in outcomes if isinstance(o, ItemScore)])


def test_template_is_the_published_one() -> None:
    text = template.INSTRUCTION + template.QUESTION
    assert hashlib.sha256(text.encode()).hexdigest() == PUBLISHED_TEMPLATE


def test_scores_equal_transformers_own_pipeline(scorer: HpsV3Scorer, official: Path) -> None:
    items = _items()
    reference = _reference(official)
    expected = np.array([reference(item) for item in items])
    found = _pairs(scorer.score(items, details=False))
    spread = np.ptp(expected, axis=0)
    assert (spread > 1e-3 * np.abs(expected).max(axis=0)).all(), "the items must differ"
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * spread.min())


def test_batch_equals_singles_whatever_the_padding_and_order(
    scorer: HpsV3Scorer, official: Path
) -> None:
    items = _items()
    together = _pairs(scorer.score(items, details=False))
    alone = np.concatenate([_pairs(scorer.score([item], details=False)) for item in items])
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
    backwards = _pairs(scorer.score(items[::-1], details=False))[::-1]
    np.testing.assert_allclose(backwards, together, rtol=1e-4, atol=1e-5)
    small = HpsV3Scorer(weights=str(official), dtype="float32", batch_tokens=1)
    small.load("cpu")
    np.testing.assert_allclose(_pairs(small.score(items, details=False)), alone, rtol=1e-4)


def test_bfloat16_stays_close_and_new_key_names_load(
    scorer: HpsV3Scorer, official: Path, tmp_path: Path
) -> None:
    items = _items()[:3]
    state = load_file(official / "HPSv3.safetensors")
    moved = {
        f"model.{key}" if key.startswith("visual.") else key.replace("model.", _NEW, 1): value
        for key, value in state.items()
    }
    for name in FILES[1:]:
        (tmp_path / name).write_bytes((official / name).read_bytes())
    save_file(moved, tmp_path / "HPSv3.safetensors")
    half = HpsV3Scorer(weights=str(tmp_path), dtype="bfloat16")
    half.load("cpu")
    exact = _pairs(scorer.score(items, details=False))
    np.testing.assert_allclose(
        _pairs(half.score(items, details=False)), exact, rtol=1e-2, atol=1e-2
    )
    assert half.fingerprint() != scorer.fingerprint()
    assert half.weights_digest() != scorer.weights_digest()


_NEW = "model.language_model."


def test_one_bad_item_does_not_cost_the_others(scorer: HpsV3Scorer) -> None:
    image = np.zeros((20, 20, 3), np.uint8)
    good = ScoreInput("a cat", (image,))
    bad = [
        ScoreInput("a <|Reward|> cat", (image,)),
        ScoreInput("a <|image_pad|> cat", (image,)),
        ScoreInput("a cat", (np.zeros((2, 401, 3), np.uint8),)),
        ScoreInput("a cat", ()),
        ScoreInput("xyz 7 " * 20_000, (image,)),
    ]
    outcomes = scorer.score([bad[0], good, *bad[1:], good], details=True)
    assert outcomes[1] == outcomes[-1]
    assert isinstance(outcomes[1], ItemScore)
    assert outcomes[1].details == {"tokens": outcomes[1].details["tokens"], "patches": [32, 32]}  # type: ignore[index]  # asserted by the comparison
    fields = ["prompt", "prompt", "images[0]", "images", "prompt"]
    failed = [outcomes[0], *outcomes[2:-1]]
    for outcome, field in zip(failed, fields, strict=True):
        assert isinstance(outcome, ItemFailure)
        assert outcome.code is Code.INVALID_ARGUMENT
        assert outcome.message.startswith(field)
        assert len(outcome.message) < 200


def test_a_very_large_picture_is_resized_like_any_other(scorer: HpsV3Scorer) -> None:
    image = np.zeros((4096, 4096, 3), np.uint8)
    image[:2048] = 255
    small = np.zeros((448, 448, 3), np.uint8)
    small[:224] = 255
    found = _pairs(
        scorer.score([ScoreInput("x", (image,)), ScoreInput("x", (small,))], details=False)
    )
    np.testing.assert_allclose(found[0], found[1], rtol=0.05)


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (1, 200), (4096, 4096), (35, 7000), (333, 777)])
def test_sizes_follow_the_published_rule(size: tuple[int, int]) -> None:
    for height, width in (size, size[::-1]):
        assert pixels.target_size_px(height, width) == _smart_resize(height, width)


def test_pixels_equal_transformers_processor() -> None:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (448, 448, 3), dtype=np.uint8)
    processor = Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=12845056)
    expected = processor(images=[Image.fromarray(image)], return_tensors="pt")["pixel_values"]
    cut, grid = pixels.patches(image)
    assert (grid, pixels.tokens_of([grid])) == ((32, 32), [256])
    torch.testing.assert_close(pixels.pixel_values(torch.from_numpy(cut)), expected)


def test_groups_hold_everything_once_within_the_budget() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(1, 100, rng.integers(0, 30)).tolist()
        budget = int(rng.integers(1, 400))
        found = groups(lengths, budget)
        assert sorted(i for group in found for i in group) == list(range(len(lengths)))
        for group in found:
            assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget


def test_files_that_do_not_fit_are_refused(official: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match=r"no weights of hpsv3.*HPSv3\.safetensors"):
        HpsV3Scorer(weights=str(tmp_path)).load("cpu")
    state = load_file(official / "HPSv3.safetensors")
    for name in FILES[1:]:
        (tmp_path / name).write_bytes((official / name).read_bytes())
    lacking = dict(state)
    del lacking["model.norm.weight"]
    cases: dict[str, dict[str, torch.Tensor]] = {
        "1 weights missing or unknown": lacking,
        "unknown weight 'extra.weight'": {**state, "extra.weight": torch.zeros(1)},
        r"no rm_head\.\* weights": {k: v for k, v in state.items() if "rm_head" not in k},
        "not HPSv3's rank head": {**state, "rm_head.5.weight": torch.zeros(3, 16)},
        "tokenizer and checkpoint disagree": {
            **state,
            "model.embed_tokens.weight": state["model.embed_tokens.weight"][:-1],
        },
    }
    for says, wrong in cases.items():
        save_file({k: v.clone() for k, v in wrong.items()}, tmp_path / "HPSv3.safetensors")
        with pytest.raises(ValueError, match=says) as caught:
            HpsV3Scorer(weights=str(tmp_path)).load("cpu")
        assert "\n" not in str(caught.value)


def test_options_golden_and_spec(
    scorer: HpsV3Scorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for options, says in (({"dtype": "int8"}, "dtype 'int8'"), ({"batch_tokens": 0}, "at least 1")):
        with pytest.raises(ValueError, match=says):
            HpsV3Scorer(**options)  # type: ignore[arg-type]  # wrong on purpose
    assert scorer.spec.transforms["verlomni"](ItemScore(12.5)) == 1.25
    monkeypatch.setenv("REWARD_MODELS_DIR", str(tmp_path))
    with pytest.raises(SelfTestError, match="no golden scores for weights"):
        scorer.self_test()
    assert network.rank_head(8)(torch.zeros(3, 8)).shape == (3, 2)
