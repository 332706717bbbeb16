from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.trainer_run.fake_service import service_with
from trainer.config.load import parse
from trainer.errors import ConfigError
from trainer.run.open import train_run


def run(table: dict[str, Any], folder: Path, **model: Any) -> list[str]:
    """Train; what the run said."""
    said: list[str] = []
    changed = {
        **table,
        "run": {**table["run"], "out_dir": str(folder)},
        "model": {**table["model"], **model},
    }
    train_run(parse(changed), environment={}, open_service=service_with(), say=said.append)
    return said


def test_prompts_that_do_not_fit_into_memory_are_encoded_when_drawn(
    table: dict[str, Any], tmp_path: Path
) -> None:
    table["run"]["epochs"] = 1
    usual = run(table, tmp_path / "usual")
    small = run(table, tmp_path / "small", prompt_cache_gb=1e-9)
    assert not any("encoders stay" in line for line in usual)
    assert any("the text encoders stay in memory:" in line for line in small)
    one, other = (
        load_file(tmp_path / name / "model" / "pytorch_lora_weights.safetensors")
        for name in ("usual", "small")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("sampling", {"width_px": 30}, r"sampling: image sides must be multiples of \d+ px"),
        ("sampling", {"num_frames": 5}, "sampling: this model makes images, not videos of 5"),
        ("model", {"family": "flux"}, "model.path=.* holds a StableDiffusion3Pipeline"),
        ("model", {"max_sequence_length": 4096}, "must be at most 512, not 4096"),
    ],
)
def test_what_a_model_cannot_do_is_one_line_before_anything_is_trained(
    table: dict[str, Any], tmp_path: Path, section: str, change: dict[str, Any], message: str
) -> None:
    table[section] = {**table[section], **change}
    with pytest.raises(ConfigError, match=message) as caught:
        run(table, tmp_path / "run")
    assert "\n" not in str(caught.value)
