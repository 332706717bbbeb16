"""The reward models on Qwen-VL, tiny and in the published formats, against upstream's pipelines."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
import tiny_qwen
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.transforms import InterpolationMode  # pyright: ignore[reportMissingImports]
from torchvision.transforms import functional as TF  # pyright: ignore[reportMissingImports]
from transformers import (
    AutoConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLForConditionalGeneration,
    Qwen2VLVideoProcessor,
)
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from reward_client.errors import Code
from reward_server.scorers import golden
from reward_server.scorers.base import ItemFailure, ItemScore, Outcome, ScoreInput, SelfTestError
from reward_server.scorers.qwen_vl import instructions, pixels
from reward_server.scorers.qwen_vl.editreward import EditRewardScorer
from reward_server.scorers.qwen_vl.hpsv3 import HpsV3Scorer
from reward_server.scorers.qwen_vl.network import groups
from reward_server.scorers.qwen_vl.videoalign import VideoAlignScorer, sampled
from reward_server.weights.store import MissingWeights

# The chat template of Qwen/Qwen2-VL-7B-Instruct and of Qwen2.5-VL, without its other branches.
CHAT = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>"
    "system\nYou are a helpful assistant.<|im_end|>\n{% endif %}<|im_start|>{{ message['role'] }}\n"
    "{% for content in message['content'] %}{% if content['type'] == 'image' %}<|vision_start|>"
    "<|image_pad|><|vision_end|>{% elif content['type'] == 'video' %}<|vision_start|><|video_pad|>"
    "<|vision_end|>{% elif 'text' in content %}{{ content['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% endif %}"
)
# SHA-256 of the texts as their projects publish them, with the question at the end.
PUBLISHED = {
    "HPSV3": "f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c",
    "EDIT_FOLLOWING": "b8c53a0a3b67db1cf63ad891679be423fbe01a06fa63cefe4851f747f8d82da2",
    "EDIT_QUALITY": "4583db70a7aba6038d80220b94bafc33755ece3389f3c1d3c24dd3ed847d9289",
    "VIDEO": "fdb6309bac618dd0c8b1b589d3a0970a974f7856eecbb355a190b2dce54af700",
}
QWEN_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
SCORERS: dict[str, Callable[..., Any]] = {
    "editreward": EditRewardScorer,
    "hpsv3": HpsV3Scorer,
    "videoalign": VideoAlignScorer,
}
NAMES = sorted(SCORERS)
SIZES = [(64, 64), (300, 200), (1, 1), (31, 500), (777, 333)]
PROMPTS = ["a cat", "", 'a sign "STOP" 🐈 {text_prompt} {0}', "word " * 300, "ünï\ncode"]
_MODEL = "model.language_model."


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("qwen")
    return {name: getattr(tiny_qwen, name)(folder / name) for name in NAMES}


@pytest.fixture(scope="module")
def scorers(official: dict[str, Path]) -> dict[str, Any]:
    return {name: made(name, official) for name in NAMES}


@pytest.fixture(scope="module")
def scorer(scorers: dict[str, Any]) -> Any:
    return scorers["hpsv3"]


def made(name: str, official: dict[str, Path], **options: Any) -> Any:
    scorer = SCORERS[name](weights=str(official[name]), **options)
    scorer.load("cpu")
    return scorer


def _items(name: str = "hpsv3") -> list[ScoreInput]:
    rng = np.random.default_rng(1)
    found = []
    for index, (size, prompt) in enumerate(zip(SIZES, PROMPTS, strict=True)):
        frames = (2, 5, 4, 17, 40)[index] if name == "videoalign" else 1
        drawn = rng.integers(0, 256, (frames + 1, *size, 3), dtype=np.uint8)
        found.append(ScoreInput(prompt, tuple(drawn[1:]), (drawn[0],)))
    return found


def _columns(outcomes: list[Outcome]) -> np.ndarray:
    failures = [o.message for o in outcomes if isinstance(o, ItemFailure)]
    assert not failures
    scores = [o for o in outcomes if isinstance(o, ItemScore)]
    return np.array([[o.raw, *(o.components[k] for k in sorted(o.components))] for o in scores])


def _smart_resize(shape: Sequence[int], least: int, most: int) -> tuple[int, int]:
    """qwen_vl_utils' rule, as published."""
    height, width = shape
    h, w = max(28, round(height / 28) * 28), max(28, round(width / 28) * 28)
    if h * w > most:
        beta = (height * width / most) ** 0.5
        h, w = int(height / beta // 28) * 28, int(width / beta // 28) * 28
    elif h * w < least:
        beta = (least / (height * width)) ** 0.5
        h, w = -int(-height * beta // 28) * 28, -int(-width * beta // 28) * 28
    return h, w


def _details(outcome: Outcome) -> Any:
    assert isinstance(outcome, ItemScore)
    return outcome.details


class _Upstream:
    """Upstream's model and processors, one message at a time, with the positions it really uses.

    It computes the embeddings itself and calls the decoder without ids and grids. So transformers
    cannot know where pictures are, and counts the positions of a text (4.45.2: `cache_position`;
    4.57: the sum of the attention mask), in training as in inference.
    """

    def __init__(self, folder: Path, state: dict[str, torch.Tensor], marks: Sequence[str]) -> None:
        self.tokenizer = Qwen2Tokenizer.from_pretrained(folder)
        self.tokenizer.add_special_tokens({"additional_special_tokens": list(marks)})
        config: Any = AutoConfig.from_pretrained(folder)
        config.text_config.vocab_size = len(self.tokenizer)
        five = config.model_type == "qwen2_5_vl"
        built = Qwen2_5_VLForConditionalGeneration if five else Qwen2VLForConditionalGeneration
        self.model: Any = built(config).eval()
        self.model.load_state_dict(state, strict=True)
        self.config, self.marks = config, self.tokenizer.convert_tokens_to_ids(list(marks))

    def states(self, text: str, kind: str, seen: Any, *, mrope: bool = False) -> torch.Tensor:
        """(marks, hidden) of a message with its pictures or its video before the text."""
        pixel, grid = seen[f"pixel_values{'_videos' * (kind == 'video')}"], seen[f"{kind}_grid_thw"]
        content = [{"type": kind} for _ in grid] + [{"type": "text", "text": text}]
        said = jinja2.Template(CHAT, keep_trailing_newline=True).render(
            messages=[{"role": "user", "content": content}], add_generation_prompt=True
        )
        pieces = said.split(mark := f"<|{kind}_pad|>")
        said = pieces[0] + "".join(
            mark * (int(thw.prod()) // 4) + piece
            for thw, piece in zip(grid, pieces[1:], strict=True)
        )
        row = torch.tensor([self.tokenizer(said)["input_ids"]])
        place = getattr(self.config, f"{kind}_token_id")
        if mrope:
            other = self.model.model(
                input_ids=row,
                pixel_values=pixel,
                image_grid_thw=grid,
                mm_token_type_ids=(row == place).int(),
            )
            return other.last_hidden_state[torch.isin(row, torch.tensor(self.marks))]
        embedded = self.model.get_input_embeddings()(row)
        features = self.model.model.visual(pixel, grid_thw=grid).pooler_output
        embedded[row == place] = features
        hidden = self.model.model.language_model(
            inputs_embeds=embedded,
            attention_mask=torch.ones_like(row),
            position_ids=torch.arange(row.shape[1]).expand(3, 1, -1),
        ).last_hidden_state
        return hidden[torch.isin(row, torch.tensor(self.marks))]


def _pictures(*images: np.ndarray) -> Any:
    area = 256 * 28 * 28
    resized = [
        Image.fromarray(image).resize(
            list(_smart_resize(image.shape[:2], area, area)[::-1]), Image.Resampling.BICUBIC
        )
        for image in images
    ]
    processor = Qwen2VLImageProcessorPil(min_pixels=3136, max_pixels=12845056)
    return processor(images=resized, return_tensors="pt")


def _video(frames: Sequence[np.ndarray]) -> Any:
    size = _smart_resize(frames[0].shape[:2], 128 * 28 * 28, 130 * 28 * 28)
    stacked = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
    floats = TF.resize(stacked.float(), list(size), InterpolationMode.BICUBIC, antialias=True)
    processor = Qwen2VLVideoProcessor(do_resize=False, do_sample_frames=False)
    return processor(videos=[floats.clamp(0, 255).round().byte()], return_tensors="pt")


def _now(state: dict[str, torch.Tensor], drop: str) -> dict[str, torch.Tensor]:
    """Today's key names, without the heads."""
    found = {}
    for key, value in state.items():
        if not key.startswith(drop):
            new = f"model.{key}" if key.startswith("visual.") else key
            moved = new.startswith("model.") and not new.startswith(("model.visual.", _MODEL))
            found[new.replace("model.", _MODEL, 1) if moved else new] = value
    return found


def _ranked(state: dict[str, torch.Tensor], prefix: str, hidden: torch.Tensor) -> tuple[float, ...]:
    values = hidden.double()
    for layer in (0, 3, 5):
        weight, bias = (state[f"{prefix}{layer}.{part}"].double() for part in ("weight", "bias"))
        values = weight @ values + bias
        values = values.clamp(min=0) if layer < 5 else values
    return float(values[0]), float(values[1])


@torch.no_grad()
def _hpsv3(folder: Path, items: Sequence[ScoreInput], *, mrope: bool = False) -> list[list[float]]:
    state = load_file(folder / "HPSv3.safetensors")
    upstream = _Upstream(folder, _now(state, "rm_head."), ["<|Reward|>"])
    found = []
    for item in items:
        text = instructions.HPSV3.replace("{text_prompt}", "{}").format(item.prompt)
        hidden = upstream.states(text, "image", _pictures(item.images[0]), mrope=mrope)
        found.append(list(_ranked(state, "rm_head.", hidden[0])))
    return found


@torch.no_grad()
def _editreward(folder: Path, items: Sequence[ScoreInput]) -> list[list[float]]:
    """The pooled first column, then what the heads say about following and quality."""
    state = load_file(folder / "model.safetensors")
    upstream = _Upstream(folder, _now(state, "rm_heads."), ["<|Reward|>"])
    found = []
    for item in items:
        seen = _pictures(item.references[0], item.images[0])
        logits = []
        for index, text in enumerate((instructions.EDIT_FOLLOWING, instructions.EDIT_QUALITY)):
            hidden = upstream.states(text.replace("{text_prompt}", item.prompt), "image", seen)
            logits.append(_ranked(state, f"rm_heads.head_{index}.", hidden[0]))
        pooled = torch.tensor(logits, dtype=torch.float64).mean(dim=0)
        found.append([float(pooled[0]), logits[0][0], logits[1][0]])
    return found


@torch.no_grad()
def _videoalign(folder: Path, items: Sequence[ScoreInput]) -> list[list[float]]:
    """The sum, then MQ, TA and VQ; low-rank products as PEFT computes them, beside the weights."""
    stored = torch.load(folder / "checkpoint-11352" / "model.pth")
    state = {key.removeprefix("base_model.model."): value for key, value in stored.items()}
    plain = {k.replace(".base_layer.", "."): v for k, v in state.items() if ".lora_" not in k}
    upstream = _Upstream(folder, _now(plain, "rm_head."), instructions.VIDEO_TOKENS)
    modules = dict(upstream.model.named_modules())
    for key, low in state.items():
        if key.endswith(".lora_A.default.weight"):
            stem, high = key.removesuffix(".lora_A.default.weight"), key.replace("_A.", "_B.")
            _add(modules[stem.replace("model.", _MODEL, 1)], low, state[high])
    constants = tiny_qwen.VIDEO_CONFIG["inference_config"]
    found = []
    for item in items:
        count = len(item.images)
        most = min(768, count) // 2 * 2
        seen = round(min(max(count / 16 * 2, 4), most) / 2) * 2
        places = torch.linspace(0, count - 1, seen).round().long().tolist()
        text = instructions.VIDEO.replace("{text_prompt}", item.prompt)
        hidden = upstream.states(text, "video", _video([item.images[i] for i in places]))
        logits = (hidden @ state["rm_head.weight"].T).view(-1).tolist()
        axes = {
            axis: (value - constants[f"{axis}_mean"]) / constants[f"{axis}_std"]
            for axis, value in zip(("VQ", "MQ", "TA"), logits, strict=True)
        }
        found.append([sum(axes.values()), axes["MQ"], axes["TA"], axes["VQ"]])
    return found


def _add(module: Any, low: torch.Tensor, high: torch.Tensor) -> None:
    scale = tiny_qwen.ALPHA / tiny_qwen.RANK
    module.register_forward_hook(lambda _, given, out: out + scale * (given[0] @ low.T @ high.T))


REFERENCES: dict[str, Callable[[Path, Sequence[ScoreInput]], list[list[float]]]] = {
    "editreward": _editreward,
    "hpsv3": _hpsv3,
    "videoalign": _videoalign,
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_texts_are_the_published_ones(name: str) -> None:
    text = getattr(instructions, name)
    assert hashlib.sha256(text.encode()).hexdigest() == PUBLISHED[name]


@pytest.mark.parametrize("name", NAMES)
def test_scores_equal_upstreams_pipeline(
    name: str, scorers: dict[str, Any], official: dict[str, Path]
) -> None:
    items = _items(name)
    expected = np.array(REFERENCES[name](official[name], items))
    found = _columns(scorers[name].score(items, details=False))
    spread = np.ptp(expected, axis=0)
    assert (spread > 1e-3 * np.abs(expected).max(axis=0)).all(), "the items must differ"
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * spread.min())


def test_positions_are_those_of_a_text_and_that_matters(
    scorer: Any, official: dict[str, Path]
) -> None:
    items = _items()[:2]
    found = _columns(scorer.score(items, details=False))
    other = np.array(_hpsv3(official["hpsv3"], items, mrope=True))
    assert (np.abs(found - other) > 1e-2 * np.ptp(found, axis=0)).all()


def test_editreward_reads_means_and_no_uncertainty(
    scorers: dict[str, Any], official: dict[str, Path], tmp_path: Path
) -> None:
    items = _items("editreward")[:2]
    before = scorers["editreward"].score(items, details=True)
    state = load_file(official["editreward"] / "model.safetensors")
    for index in range(2):  # a log sigma that is 1 larger, and a quality that is 3 larger
        state[f"rm_heads.head_{index}.5.bias"] += torch.tensor([3.0 * index, 1.0])
    for name in QWEN_FILES:
        shutil.copy(official["editreward"] / name, tmp_path)
    torch.save({"model": state}, tmp_path / "model.pth")  # the other form that upstream reads
    changed = EditRewardScorer(weights=str(tmp_path))
    changed.load("cpu")
    after = changed.score(items, details=True)
    shift = _columns(after) - _columns(before)
    np.testing.assert_allclose(shift, [[1.5, 0, 3]] * 2, atol=1e-4)
    for outcome, earlier in zip(after, before, strict=True):
        new, old = (_details(one)["log_sigma"] for one in (outcome, earlier))
        np.testing.assert_allclose(np.subtract(new, old), [1, 1], atol=1e-4)
    swapped = [ScoreInput(i.prompt, i.references, i.images) for i in items]
    found = _columns(scorers["editreward"].score(swapped, details=False))
    assert (np.abs(found - _columns(before)) > 1e-3).all(), "source and edit are not the same"


def test_hpsv3_of_videos_is_genrls(scorer: Any, official: dict[str, Path]) -> None:
    rng = np.random.default_rng(5)
    clips = [tuple(rng.integers(0, 256, (n, 40, 56, 3), dtype=np.uint8)) for n in (1, 4, 10)]
    clips[1] = (*clips[1][:3], rng.integers(0, 256, (70, 30, 3), dtype=np.uint8))
    items = [ScoreInput(f"video {index}", clip) for index, clip in enumerate(clips)]
    modes = {mode: made("hpsv3", official, frames=mode) for mode in ("general", "percentile")}
    for mode, best in (("general", False), ("percentile", True)):
        expected = []
        for item in items:
            caption = item.prompt if best else "A high-quality image"
            single = [ScoreInput(caption, (frame,)) for frame in item.images]
            frames = sorted(_columns(scorer.score(single, details=False))[:, 0], reverse=True)
            expected.append(np.mean(frames[: max(1, int(len(frames) * 0.3))] if best else frames))
        found = modes[mode].score(items, details=True)
        np.testing.assert_allclose([o.raw for o in found], expected, rtol=1e-4)
        assert [len(o.details["frames"]) for o in found] == [1, 4, 10]
        assert [o.details["counted"] for o in found] == ([1, 1, 3] if best else [1, 4, 10])
        golden.measure(modes[mode])
    assert modes["general"].spec.inputs == ("image",)
    digests = {scorer.weights_digest(), *(mode.weights_digest() for mode in modes.values())}
    assert len(digests) == 3
    silent = modes["general"].score([ScoreInput("<|Reward|>", clips[0])], details=False)
    assert isinstance(silent[0], ItemScore)  # the prompt plays no part
    refused = [ScoreInput("x", ()), ScoreInput("x", (clips[0][0], np.zeros((2, 401, 3), np.uint8)))]
    nothing, thin = modes["percentile"].score(refused, details=False)
    assert nothing.message == "images: hpsv3 scores one frame or more per item, got 0"
    assert thin.message.startswith("images[1]: 401x2 px")


@pytest.mark.parametrize("name", NAMES)
def test_batch_equals_singles_whatever_the_padding_and_order(
    name: str, scorers: dict[str, Any], official: dict[str, Path]
) -> None:
    items = _items(name)
    together = _columns(scorers[name].score(items, details=False))
    backwards = _columns(scorers[name].score(items[::-1], details=False))[::-1]
    np.testing.assert_allclose(backwards, together, rtol=1e-4, atol=1e-5)
    small = made(name, official, batch_tokens=1)  # every query in a pass of its own
    np.testing.assert_allclose(_columns(small.score(items, details=False)), together, rtol=1e-4)


def test_bfloat16_stays_close_and_new_key_names_load(
    scorer: Any, official: dict[str, Path], tmp_path: Path
) -> None:
    items = _items()[:3]
    state = load_file(official["hpsv3"] / "HPSv3.safetensors")
    moved = _now(state, "rm_head.") | {k: v for k, v in state.items() if "rm_head" in k}
    for name in QWEN_FILES:
        shutil.copy(official["hpsv3"] / name, tmp_path)
    save_file(moved, tmp_path / "HPSv3.safetensors")
    half = HpsV3Scorer(weights=str(tmp_path), dtype="bfloat16")
    half.load("cpu")
    exact = _columns(scorer.score(items, details=False))
    np.testing.assert_allclose(
        _columns(half.score(items, details=False)), exact, rtol=1e-2, atol=1e-2
    )
    assert half.fingerprint() != scorer.fingerprint()
    assert half.weights_digest() != scorer.weights_digest()


def test_one_bad_item_does_not_cost_the_others(scorers: dict[str, Any]) -> None:
    image, thin = np.zeros((20, 20, 3), np.uint8), np.zeros((2, 401, 3), np.uint8)
    pair, one, other = (image, image), (image,), (np.zeros((20, 30, 3), np.uint8),)
    bad: dict[str, list[tuple[ScoreInput, str]]] = {
        "hpsv3": [
            (ScoreInput("a <|Reward|> cat", one), "prompt: '<|Reward|>' is a control token"),
            (ScoreInput("a <|image_pad|> cat", one), "prompt: '<|image_pad|>'"),
            (ScoreInput("a cat", (thin,)), "images[0]: 401x2 px; hpsv3 takes sides"),
            (ScoreInput("a cat", ()), "images: hpsv3 scores exactly one image"),
            (ScoreInput("a cat", pair), "images: hpsv3 scores exactly one image per item, got 2"),
            (ScoreInput("xyz 7 " * 20_000, one), "prompt: "),
        ],
        "editreward": [
            (ScoreInput("a cat", one), "references: editreward compares with exactly one"),
            (ScoreInput("a cat", one, pair), "references: "),
            (ScoreInput("a cat", one, (thin,)), "references[0]: 401x2 px"),
            (ScoreInput("a cat", pair, one), "images: "),
            (ScoreInput("<|Reward|>", one, one), "prompt: "),
        ],
        "videoalign": [
            (ScoreInput("a cat", one), "images: videoalign scores the frames of a video, at least"),
            (ScoreInput("a cat", one + other), "images[1]: 30x20 px, images[0] 20x20 px"),
            (ScoreInput("a cat", (thin, thin)), "images[0]: 401x2 px"),
            (ScoreInput("<|VQ_reward|>", pair), "prompt: '<|VQ_reward|>' is a control token"),
        ],
    }
    for name, cases in bad.items():
        good = ScoreInput("a cat", pair if name == "videoalign" else one, one)
        items = [good, *(item for item, _ in cases), good]
        outcomes = scorers[name].score(items, details=True)
        assert outcomes[0] == outcomes[-1]
        assert isinstance(outcomes[0], ItemScore)
        json.dumps(outcomes[0].details)
        for outcome, (_, says) in zip(outcomes[1:-1], cases, strict=True):
            assert isinstance(outcome, ItemFailure)
            assert outcome.code is Code.INVALID_ARGUMENT
            assert outcome.message.startswith(says), outcome.message
            assert len(outcome.message) < 200


def test_a_very_large_picture_is_resized_like_any_other(scorer: Any) -> None:
    image = np.zeros((4096, 4096, 3), np.uint8)
    image[:2048] = 255
    small = np.zeros((448, 448, 3), np.uint8)
    small[:224] = 255
    found = _columns(
        scorer.score([ScoreInput("x", (image,)), ScoreInput("x", (small,))], details=False)
    )
    np.testing.assert_allclose(found[0], found[1], rtol=0.05)


@pytest.mark.parametrize("size", [(1, 1), (28, 28), (1, 200), (4096, 4096), (35, 7000), (333, 777)])
@pytest.mark.parametrize("bounds", [(256, 256), (128, 256)])
def test_sizes_follow_the_published_rule(size: tuple[int, int], bounds: tuple[int, int]) -> None:
    areas = bounds[0] * 28 * 28, bounds[1] * 28 * 28
    for height, width in (size, size[::-1]):
        found = pixels.target_size_px(height, width, *areas)
        assert found == _smart_resize((height, width), *areas)


def test_pixels_equal_transformers_processors() -> None:
    rng = np.random.default_rng(3)
    frames = rng.integers(0, 256, (6, 60, 90, 3), dtype=np.uint8)
    visual = pixels.still(frames[0])
    expected = _pictures(frames[0])
    assert visual.grid == tuple(expected["image_grid_thw"][0].tolist())
    values = pixels.pixel_values(torch.from_numpy(visual.patches()))
    torch.testing.assert_close(values, expected["pixel_values"])
    size = _smart_resize((60, 90), 128 * 28 * 28, 130 * 28 * 28)
    clip, expected = pixels.Visual(tuple(frames), size), _video(list(frames))
    assert clip.grid == tuple(expected["video_grid_thw"][0].tolist())
    values = pixels.pixel_values(torch.from_numpy(clip.patches()))
    torch.testing.assert_close(values, expected["pixel_values_videos"])


def test_frames_are_evenly_spaced_and_even_in_number() -> None:
    # 81 frames at 16 per second are 5.06 s: 10 frames of 2 per second.
    assert sampled(81, 16.0, 2.0) == [0, 9, 18, 27, 36, 44, 53, 62, 71, 80]
    assert sampled(81, 8.0, 2.0)[:3] == [0, 4, 8]
    assert [len(sampled(n, 16.0, 2.0)) for n in (2, 3, 4, 5, 33, 60)] == [2, 2, 4, 4, 4, 8]
    assert len(sampled(5000, 5.0, 2.0)) == 768


def test_groups_hold_everything_once_within_the_budget() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        lengths = rng.integers(1, 100, rng.integers(0, 30)).tolist()
        budget = int(rng.integers(1, 400))
        found = groups(lengths, budget)
        assert sorted(i for group in found for i in group) == list(range(len(lengths)))
        for group in found:
            assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= budget


def test_files_that_do_not_fit_are_refused(official: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(MissingWeights, match=r"no weights of hpsv3.*HPSv3\.safetensors"):
        HpsV3Scorer(weights=str(tmp_path)).load("cpu")
    state = load_file(official["hpsv3"] / "HPSv3.safetensors")
    for name in QWEN_FILES:
        shutil.copy(official["hpsv3"] / name, tmp_path)
    lacking = dict(state)
    del lacking["model.norm.weight"]
    cases: dict[str, dict[str, torch.Tensor]] = {
        "1 weights missing or unknown": lacking,
        "unknown weight 'extra.weight'": {**state, "extra.weight": torch.zeros(1)},
        r"no rm_head\.\* weights": {k: v for k, v in state.items() if "rm_head" not in k},
        "not this scorer's head": {**state, "rm_head.5.weight": torch.zeros(3, 16)},
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
    shutil.copy(official["editreward"] / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match=r"config.json is of 'qwen2_vl', not 'qwen2_5_vl'"):
        EditRewardScorer(weights=str(tmp_path)).load("cpu")


def test_videoalign_refuses_files_of_another_model(
    official: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "videoalign"
    shutil.copytree(official["videoalign"], folder)
    weights, config = folder / "checkpoint-11352" / "model.pth", folder / "model_config.json"
    state, said = torch.load(weights), tiny_qwen.VIDEO_CONFIG
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    states: dict[str, Any] = {
        "is no key of PEFT": {"visual.x": torch.zeros(1)},
        "q_proj lacks a low-rank factor": {
            k: v for k, v in state.items() if k != f"{stem}.lora_B.default.weight"
        },
        "2 outputs, not 1 or 3": {**state, "base_model.model.rm_head.weight": torch.zeros(2, 64)},
    }
    configs: dict[str, Any] = {
        "KeyError": {key: value for key, value in said.items() if key != "inference_config"},
        "sample_type is 'multi_pts', not 'uniform'": {
            **said,
            "data_config": {**said["data_config"], "sample_type": "multi_pts"},
        },
    }
    for says, wrong in (*states.items(), *configs.items()):
        torch.save(wrong if says in states else state, weights)
        config.write_text(json.dumps(wrong if says in configs else said), encoding="utf-8")
        with pytest.raises(ValueError, match=says):
            VideoAlignScorer(weights=str(folder)).load("cpu")


def test_options_golden_and_spec(
    scorers: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("hpsv3", {"dtype": "int8"}, "dtype 'int8'"),
        ("hpsv3", {"batch_tokens": 0}, "at least 1"),
        ("hpsv3", {"frames": "mean"}, "frames 'mean' is not one of '', 'general', 'percentile'"),
        ("videoalign", {"video_fps": 0.0}, "video_fps must be positive"),
    ]
    for name, options, says in wrong:
        with pytest.raises(ValueError, match=says):
            SCORERS[name](**options)
    assert scorers["hpsv3"].spec.transforms["verlomni"](ItemScore(12.5)) == 1.25
    monkeypatch.setenv("REWARD_MODELS_DIR", str(tmp_path))
    for name, scorer in scorers.items():
        golden.measure(scorer)
        with pytest.raises(SelfTestError, match=f"no golden scores for weights .* bless {name}`"):
            scorer.self_test()
