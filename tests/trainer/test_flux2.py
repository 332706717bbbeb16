"""What only FLUX.2 [klein] has: a schedule that depends on the steps, and distilled models."""

from pathlib import Path

import pytest
import tiny_flux2
import torch
from tiny_parts import PROMPTS, save_references

from trainer.config.load import load as load_settings
from trainer.errors import DataError, ModelError
from trainer.images import load_reference
from trainer.models import flux2
from trainer.models.base import ModelOptions
from trainer.models.model import FlowModel
from trainer.models.registry import MODELS
from trainer.run.inputs import check_for
from trainer.types import Prompt, Reference, Request


def load(folder: Path, **options: object) -> FlowModel:
    return MODELS["flux2_klein"](folder, ModelOptions(max_sequence_length=48, **options))  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_flux2.build(tmp_path_factory.mktemp("tiny"))


def test_the_shift_depends_on_resolution_and_steps(folder: Path) -> None:
    model = load(folder)
    # The two lines of the official schedule, for 10 and for 200 steps, at 1024 tokens.
    few, many = 8.73809524e-05 * 1024 + 1.89833333, 0.00016927 * 1024 + 0.45666666
    for steps, mu in ((10, few), (200, many)):
        levels = torch.linspace(1, 1 / steps, steps, dtype=torch.float64)
        shifted = 1 / (1 + (1 / levels - 1) * torch.tensor(-mu, dtype=torch.float64).exp())
        found = model.sigmas(steps, (16, 32, 32))
        assert torch.allclose(found[:-1].double(), shifted, atol=1e-6)
        assert found[-1] == 0
    with pytest.raises(ValueError, match="latent shape is needed"):
        model.sigmas(10)


def test_a_distilled_model_samples_without_guidance(tmp_path: Path) -> None:
    model = load(tiny_flux2.build(tmp_path / "distilled", distilled=True))
    x, cond = torch.randn(1, 16, 8, 8), model.encode_prompts([PROMPTS[0]])
    assert model.velocity(x, torch.tensor(0.5), cond).isfinite().all()
    with pytest.raises(ModelError, match=r"no guidance, not 4: set sampling\.guidance_scale=1"):
        model.velocity(x, torch.tensor(0.5), cond, 4.0, model.encode_prompts([""]))


@pytest.mark.parametrize("where", ["settings", "row"])
def test_a_negative_prompt_is_refused_as_the_pipeline_has_none(where: str) -> None:
    settings = load_settings("edit_flux2_klein_1gpu", ["task.name=jsonl"])
    prompt = Prompt("a star")
    check_for([prompt], settings, print)
    if where == "row":
        prompt = Prompt("a star", negative="blur")
    else:
        settings = load_settings("edit_flux2_klein_1gpu", ['sampling.negative_prompt="blur"'])
    with pytest.raises(
        DataError, match="flux2_klein takes no negative prompt, but there is 'blur'"
    ):
        check_for([prompt], settings, print)


def test_references_that_the_pipeline_refuses_are_refused_while_loading(folder: Path) -> None:
    with pytest.raises(ValueError, match="at least 64 px a side, not 48x64"):
        load(folder, reference_size=(48, 64))


def test_a_large_reference_is_read_at_a_megapixel(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert flux2.REFERENCE_AREA_PX == 1024**2
    monkeypatch.setattr(flux2, "REFERENCE_AREA_PX", 128**2)
    (path, *_) = save_references(tmp_path, side_px=150)
    reference = Reference("digest", path, load_reference(path).size)
    (latents,) = load(folder).encode_prompts([Request(PROMPTS[0], (reference,))]).references
    assert latents.shape == (1, 16, 16, 16)
