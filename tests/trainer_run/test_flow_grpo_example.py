"""The algorithm in one file: it runs against a real server, trains, and is short."""

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.server.server_process import ROOT, running

EXAMPLE = ROOT / "examples" / "flow_grpo.py"


def loaded() -> Any:
    """The script, in this process: it has imported torch already."""
    spec = importlib.util.spec_from_file_location("flow_grpo", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["flow_grpo"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_algorithm_in_one_file_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 200
    options = ["--epochs", "1", "--prompts", "2", "--held-out", "2"]
    command = [str(EXAMPLE), *options, "--out", str(tmp_path / "model")]
    with running(tmp_path, "[scorers.geneval]\n", wait_for=("geneval",)) as server:
        monkeypatch.setattr(sys, "argv", command)
        monkeypatch.setenv("REWARD_URL", server.grpc_url)
        example = loaded()
        monkeypatch.setattr(example, "GROUP", 8)
        example.main()
    said = capsys.readouterr().out
    shares = [float(text) for text in re.findall(r"([\d.]+) right", said)]
    assert len(shares) == 3
    assert all(0 <= share <= 1 for share in shares)
    (moved,) = re.findall(r"within (\S+) of 1", said)
    # The second update sees a policy that the first has moved.
    assert 0 < float(moved) < 0.1
    name = "transformer/diffusion_pytorch_model.safetensors"
    before, after = (
        load_file(folder / name) for folder in (ROOT / "miniature/weights", tmp_path / "model")
    )
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key].float(), after[key].float()) for key in before)
