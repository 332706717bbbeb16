"""The preference scorers on tiny checkpoints in the official formats, against plain references."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import preference_cases as cases
import pytest
import tiny_checkpoints
import torch
from preference_cases import REFERENCES, scorer, shared

from reward_client.errors import Code
from reward_server.scorers import golden, golden_file, load_scorer_class, torch_tools
from reward_server.scorers.base import ItemFailure, ItemScore, ScoreInput, SelfTestError
from reward_server.weights import store

NAMES = sorted(REFERENCES)
PROMPTS = (
    "",
    "a red circle on a white background",
    "colourful noise",
    "a red circle on a white background",
    "word " * 200,
    "an emoji \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 and Zürich, 東京",
    "'single' \"double\" `back` don't",
    "a sign that says “typographic” ‘quotes’ «here» &amp; „there“",
)
SHAPES = ((40, 40), (32, 32), (1, 1), (33, 47), (64, 35), (7, 300), (31, 32), (200, 150))


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoints.models(tmp_path_factory.mktemp("models"))


@pytest.fixture(autouse=True)
def models_dir(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv(store.ENV_MODELS_DIR, str(models))
    yield models
    (models / "goldens.json").unlink(missing_ok=True)


def picture(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def items() -> list[ScoreInput]:
    found = []
    for seed, (prompt, shape) in enumerate(zip(PROMPTS, SHAPES, strict=True)):
        pictures = picture(*shape, seed), picture(*SHAPES[-1 - seed], 100 + seed)
        found.append(ScoreInput(prompt, pictures[:1], pictures[1:]))
    return found


def unloaded(name: str, **options: str) -> Any:
    made: Any = load_scorer_class(name)
    return made(**options)


def raws(outcomes: list[Any]) -> np.ndarray:
    assert all(isinstance(outcome, ItemScore) for outcome in outcomes), outcomes
    return np.array([outcome.raw for outcome in outcomes])


def worst(found: np.ndarray, expected: Any) -> float:
    expected = np.asarray(expected)
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_published_formula(name: str, models: Path) -> None:
    expected = REFERENCES[name](models, items())
    found = raws(shared(name).score(items(), details=False))
    assert worst(found, expected) < 1e-4
    assert np.ptp(expected) > 1e-2 * np.abs(expected).max()  # the comparison can see a difference


@pytest.mark.parametrize(("dtype", "allowed"), [("bfloat16", 1e-2), ("float16", 5e-3)])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_stays_close(name: str, dtype: str, allowed: float, models: Path) -> None:
    found = raws(scorer(name, dtype=dtype).score(items(), details=False))
    assert worst(found, REFERENCES[name](models, items())) < allowed


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_items_one_by_one_in_order(name: str) -> None:
    made, batch = shared(name), items()
    together = raws(made.score(batch, details=False))
    alone = np.concatenate([raws(made.score([item], details=False)) for item in batch])
    turned = raws(made.score(batch[::-1], details=True))[::-1]
    assert worst(together, alone) < 1e-5
    assert worst(together, turned) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_bad_items_fail_alone_and_say_what_is_wrong(name: str) -> None:
    good = items()[1]
    thin = picture(1, 65, 0)
    bad = [
        (ScoreInput("", (), good.references), "images: .* exactly one image per item, got 0"),
        (ScoreInput("", (*good.images, *good.images), good.references), "got 2"),
        (ScoreInput("", (thin,), good.references), r"images\[0\]: 65x1 px; .* at most 64 times"),
    ]
    if name in ("dino_similarity", "image_similarity"):
        bad += [
            (ScoreInput("", good.images), "references: .* exactly one reference .* got 0"),
            (ScoreInput("", good.images, (thin,)), r"references\[0\]: 65x1 px"),
        ]
    made = shared(name)
    outcomes = made.score([good, *(item for item, _ in bad), good], details=False)
    assert (
        worst(raws(outcomes[:: len(bad) + 1]), raws(made.score([good, good], details=False))) == 0
    )
    for outcome, (_, says) in zip(outcomes[1:-1], bad, strict=True):
        assert isinstance(outcome, ItemFailure)
        assert outcome.code is Code.INVALID_ARGUMENT
        assert not outcome.retryable
        assert re.search(says, outcome.message), outcome.message
    assert made.score([], details=False) == []


# A mask of dino_similarity, and the patches of 16x16 that it touches (top, bottom, left, right).
MASKS: list[tuple[Any, list[tuple[int, int, int, int]]]] = [
    ([], []),
    ([[0.25, 0.5, 0.5, 0.75]], [(8, 12, 4, 8)]),
    ([[0.26, 0.51, 0.3, 0.52], [0, 0, 1, 0.01]], [(8, 9, 4, 5), (0, 1, 0, 16)]),
    (["0000", "0010", "0001"], [(5, 11, 8, 12), (10, 16, 12, 16)]),  # a cell is 4 x 5.33 patches
]


def test_a_mask_leaves_the_patches_that_no_part_of_it_touches(models: Path) -> None:
    pair = (picture(48, 96, 1),), (picture(48, 96, 2),)
    specs = [{"mask": mask} for mask, _ in MASKS]
    batch = [ScoreInput("", *pair, spec) for spec in (*specs, {"something": "else"}, None)]
    found = raws(shared("dino_similarity").score(batch, details=True))
    whole, *patches = cases.dino_cosines(models, batch[:1])[0].tolist()
    expected = []
    for _, touched in MASKS:
        free = np.ones((16, 16), dtype=bool)
        for top, bottom, left, right in touched:
            free[top:bottom, left:right] = False
        expected.append(np.array(patches)[free.ravel()].mean())
    np.testing.assert_allclose(found, [*expected, whole, whole], atol=2e-6)
    assert len({round(value, 5) for value in expected}) == len(MASKS)


def test_bad_masks_fail_alone() -> None:
    pair = (picture(48, 96, 1),), (picture(48, 96, 2),)
    bad = {
        "mask.png": "'mask.png' is neither a list of boxes nor of rows",
        ((0.5, 0.5, 0.4, 0.6),): r"\(0.5, 0.5, 0.4, 0.6\) is not a box",
        ((10, 10, 40, 60),): "of fractions",
        ((0, 0, float("nan"), 1),): "of fractions",
        ("0010", "001"): "'001' is not a row of 4 times 0 or 1",
        ("0020",): "'0020' is not a row",
        ((0, 0, 1, 1),): "leaves none of 16x16 patches",
    }
    items = [ScoreInput("", *pair, {"mask": mask}) for mask in bad]
    other = ScoreInput("", pair[0], (picture(48, 95, 2),), {"mask": []})
    good = ScoreInput("", *pair)
    outcomes = shared("dino_similarity").score([good, *items, other, good], details=False)
    assert outcomes[0] == outcomes[-1]
    for outcome, says in zip(outcomes[1:-2], bad.values(), strict=True):
        assert isinstance(outcome, ItemFailure)
        assert outcome.code is Code.INVALID_ARGUMENT
        assert re.search(f"^spec.mask: .*{says}", outcome.message), outcome.message
    assert "95x48 px, the image 96x48 px; with a mask" in outcomes[-2].message


@pytest.mark.parametrize("name", ["clipscore", "hpsv2"])
def test_a_picture_of_4096_px(name: str, models: Path) -> None:
    square = np.broadcast_to(picture(1, 4096, 0), (4096, 4096, 3))
    batch = [ScoreInput("noise", (square,))]
    assert (
        worst(raws(shared(name).score(batch, details=False)), REFERENCES[name](models, batch))
        < 1e-4
    )


def test_each_distinct_prompt_is_encoded_once() -> None:
    made, seen = scorer("pickscore"), []
    made.network._tokenizer = _Counting(made.network._tokenizer, seen)
    made.score(items(), details=False)
    assert seen == [len(set(PROMPTS))]


class _Counting:
    def __init__(self, tokenizer: Any, seen: list[int]) -> None:
        self._tokenizer, self._seen = tokenizer, seen

    def encode_batch(self, texts: list[str]) -> Any:
        self._seen.append(len(texts))
        return self._tokenizer.encode_batch(texts)


def test_transforms_are_those_of_the_projects() -> None:
    score = ItemScore(20.8, {"cosine": 0.208})
    pick, clip = (load_scorer_class(name).spec.transforms for name in ("pickscore", "clipscore"))
    assert {name: round(f(score), 9) for name, f in pick.items()} == {
        "raw": 20.8,
        "cosine": 0.208,
        "div26": 0.8,
        "div100": 0.208,
        "minus18_div8": 0.35,
    }
    found = {name: round(f(score), 6) for name, f in clip.items()}
    assert found == {"raw": 20.8, "cosine": 0.208, "div30": 0.693333, "div100": 0.208}


def test_resizing_of_flow_grpo_and_of_older_torchvision(models: Path) -> None:
    forked = raws(scorer("clipscore", resize="flow_grpo").score(items(), details=False))
    assert worst(forked, cases.clipscore(models, items(), cases.fork_pixels)) < 1e-4
    assert worst(forked, cases.clipscore(models, items())) > 1e-3
    aliased = raws(scorer("hpsv2", antialias=False).score(items(), details=False))
    assert worst(aliased, cases.hpsv2(models, items(), antialias=False)) < 1e-4
    assert worst(aliased, cases.hpsv2(models, items())) > 1e-3


def test_older_repositories_load(tmp_path: Path, models: Path) -> None:
    # pytorch_model.bin, and the end token 2 of configs written before transformers 4.31.
    folder = tmp_path / "old"
    tiny_checkpoints.clip(folder, "quick_gelu", seed=1, safetensors=False, eos=2)
    found = raws(scorer("clipscore", weights=str(folder)).score(items(), details=False))
    assert worst(found, cases.clipscore(models, items())) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_missing_weights_are_one_line_that_says_what_to_do(name: str, tmp_path: Path) -> None:
    made = unloaded(name, weights=str(tmp_path))
    with pytest.raises(store.MissingWeights, match="check the option weights") as caught:
        made.load("cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_unpulled_weights_name_the_command(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(store.ENV_MODELS_DIR, str(tmp_path))
    with pytest.raises(store.MissingWeights, match="reward-server models pull"):
        load_scorer_class(name)().load("cpu")


@pytest.mark.parametrize("name", NAMES)
def test_wrong_options_are_one_line(name: str) -> None:
    with pytest.raises(
        ValueError, match=f"^{name}: dtype 'half' is not one of float32, "
    ) as caught:
        unloaded(name, dtype="half")
    assert "\n" not in str(caught.value)
    if name in ("clipscore", "image_similarity"):
        with pytest.raises(ValueError, match="resize 'pil' is not one of hf, flow_grpo"):
            unloaded(name, resize="pil")


def _bless(made: Any) -> None:
    golden_file.record(made.spec.name, made.weights_digest(), golden.measure(made))


@pytest.mark.parametrize("name", NAMES)
def test_golden_self_test_refuses_until_blessed(name: str) -> None:
    made = shared(name)
    with pytest.raises(SelfTestError, match=f"no golden scores for weights .* models bless {name}"):
        made.self_test()
    _bless(made)
    made.self_test()
    scorer(name, dtype="bfloat16").self_test()  # rounding is not a reason to refuse


@pytest.mark.parametrize("name", NAMES)
def test_golden_self_test_refuses_a_network_that_sees_nothing(name: str) -> None:
    made = scorer(name)
    _bless(made)
    modules = [v for v in vars(made.network).values() if isinstance(v, torch.nn.Module)]
    modules += [v.__self__ for v in vars(made.network).values() if hasattr(v, "__self__")]
    with torch.no_grad():
        for module in modules:
            for key, parameter in module.named_parameters():
                if "patch_embedding" in key or "conv1" in key or "token_embedding" in key:
                    parameter.zero_()
                if "word_embeddings" in key:
                    parameter.zero_()
    with pytest.raises(SelfTestError, match=r"all golden items score|recorded"):
        made.self_test()


@pytest.mark.parametrize("name", NAMES)
def test_fingerprint_changes_with_weights_dtype_and_preprocessing(
    name: str, tmp_path: Path
) -> None:
    first = shared(name)
    assert first.fingerprint() == scorer(name).fingerprint()
    different = [scorer(name, dtype="bfloat16")]
    if name in ("clipscore", "image_similarity"):
        different.append(scorer(name, resize="flow_grpo"))
    if name.startswith("hpsv2"):
        different.append(scorer(name, antialias=False))
    prints = {first.fingerprint(), *(made.fingerprint() for made in different)}
    assert len(prints) == 1 + len(different)
    assert first.weights_digest() == different[0].weights_digest()
    with pytest.raises(RuntimeError, match="load"):
        load_scorer_class(name)().fingerprint()


def test_networks_are_built_without_drawing_weights_but_with_their_buffers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import open_clip  # pyright: ignore[reportMissingImports]

    config: Any = open_clip.get_model_config("ViT-B-32")
    text = {**config["text_cfg"], "width": 64, "heads": 2, "layers": 2}
    vision = {**config["vision_cfg"], "width": 64, "layers": 2}
    draw, drawn_shapes = torch.Tensor.normal_, []

    def noted(tensor: torch.Tensor, *args: float, **options: float) -> torch.Tensor:
        drawn_shapes.append(tensor.shape)
        return draw(tensor, *args, **options)

    monkeypatch.setattr(torch.Tensor, "normal_", noted)
    built = torch_tools.unfilled(lambda: open_clip.CLIP(32, vision, text))
    assert drawn_shapes == []
    drawn = open_clip.CLIP(32, vision, text)
    assert len(drawn_shapes) > 10
    buffers = dict(built.named_buffers())
    assert buffers.keys() - built.state_dict().keys() == {"attn_mask"}
    for name, buffer in drawn.named_buffers():
        assert torch.equal(buffer, buffers[name]), name
