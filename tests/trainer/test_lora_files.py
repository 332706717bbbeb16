"""LoRAs as others write and read them: scales, formats, where they are used, two experts."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_sd3
import tiny_wan
import torch
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)
from families import CASES
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_snippets import PROMPT, executed, settings_of, trained

from trainer.errors import CheckpointError, ConfigError
from trainer.evaluation.held_out import draw_images
from trainer.models import lora_file
from trainer.models.base import ModelOptions
from trainer.models.registry import MODELS
from trainer.report.snippets import snippet
from trainer.run.inputs import load_model
from trainer.tools.artifacts import Choice, find
from trainer.tools.offline import complete
from trainer.types import Prompt

CPU = torch.device("cpu")
SD3 = next(case for case in CASES if case.family == "sd3")
TARGETS = ["attn.to_k", "attn.to_q"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_sd3.build(tmp_path_factory.mktemp("sd3"), with_t5=False)


def open_pipeline(folder: Path) -> Any:
    absent = {"text_encoder_3": None, "tokenizer_3": None}
    return StableDiffusion3Pipeline.from_pretrained(str(folder), **absent)


def updates(found: lora_file.LoraFile) -> dict[str, torch.Tensor]:
    """B A by layer."""
    name = ".lora_{}." + lora_file.ADAPTER + ".weight"
    return {
        layer: found.weights[layer + name.format("B")] @ found.weights[layer + name.format("A")]
        for layer in found.targets
    }


def with_adapter(base: Path, **config: Any) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """A pipeline with a random adapter, its configuration, and the updates that it makes."""
    pipe = open_pipeline(base)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS, **config)
    pipe.transformer.add_adapter(lora)
    torch.manual_seed(0)
    for name, weight in pipe.transformer.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight)
    layers = {n: m for n, m in pipe.transformer.named_modules() if hasattr(m, "get_delta_weight")}
    return pipe, lora, {n: m.get_delta_weight("default") for n, m in layers.items()}


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"alpha_pattern": {"attn.to_k": 0.5}},
        {"rank_pattern": {"transformer_blocks.0.attn.to_q": 2}, "use_rslora": True},
    ],
    ids=["plain", "rslora", "alpha_pattern", "rank_pattern"],
)
def test_what_diffusers_and_peft_scale_is_read_as_they_scale_it(
    base: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    from peft.utils.save_and_load import get_peft_model_state_dict

    pipe, lora, expected = with_adapter(base, **config)
    layers = get_peft_model_state_dict(pipe.transformer, adapter_name="default")
    metadata = {**lora.to_dict(), "target_modules": TARGETS}
    pipe.save_lora_weights(
        tmp_path / "diffusers",
        transformer_lora_layers=layers,
        transformer_lora_adapter_metadata=metadata,
    )
    plain = open_pipeline(base).transformer
    # As flow_grpo and DiffusionNFT save it.
    whole = get_peft_model(plain, lora)
    whole.load_state_dict(
        {
            f"base_model.model.{k.replace('.weight', '.default.weight')}": v
            for k, v in layers.items()
        },
        strict=False,
    )
    whole.save_pretrained(str(tmp_path / "peft"))
    (tmp_path / "renamed").mkdir()
    file = tmp_path / "diffusers" / lora_file.NAME
    (tmp_path / "renamed" / "my_style.safetensors").write_bytes(file.read_bytes())
    for place in ("diffusers", "peft", "renamed", "renamed/my_style.safetensors"):
        found = updates(lora_file.read(tmp_path / place))
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.allclose(found[name], value, atol=1e-5), (place, name)


def test_alpha_as_a_tensor_is_read(base: Path, tmp_path: Path) -> None:
    pipe, _, expected = with_adapter(base)
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in pipe.transformer.named_parameters():
        if "lora_" in name:
            tensors["transformer." + name.replace(".default", "")] = weight.detach().clone()
    tensors |= {f"transformer.{name}.alpha": torch.tensor(8.0) for name in expected}
    save_file(tensors, tmp_path / "x.safetensors")
    found = updates(lora_file.read(tmp_path / "x.safetensors"))
    assert all(torch.allclose(found[name], value, atol=1e-5) for name, value in expected.items())


def test_what_is_written_has_the_same_strength_without_its_alpha(
    base: Path, tmp_path: Path
) -> None:
    options = ModelOptions(max_sequence_length=16, lora_rank=4, lora_alpha=10)
    model = MODELS["sd3"](base, options)
    parameters = model.trainable_parameters()
    for weight in parameters.values():
        torch.nn.init.normal_(weight.data)
    model.save(tmp_path, parameters)
    tensors = load_file(tmp_path / lora_file.NAME)
    for name, a in parameters.items():
        if ".lora_A." in name:
            layer = name.split(".lora_A.")[0]
            trained_update = 10 / 4 * parameters[name.replace("_A.", "_B.")] @ a
            key = f"transformer.{layer}.lora_"
            plain = tensors[f"{key}B.weight"] @ tensors[f"{key}A.weight"]
            assert torch.allclose(plain, trained_update, atol=1e-5)
    found = updates(lora_file.read(tmp_path))
    assert all(torch.isfinite(value).all() for value in found.values())


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (
            ["transformer.x.lora_A.weight", "transformer.x.lora_magnitude_vector"],
            "is a DoRA.*merge",
        ),
        (["transformer.x.lora_A.weight", "transformer.x.lora_B.bias"], "biases.*merge"),
        (["text_encoder.x.lora_A.weight", "text_encoder.x.lora_B.weight"], "text encoder.*merge"),
        (["transformer.x.lora_A.weight"], "x lacks one of its two factors"),
        (["lora_unet_x.lora_down.weight"], "not a LoRA in the format of diffusers or peft"),
    ],
)
def test_what_is_not_read_is_named(tmp_path: Path, names: list[str], says: str) -> None:
    save_file({name: torch.zeros(4, 4) for name in names}, tmp_path / lora_file.NAME)
    with pytest.raises(CheckpointError, match=says):
        lora_file.read(tmp_path)


def test_a_run_begins_with_a_lora(base: Path, tmp_path: Path) -> None:
    model = {"max_sequence_length": 16, "lora_targets": TARGETS}
    settings = settings_of(SD3, base, model={**model, "lora_rank": 2, "lora_alpha": 6})
    drawn, _ = trained(settings, tmp_path / "first", Prompt(PROMPT))

    def began(**changes: Any) -> Any:
        path = {"lora_path": str(tmp_path / "first")}
        settings = settings_of(SD3, base, model={**model, **path, **changes})
        return draw_images(load_model(settings, CPU), [Prompt(PROMPT)], [(0, 0)], settings)[0]

    for changes in ({"lora_rank": 2}, {"lora_rank": 5, "lora_alpha": 7}):
        assert np.abs(began(**changes).astype(int) - drawn).max() <= 1
    with pytest.raises(ConfigError, match=r"set model\.lora_rank=2 or more"):
        began(lora_rank=1)
    with pytest.raises(ConfigError, match="has no adapter here"):
        began(lora_targets=["attn.to_v"])
    with pytest.raises(ConfigError, match="merge the LoRA into the pipeline"):
        began(finetune="full")
    with pytest.raises(ConfigError, match="holds no LoRA"):
        began(lora_path=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("experts", ["both", "high_noise", "low_noise"])
def test_both_experts_are_found_evaluated_and_merged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experts: str
) -> None:
    wan = next(case for case in CASES if case.name == "wan2.2-a14b")
    folder = tiny_wan.build(tmp_path / "wan", kind="wan2.2")
    settings = settings_of(wan, folder, model={"experts": experts})
    drawn, noise = trained(settings, tmp_path / "model", Prompt(PROMPT))
    plain = load_model(settings, CPU)
    assert not np.array_equal(drawn, draw_images(plain, [Prompt(PROMPT)], [(0, 0)], settings)[0])

    # As `flow-train evaluate RUN/model` does.
    (tmp_path / "config.json").write_text(
        json.dumps({"settings": settings.model_dump(mode="json")}), encoding="utf-8"
    )
    target = find(str(tmp_path / "model"), Choice())
    again = draw_images(target.load(CPU), [Prompt(PROMPT)], [(0, 0)], target.settings)[0]
    assert np.abs(again.astype(int) - drawn).max() <= 1

    # As `flow-train export --whole` does.
    complete(tmp_path / "model", settings)
    assert not list((tmp_path / "model").rglob(lora_file.NAME))
    code = snippet(settings, str(tmp_path / "model"), PROMPT, whole=True)
    names = executed(code, noise, tmp_path / "here", monkeypatch)
    merged = (np.stack(list(names["video"])) * 255).round()
    assert np.abs(merged - drawn).max() <= 1
