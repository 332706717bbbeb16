"""The algorithm in one file: it runs against a real server, trains, and is short."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.server.server_process import ROOT, running

EXAMPLE = ROOT / "examples" / "flow_grpo.py"


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
        # As a script, in a process that has imported torch already.
        runpy.run_path(str(EXAMPLE), run_name="__main__")
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
