"""The contract of a family: `families.py` lists who is held to it."""

import copy
import gc
import json
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import CASES, GUIDANCE, VARIANTS, Case
from tiny_parts import PROMPTS, SIDE_PX, save_references
from torch import Tensor

from trainer.algorithm.losses import TrainBatch
from trainer.config.settings import Settings
from trainer.evaluation.sampling import sample_and_compare
from trainer.images import load_reference
from trainer.models.base import Conditioning, Decoded, ModelOptions
from trainer.models.model import FlowModel
from trainer.models.registry import MODELS
from trainer.parallel.world import World
from trainer.rollout.noise import NoiseKey, initial_noise
from trainer.rollout.policy import draw_window
from trainer.rollout.rollout import rollout
from trainer.run.update import Updater
from trainer.types import Prompt, Reference

KEYS = [NoiseKey(0, 0, i % 3, i) for i in range(4)]
TEXTS = [PROMPTS[key.prompt] for key in KEYS]
STEPS = 4


@pytest.fixture(scope="session", autouse=True)
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Reference]:
    """What prompts of editing families are about."""
    PICTURES[:] = [
        Reference(path.name, path, (SIDE_PX, SIDE_PX))
        for path in save_references(tmp_path_factory.mktemp("references"))
    ]
    return PICTURES


PICTURES: list[Reference] = []


def prompts(case: Case, texts: Sequence[str] = TEXTS, first: int = 0) -> list[Prompt]:
    """The texts, each about the family's number of pictures, from the ``first`` on."""
    return [
        Prompt(
            text,
            references=tuple(PICTURES[(first + place + i) % 4] for i in range(case.references)),
        )
        for place, text in enumerate(texts)
    ]


def encoded(case: Case, model: FlowModel, first: int = 0) -> tuple[Conditioning, Conditioning]:
    """The prompts, and the negative one."""
    chosen = prompts(case, first=first)
    negative = model.encode_negative(chosen, "")
    assert negative is not None
    return model.encode_prompts([prompt.request for prompt in chosen]), negative


def often(chosen: Sequence[Case], rare: Sequence[Case]) -> pytest.MarkDecorator:
    """Cases of `make test`, and those that only `make test-all` runs."""
    cases = [
        pytest.param(case, id=case.name, marks=[pytest.mark.exhaustive] * (case.rare or seldom))
        for seldom, part in enumerate((chosen, rare))
        for case in part
    ]
    return pytest.mark.parametrize("case", cases)


# Of one network and of two; `make test-all` trains all weights of the other families, too.
FULL_OFTEN = ("sd3.5-medium", "wan2.2-a14b")
named = often(CASES, ())


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny pipelines by the name of their case, built when first asked for."""

    class Built(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            (case,) = (case for case in (*CASES, *VARIANTS) if case.name == name)
            self[name] = tmp_path_factory.mktemp("tiny") / name
            case.build(self[name])
            return self[name]

    return Built()


def fitted(size: tuple[int, int, int]) -> dict[str, Any]:
    """The options by which references suit a height, a width and a number of frames."""
    return {"reference_size": (size[1], size[0]), "num_frames": size[2]}


def load(case: Case, folder: Path | str, **changes: Any) -> FlowModel:
    options = {
        "lora_rank": 4,
        "lora_alpha": 16,
        "max_sequence_length": case.tokens,
        **fitted(case.size),
    }
    return MODELS[case.family](folder, ModelOptions(**{**options, **case.options, **changes}))


def open_pipeline(case: Case, folder: Path) -> Any:
    """Load it as any user of diffusers would."""
    index = json.loads((folder / "model_index.json").read_text())
    absent: dict[str, Any] = {n: None for n, entry in index.items() if entry == [None, None]}
    pipe = case.pipeline.from_pretrained(str(folder), local_files_only=True, **absent)
    pipe.set_progress_bar_config(disable=True)
    case.prepare(pipe)
    return pipe


def pipeline_images(
    case: Case, pipe: Any, *, guided: bool = True, size: tuple[int, int, int] | None = None
) -> Tensor:
    """What plain diffusers makes of the same seeds."""
    height, width, frames = size or case.size
    rows = [slice(row, row + 1) for row in range(len(KEYS))] if case.references else [slice(None)]
    found = []
    for row in rows:
        pictures = [
            load_reference(one.path, (width, height)) for one in prompts(case)[row][0].references
        ]
        result = pipe(
            prompt=list(TEXTS[row]),
            height=height,
            width=width,
            num_inference_steps=STEPS,
            max_sequence_length=case.tokens,
            generator=[key.initial() for key in KEYS[row]],
            output_type="pt",
            **({"num_frames": frames} if frames > 1 else {}),
            **({"image": pictures if len(pictures) > 1 else pictures[0]} if pictures else {}),
            **case.at_size(height, width),
            # Z-Image's pipeline writes into the lists that it is given.
            **copy.deepcopy(case.guided if guided else case.plain),
        )
        found.append(result.frames if frames > 1 else result.images)
    return torch.cat(found)


@torch.no_grad()
def images(
    case: Case,
    model: FlowModel,
    *,
    guided: bool = True,
    size: tuple[int, int, int] | None = None,
    first: int = 0,
) -> Decoded:
    cond, negative = encoded(case, model, first)
    final, _ = sample_and_compare(
        model,
        cond,
        initial_noise(KEYS, model.latent_shape(*(size or case.size)), model.device),
        STEPS,
        guidance_scale=GUIDANCE if guided else 1.0,
        negative=negative,
    )
    return model.decode(final)


def grpo_step(case: Case, model: FlowModel) -> dict[str, float]:
    """One update by the trainer's own code, at a rate that shows; its metrics."""
    settings = Settings.model_validate(
        {
            "sampling": {"num_steps": STEPS, "guidance_scale": GUIDANCE},
            "batch": {"rollout_batch_size": len(KEYS), "optimizer_steps_per_epoch": 1},
            "optim": {"lr": 5e-2},
        }
    )
    updater = Updater(model, settings, World.join({}, "cpu"))
    cond, negative = encoded(case, model)
    batch = rollout(
        model,
        cond,
        KEYS,
        updater.config,
        latent_shape=model.latent_shape(*case.size),
        window=draw_window(updater.config, 0, 0),
        negative=negative,
    )
    advantage = torch.tensor([1.0, -1.0, 0.5, -0.5])
    valid = torch.ones(len(KEYS), dtype=torch.bool)
    return updater.update([TrainBatch(batch, cond, advantage, valid, negative)])


def test_every_family_is_held_to_the_contract() -> None:
    assert {case.family for case in (*CASES, *VARIANTS)} == set(MODELS)
    # Of the two that share a file, one is held to the whole.
    assert {case.family for case in CASES} | {"qwen_image_edit"} == set(MODELS)
    assert len({case.name for case in (*CASES, *VARIANTS)}) == len(CASES) + len(VARIANTS)


@often(CASES, VARIANTS)
def test_sampling_equals_the_pipeline_s_own(case: Case, folders: dict[str, Path]) -> None:
    pipe = open_pipeline(case, folders[case.name])
    seen = []
    model = load(case, folders[case.name])
    for guided, size in ((False, case.size), (True, case.size), (True, case.wide)):
        if case.references:
            model = load(case, folders[case.name], **fitted(size))
        expected = pipeline_images(case, pipe, guided=guided, size=size)
        found = images(case, model, guided=guided, size=size)
        assert found.unit.shape == expected.shape
        assert (found.unit - expected).abs().max() <= 1e-4
        assert expected.std() > 0.01
        pixels = (expected.movedim(-3, -1).numpy() * 255).round()
        assert found.uint8.dtype == np.uint8
        assert found.uint8.shape == pixels.shape
        # A difference of 1e-6 may fall on the other side of a rounding boundary.
        assert (found.uint8 != pixels).mean() < 1e-3
        seen.append(expected)
    assert (seen[0] - seen[1]).abs().max() > 1e-3, "guidance does nothing here"
    if case.references:
        other = images(case, load(case, folders[case.name]), first=1).unit
        assert (other - seen[1]).abs().max() > 1e-3, "references are ignored"


@pytest.mark.parametrize(
    ("case", "finetune"),
    [
        pytest.param(case, kind, id=f"{kind}-{case.name}", marks=pytest.mark.exhaustive)
        if case.rare or (kind == "full" and case.name not in FULL_OFTEN)
        else pytest.param(case, kind, id=f"{kind}-{case.name}")
        for case in CASES
        for kind in ("lora", "full")
    ],
)
def test_a_grpo_step_and_what_is_saved_after_it(
    case: Case, finetune: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    model = load(case, folders[case.name], finetune=finetune)
    trainable = set(model.trainable_parameters())
    assert {n for n, p in model.transformer.named_parameters() if p.requires_grad} == trainable
    assert all(p.dtype == torch.float32 for p in model.trainable_parameters().values())
    before = {n: p.detach().clone() for n, p in model.transformer.named_parameters()}
    base = images(case, model).unit

    metrics = grpo_step(case, model)
    assert metrics["skipped_updates"] == 0
    assert metrics["grad_norm"] > 0
    assert metrics["ratio_deviation"] == 0, "the first ratio has to be exactly 1"
    changed = {n for n, p in model.transformer.named_parameters() if not torch.equal(p, before[n])}
    assert changed
    assert changed <= trainable
    trained = images(case, model).unit
    assert (trained - base).abs().max() > 0.01

    with model.reference():
        assert torch.equal(images(case, model).unit, base)
    assert torch.equal(images(case, model).unit, trained)
    assert {n for n, p in model.transformer.named_parameters() if p.requires_grad} == trainable
    assert not model.transformer.training

    model.save(tmp_path, model.trainable_parameters())
    pipe = open_pipeline(case, folders[case.name])
    if finetune == "lora":
        case.load_lora(pipe, tmp_path)
    else:
        for part in tmp_path.iterdir():
            loaded = type(getattr(pipe, part.name)).from_pretrained(str(part))
            setattr(pipe, part.name, loaded)
    assert (pipeline_images(case, pipe) - trained).abs().max() <= 1e-4


@often(CASES[:3], CASES[3:])
def test_without_a_copy_there_is_no_reference(case: Case, folders: dict[str, Path]) -> None:
    model = load(case, folders[case.name], finetune="full", keep_reference=False)
    with pytest.raises(RuntimeError, match="keep_reference"), model.reference():
        pass


@often(CASES[:3], CASES[3:])
def test_adapters_start_alike_whatever_was_drawn_before(
    case: Case, folders: dict[str, Path]
) -> None:
    first = load(case, folders[case.name]).trainable_parameters()
    torch.manual_seed(123)
    second = load(case, folders[case.name]).trainable_parameters()
    other = load(case, folders[case.name], seed=1).trainable_parameters()
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def _encoders(model: Any) -> list["weakref.ref[Any]"]:
    pipe = model._family.pipe
    found = (getattr(pipe, name, None) for name in model._family.encoders)
    return [weakref.ref(encoder) for encoder in found if encoder is not None]


@named
def test_prompts_are_encoded_once_and_the_encoders_leave(
    case: Case, folders: dict[str, Path]
) -> None:
    model = load(case, folders[case.name])
    encoders = _encoders(model)
    assert encoders
    before = images(case, model).unit
    asked = [prompt.request for prompt in prompts(case, PROMPTS)]
    together = model.encode_prompts(asked)
    model.drop_encoders()
    gc.collect()
    assert not [encoder for encoder in encoders if encoder() is not None]
    assert torch.equal(images(case, model).unit, before)
    for place, prompt in enumerate(asked):
        alone = model.encode_prompts([prompt])
        for mine, all_of_them in zip(alone.references, together.references, strict=True):
            assert torch.equal(mine[0], all_of_them[place])
        length = {name: tensor.shape[1] for name, tensor in alone.tensors.items()}
        for name, tensor in alone.tensors.items():
            assert torch.equal(together[name][place, : length[name]], tensor[0])
    assert len(together.references) >= case.references
    with pytest.raises(RuntimeError, match="dropped before 'another text' was encoded"):
        model.encode_prompts([replace(prompts(case)[0], text="another text").request])
    with pytest.raises(ValueError, match="no prompts"):
        model.encode_prompts([])


@often(CASES, VARIANTS)
def test_a_scale_up_to_1_is_no_guidance(case: Case, folders: dict[str, Path]) -> None:
    if case.plain.get("guidance_scale") == 1.0 and case.family.startswith("flux"):
        pytest.skip("the scale is an input of the network here")
    model = load(case, folders[case.name])
    x = initial_noise(KEYS, model.latent_shape(*case.size), model.device)
    cond, negative = encoded(case, model)
    with torch.no_grad():
        off, guided, *others = (
            model.velocity(x, torch.tensor(0.9), cond, scale, negative)
            for scale in (1.0, GUIDANCE, 0.0, 0.5)
        )
    assert not torch.equal(off, guided)
    assert all(torch.equal(other, off) for other in others)


@named
def test_prompts_that_are_cut_are_named(case: Case, folders: dict[str, Path]) -> None:
    model = load(case, folders[case.name])
    short, long = "a star", "a star " * 60
    if case.family.startswith("qwen_image_edit"):
        assert model.cut_prompts([long]) == [], "this pipeline reads all of a text"
        return
    assert model.cut_prompts([short, long, f"{long} and a heart"]) == [long, f"{long} and a heart"]
    assert model.cut_prompts([short]) == []
    one, other = (model.encode_prompts([text]) for text in (long, f"{long} and a heart"))
    same = [torch.equal(one[name], other[name]) for name in one.tensors]
    assert all(same), "what is cut changes nothing"


@often(CASES[:2], CASES[2:])
def test_half_precision_computes_close_to_float32(case: Case, folders: dict[str, Path]) -> None:
    exact = images(case, load(case, folders[case.name])).unit
    # Every second family in the other type.
    dtype = (torch.bfloat16, torch.float16)[CASES.index(case) % 2]
    model = load(case, folders[case.name], compute_dtype=dtype)
    difference = (images(case, model).unit - exact).abs()
    assert 0 < difference.max() < 0.15
    assert all(p.dtype == torch.float32 for p in model.trainable_parameters().values())
    base = [p for n, p in model.transformer.named_parameters() if "lora" not in n]
    assert any(p.dtype == dtype for p in base)
    assert grpo_step(case, model)["ratio_deviation"] == 0


@often(CASES[:1], CASES[1:])
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch: a slow norm
def test_full_fine_tuning_runs_in_bfloat16(case: Case, folders: dict[str, Path]) -> None:
    model = load(case, folders[case.name], finetune="full", compute_dtype=torch.bfloat16)
    assert grpo_step(case, model)["ratio_deviation"] == 0


@often(CASES[:3], CASES[3:])
def test_a_picture_that_is_not_finite_is_marked(case: Case, folders: dict[str, Path]) -> None:
    model = load(case, folders[case.name])
    latents = torch.zeros(3, *model.latent_shape(*case.size))
    latents[1] = float("nan")
    latents[2].flatten()[0] = float("inf")
    decoded = model.decode(latents)
    assert decoded.finite.tolist() == [True, False, False]
    assert decoded.unit.isfinite().all()


@named
def test_sizes_that_cannot_be_made_are_named(case: Case, folders: dict[str, Path]) -> None:
    model = load(case, folders[case.name])
    with pytest.raises(ValueError, match="max_sequence_length must be at most"):
        load(case, folders[case.name], max_sequence_length=10_000)
    for size, message in case.wrong_sizes.items():
        with pytest.raises(ValueError, match=message):
            model.latent_shape(*size)


@named
def test_missing_weights_are_one_line_that_says_what_to_do(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def message(place: Path | str) -> str:
        with pytest.raises((FileNotFoundError, ValueError)) as caught:
            load(case, place)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such folder; download the pipeline with `hf download" in message(tmp_path / "no")
    assert "no such folder" in message("mistyped")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub = message("nobody/nothing")
    assert "cannot load nobody/nothing" in hub
    assert "`hf download nobody/nothing --local-dir FOLDER`" in hub
    assert "no model_index.json" in message(tmp_path)

    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert f"needs a {case.pipeline.__name__}" in message(other)
    (other / "model_index.json").write_text("{")
    assert "model_index.json is damaged" in message(other)

    damaged = tmp_path / "damaged"
    case.build(damaged)
    (weights,) = (damaged / "transformer").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"cannot load {damaged}" in message(damaged)
    weights.unlink()
    assert f"cannot load {damaged}" in message(damaged)
