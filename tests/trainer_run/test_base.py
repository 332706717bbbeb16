"""A run goes on only from the weights that it started from."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainer_run.test_run import numbers, run
from trainer.config.load import parse
from trainer.errors import CheckpointError
from trainer.models.network import base_fingerprint
from trainer.run.inputs import load_model


@pytest.mark.parametrize(("finetune", "kl_beta"), [("lora", 0.0), ("full", 0.0), ("full", 0.1)])
def test_a_run_does_not_go_on_from_another_fine_tune_of_its_base(
    table: dict[str, Any], tmp_path: Path, finetune: str, kl_beta: float
) -> None:
    base = tmp_path / "base"
    shutil.copytree(table["model"]["path"], base)
    table["model"] |= {"path": str(base), "finetune": finetune}
    table["loss"]["kl_beta"] = kl_beta
    table["run"]["epochs"] = 1
    run(table)
    table["run"]["epochs"] = 2
    file = base / "transformer" / "diffusion_pytorch_model.safetensors"
    untouched = file.read_bytes()
    weights = load_file(file)
    save_file({**weights, "proj_out.weight": weights["proj_out.weight"] * 1.01}, file)
    kept = numbers(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"other weights.*fingerprint.*run\.out_dir="):
        run(table)
    assert numbers(tmp_path / "run") == kept
    file.write_bytes(untouched)
    assert run(table).reason == "2 epochs"


def test_the_fingerprint_of_a_base_does_not_depend_on_how_it_was_loaded(
    table: dict[str, Any],
) -> None:
    def of(dtype: str) -> str:
        table["model"]["dtype"] = dtype
        return base_fingerprint(load_model(parse(table), torch.device("cpu")).networks())

    assert of("float32") == of("bfloat16")
