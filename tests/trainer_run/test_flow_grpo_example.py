"""The algorithm in one file: it runs against a real server, trains, and is short."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.server.server_process import ROOT, running

EXAMPLE = ROOT / "examples" / "flow_grpo.py"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_algorithm_in_one_file_trains(tmp_path: Path) -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 200
    command = [sys.executable, str(EXAMPLE), "--epochs", "1", "--prompts", "2"]
    with running(tmp_path, "[scorers.geneval]\n", wait_for=("geneval",)) as server:
        done = subprocess.run(
            [*command, "--held-out", "2", "--out", str(tmp_path / "model")],
            cwd=ROOT,
            env={**os.environ, "REWARD_URL": server.grpc_url, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    shares = [float(text) for text in re.findall(r"([\d.]+) right", done.stdout)]
    assert len(shares) == 3
    assert all(0 <= share <= 1 for share in shares)
    (moved,) = re.findall(r"within (\S+) of 1", done.stdout)
    # The second update sees a policy that the first has moved.
    assert 0 < float(moved) < 0.1
    name = "transformer/diffusion_pytorch_model.safetensors"
    before, after = (
        load_file(folder / name) for folder in (ROOT / "miniature/weights", tmp_path / "model")
    )
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[key].float(), after[key].float()) for key in before)
