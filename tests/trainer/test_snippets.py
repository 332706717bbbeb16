"""The code that report and model card print, executed: it draws what evaluations draw."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_wan
import torch
from families import CASES, GUIDANCE, VARIANTS, Case
from PIL import Image
from test_models import folders, often, pictures, prompts  # noqa: F401  (fixtures)

from trainer.config.load import parse
from trainer.config.settings import Settings
from trainer.evaluation.held_out import draw_images
from trainer.evaluation.sampling import EVAL_EPOCH
from trainer.report.snippets import snippet
from trainer.rollout.noise import NoiseKey, initial_noise
from trainer.run.inputs import load_model
from trainer.types import Prompt

PROMPT = 'a "red" star'
UNIPC = Case(
    "wan2.1-unipc",
    "wan",
    None,
    partial(tiny_wan.build, unipc=True),
    plain={},
    guided={},
    size=(16, 16, 5),
    tokens=32,
)
# The other variants differ in their weights only.
OTHERS = [case for case in VARIANTS if case.family != "sd3"]


def settings_of(case: Case, folder: Path, **changes: Any) -> Settings:
    height, width, frames = case.size
    model = {"lora_rank": 4, "lora_alpha": 16, **case.options, **changes.pop("model", {})}
    sampling = {"guidance_scale": GUIDANCE, "eval_num_steps": 4, **changes.pop("sampling", {})}
    return parse(
        {
            "model": {
                "family": case.family,
                "path": str(folder),
                "max_sequence_length": case.tokens,
                **model,
            },
            "sampling": {
                "height_px": height,
                "width_px": width,
                "num_frames": frames,
                **sampling,
            },
            "rewards": {"train": [{"scorer": "jpeg"}]},
            **changes,
        }
    )


def trained(settings: Settings, folder: Path, prompt: Prompt) -> tuple[Any, torch.Tensor]:
    """Move the weights and save them; the evaluation's picture of them, and its noise."""
    model = load_model(settings, torch.device("cpu"))
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.trainable_parameters().values():
            weight.add_(torch.randn_like(weight), alpha=0.05)
    model.save(folder, model.trainable_parameters())
    (drawn,) = draw_images(model, [prompt], [(0, 0)], settings)
    key = NoiseKey(settings.eval.seed, EVAL_EPOCH, 0, 0)
    noise = initial_noise([key], model.latent_shape(*settings.sampling.size), model.device)
    return drawn, noise


def executed(
    code: str, noise: torch.Tensor, place: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """Run the code in a folder of its own; its pipeline starts from this noise."""
    for name, module in list(sys.modules.items()):
        if name.startswith("diffusers.pipelines.") and hasattr(module, "randn_tensor"):
            monkeypatch.setattr(module, "randn_tensor", lambda shape, **_: noise.reshape(shape))
    place.mkdir()
    monkeypatch.chdir(place)
    names: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), names)
    return names


@often([*CASES, UNIPC], OTHERS)
def test_the_printed_code_draws_what_the_evaluation_drew(
    case: Case,
    folders: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if case is UNIPC:
        folders[case.name] = tiny_wan.build(tmp_path / "wan", unipc=True)
    seen = []
    # The pipelines of FLUX.2 take no negative prompt.
    negative = "" if case.family.startswith("flux2") else "blue"
    for number, sampling in enumerate(({}, {"negative_prompt": negative}, {"guidance_scale": 0.0})):
        settings = settings_of(case, folders[case.name], sampling=sampling)
        (prompt,) = prompts(case, [PROMPT])
        drawn, noise = trained(settings, tmp_path / f"model{number}", prompt)
        sources = [str(reference.path) for reference in prompt.references]
        code = snippet(settings, str(tmp_path / f"model{number}"), PROMPT, sources)
        place = tmp_path / f"here{number}"
        names = executed(code, noise, place, monkeypatch)
        if case.size[2] > 1:
            found = (np.stack(list(names["video"])) * 255).round()
        else:
            found = np.asarray(Image.open(place / "image.png").convert("RGB"), float)
        assert found.shape == drawn.shape
        assert np.abs(found - drawn).max() <= 1
        seen.append(drawn)
    # Whatever was asked for is seen in the pictures.
    assert not np.array_equal(seen[0], seen[2])
    unguided = case.name in ("flux.1-dev", "flux.1-kontext") or not negative
    assert unguided or not np.array_equal(seen[0], seen[1])
