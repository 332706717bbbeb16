"""What only Qwen-Image-Edit has: an encoder that sees the pictures."""

from pathlib import Path
from typing import Any

import pytest
import tiny_qwen_image_edit
import torch
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import QwenImageEditPipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import QwenImageEditPlusPipeline
from tiny_parts import save_references

from trainer.images import load_reference
from trainer.models.base import ModelOptions
from trainer.models.model import FlowModel
from trainer.models.qwen_image_edit import mark_pictures
from trainer.models.registry import MODELS
from trainer.types import Prompt, Reference

PIPELINES: dict[str, Any] = {
    "qwen_image_edit": QwenImageEditPipeline,
    "qwen_image_edit_plus": QwenImageEditPlusPipeline,
}


@pytest.fixture(scope="module", params=PIPELINES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_qwen_image_edit.build(tmp_path_factory.mktemp("tiny") / family, PIPELINES[family])


@pytest.fixture
def references(tmp_path: Path) -> list[Reference]:
    paths = save_references(tmp_path / "references", side_px=64)
    return [Reference(path.name, path, (64, 64)) for path in paths]


def load(family: str, folder: Path) -> FlowModel:
    return MODELS[family](folder, ModelOptions(lora_rank=4, lora_alpha=8, max_sequence_length=64))


def prompt(text: str, *references: Reference, negative: str | None = None) -> Prompt:
    return Prompt(text, references=references, negative=negative)


def test_texts_are_encoded_with_their_pictures(
    family: str, folder: Path, references: list[Reference]
) -> None:
    model, (first, second, *_) = load(family, folder), references
    rows = [prompt("make it red", first), prompt("make it red", second)]
    cond = model.encode_prompts([row.request for row in rows])
    assert (cond["embeds"][0] - cond["embeds"][1]).abs().max() > 1e-3
    negative = model.encode_negative(rows, "")
    assert negative is not None
    assert len(negative) == 2
    assert not torch.equal(negative["embeds"][0], negative["embeds"][1])
    same = model.encode_negative([rows[0], rows[0]], "")
    assert same is not None
    assert len(same) == 1
    own = model.encode_negative([prompt("make it red", first, negative="blurred, dark")], "")
    assert own is not None
    assert own["embeds"].shape[1] > same["embeds"].shape[1]
    assert model.encode_negative(rows, None) is None


def test_a_negative_row_that_is_longer_changes_no_reference(
    family: str, folder: Path, references: list[Reference]
) -> None:
    model = load(family, folder)
    rows = [prompt("red", references[0]), prompt("make all of it blue", references[1])]
    cond = model.encode_prompts([row.request for row in rows])
    assert torch.equal(cond.pad(99).references[0], cond.references[0])
    x = torch.randn(2, *model.latent_shape(32, 32), generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor(0.7)
    negative = model.encode_negative(rows, "blurred, and much longer than the prompts are")
    with torch.no_grad():
        together = model.velocity(x, sigma, cond, 4.0, negative)
        for place, row in enumerate(rows):
            alone = model.velocity(
                x[place : place + 1],
                sigma,
                model.encode_prompts([row.request]),
                4.0,
                model.encode_negative([row], "blurred, and much longer than the prompts are"),
            )
            torch.testing.assert_close(together[place], alone[0], rtol=1e-3, atol=1e-4)


def test_the_pipeline_still_does_not_say_which_tokens_are_a_picture_s(
    family: str, folder: Path, references: list[Reference]
) -> None:
    """Diffusers issue 14194. Once this fails, `mark_pictures` and its lines in snippets can go."""
    pipe = PIPELINES[family].from_pretrained(str(folder), local_files_only=True)
    picture = load_reference(references[0].path)
    seen = [picture] if family.endswith("plus") else picture
    expected: list[Any] = []
    pipe.text_encoder.register_forward_pre_hook(
        lambda module, args, kwargs: expected.append(kwargs), with_kwargs=True
    )
    without, _ = pipe.encode_prompt(["make it red"], image=seen)
    assert "mm_token_type_ids" not in expected[0]
    _, marked = mark_pictures(pipe.text_encoder, (), expected[0])
    given = pipe.processor(
        text=["<|vision_start|><|image_pad|><|vision_end|>x"], images=[picture], return_tensors="pt"
    )
    _, ours = mark_pictures(pipe.text_encoder, (), {"input_ids": given["input_ids"]})
    assert torch.equal(given["mm_token_type_ids"], ours["mm_token_type_ids"])
    assert marked["mm_token_type_ids"].sum() == 4
    pipe.text_encoder.register_forward_pre_hook(mark_pictures, with_kwargs=True)
    with_marks, _ = pipe.encode_prompt(["make it red"], image=seen)
    assert (with_marks - without).abs().max() > 1e-3
