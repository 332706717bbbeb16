"""Wan 2.2's two experts in what a run hands over."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.tiny_wan import build
from tests.trainer_run.fake_service import service_with
from tests.trainer_run.test_outputs import as_toml
from trainer.config.load import parse
from trainer.models.base import ModelOptions
from trainer.models.model import FlowModel
from trainer.models.registry import MODELS
from trainer.report.card import write_card
from trainer.rollout.noise import NoiseKey, initial_noise
from trainer.run.open import train_run
from trainer.tools.artifacts import Choice, find
from trainer.tools.offline import export_run
from trainer.types import Prompt

CPU, PROMPT = torch.device("cpu"), Prompt("a red star")
LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture
def video_table(table: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """An epoch on the tiny Wan 2.2 with two experts."""
    table["run"] |= {"epochs": 1}
    table["model"] |= {
        "family": "wan",
        "path": str(build(tmp_path / "wan", "wan2.2")),
        "max_sequence_length": 24,
    }
    table["sampling"] = {
        "num_steps": 3,
        "eval_num_steps": 3,
        "sde": "linear",
        "noise_level": 1.0,
        "height_px": 16,
        "width_px": 16,
        "num_frames": 5,
    }
    table["batch"] |= {"optimizer_steps_per_epoch": 1}
    table["ema"] = {"enabled": False}
    table["eval"] |= {"samples_shown": 1, "images_per_prompt": 1}
    return table


def velocities(model: FlowModel) -> tuple[torch.Tensor, ...]:
    """Of the expert for high noise and of the one for low noise; the boundary is 0.875."""
    x = initial_noise([NoiseKey(0, 0, 0, 0)], model.latent_shape(16, 16, 5), model.device)
    cond = model.encode_prompts([PROMPT.text])
    with torch.no_grad():
        return tuple(model.velocity(x, torch.tensor(sigma), cond) for sigma in (0.9, 0.5))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("finetune", "experts"),
    [
        ("lora", "both"),
        ("full", "low_noise"),
        pytest.param("lora", "low_noise", marks=pytest.mark.exhaustive),
        pytest.param("lora", "high_noise", marks=pytest.mark.exhaustive),
    ],
)
def test_what_a_run_hands_over_has_every_trained_expert(
    video_table: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    finetune: str,
    experts: str,
) -> None:
    video_table["model"] |= {"finetune": finetune, "experts": experts}
    video_table["optim"]["lr"] = 5e-2 if finetune == "lora" else 5e-3
    run_dir = train_run(
        parse(video_table), environment={}, open_service=service_with(), say=lambda _: None
    ).run_dir
    base = velocities(find(str(run_dir), Choice(base=True)).load(CPU))
    trained = velocities(find(str(run_dir), Choice()).load(CPU))
    moved = [not torch.equal(new, old) for new, old in zip(trained, base, strict=True)]
    assert moved == [experts != "low_noise", experts != "high_noise"]

    # `evaluate RUN/model`, and the weights elsewhere under a preset for both experts.
    export_run(run_dir, tmp_path / "moved")
    preset = tmp_path / "mine.toml"
    preset.write_text(re.sub(r"experts = .*\n", "", as_toml(run_dir)), encoding="utf-8")
    for place, choice in (("run/model", Choice()), ("moved", Choice(preset=str(preset)))):
        found = velocities(find(str(tmp_path / place), choice).load(CPU))
        for v, expected in zip(found, trained, strict=True):
            torch.testing.assert_close(v, expected, rtol=1e-4, atol=1e-4)

    # A complete pipeline: both experts as trained, and nothing beside it.
    whole = tmp_path / "whole"
    export_run(run_dir, whole, whole=True)
    assert not list(whole.rglob(LORA))
    merged = MODELS["wan"](whole, ModelOptions(finetune="full", max_sequence_length=24))
    for v, expected in zip(velocities(merged), trained, strict=True):
        torch.testing.assert_close(v, expected, rtol=1e-3, atol=1e-3)

    # The card's code, word for word.
    write_card(run_dir, run_dir / "model")
    card = (run_dir / "model" / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(code, "card", "exec"), names)
    loaded = names["pipe"]
    x = initial_noise([NoiseKey(0, 0, 0, 0)], merged.latent_shape(16, 16, 5), CPU)
    embeds = merged.encode_prompts([PROMPT.text])["embeds"]
    for network, sigma, expected in (
        (loaded.transformer, 0.9, trained[0]),
        (loaded.transformer_2, 0.5, trained[1]),
    ):
        with torch.no_grad():
            v = network(x, timestep=torch.tensor([sigma * 1000]), encoder_hidden_states=embeds)
        torch.testing.assert_close(v.sample, expected, rtol=1e-3, atol=1e-3)


def test_experts_that_are_parked_stay_on_the_cpu(tmp_path: Path) -> None:
    folder = build(tmp_path / "wan", "wan2.2")

    def places(**changes: Any) -> set[tuple[str, str]]:
        options = ModelOptions(
            finetune="full", max_sequence_length=24, device="meta", parked=True, **changes
        )
        adapter: Any = MODELS["wan"](folder, options)
        pipe = adapter._family.pipe
        return {
            (name, next(getattr(pipe, name).parameters()).device.type)
            for name in ("transformer", "transformer_2", "vae")
        }

    assert places() == {("transformer", "cpu"), ("transformer_2", "cpu"), ("vae", "meta")}
    assert places(experts="low_noise") == {
        ("transformer", "meta"),
        ("transformer_2", "cpu"),
        ("vae", "meta"),
    }
