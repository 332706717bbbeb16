"""The client beside other people's protobuf, 4 to 7, without grpcio-health-checking."""

from __future__ import annotations

import re
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path

import pytest
from client_servers import Script

ROOT = Path(__file__).resolve().parents[2]
# flow_grpo's environment (wandb 0.18.7: below 6), the last of each major version, and the oldest.
VERSIONS = ("4.25.0", "4.25.8", "5.29.5", "6.33.1", "7.36.2")
USE = """
import sys, numpy as np, google.protobuf
import reward_client
from reward_client import GenEvalSpec, GenEvalObject, OcrTarget, RewardClient
from reward_server.api import json_mirror

assert google.protobuf.__version__ == sys.argv[1], google.protobuf.__version__
pixels = np.full((8, 8, 3), 7, np.uint8)
specs = [OcrTarget("STOP"), GenEvalSpec([GenEvalObject("star")])]
for url in sys.argv[2:]:
    with RewardClient(url) as client:
        client.wait_ready(["brightness"])
        found = client.score([pixels] * 2, "", ["brightness"], specs=specs)
        assert found["brightness"].scores == (7.0, 7.0)
        try:
            client.score([pixels], "", ["brigthness"])
        except reward_client.NotFound as error:
            assert "did you mean 'brightness'" in error.message
            body = json_mirror.error_to_json(error)
            assert body["error"]["retryable"] is False, body  # defaults are printed
assert "grpc_health" not in sys.modules
print("scored")
"""


def test_generated_code_asks_for_no_version_of_the_runtime() -> None:
    """protoc 26 and later write a check that only their own major version and the next one pass."""
    for file in (ROOT / "reward_client" / "_pb").rglob("*.py"):
        text = file.read_text("utf-8")
        assert "runtime_version" not in text, file
        assert "GRPC_GENERATED_VERSION" not in text, file


def test_the_client_requires_nothing_that_pins_protobuf_high() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    base = re.search(r"^dependencies = \[(.*?)\]", project, re.M | re.S)
    grpc = re.search(r"^grpc = \[(.*?)\]", project, re.M | re.S)
    assert base
    assert grpc
    assert '"protobuf>=4.25"' in base[1]
    assert "grpcio-health-checking" not in grpc[1]


@pytest.mark.exhaustive
@pytest.mark.parametrize("protobuf", VERSIONS)
def test_the_client_scores_beside(
    protobuf: str, grpc_script: Script, http_script: Script, tmp_path: Path
) -> None:
    venv.create(tmp_path, with_pip=False)
    python = tmp_path / "bin/python"
    wanted = [f"protobuf=={protobuf}", "grpcio>=1.60", "httpx", "numpy", "pillow"]
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    done = subprocess.run([*install, *wanted], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"no package index: {done.stderr.strip().splitlines()[-1]}")
    done = subprocess.run(
        [str(python), "-W", "error", "-c", USE, protobuf, grpc_script.url, http_script.url],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "scored\n"


def test_the_version_of_this_environment_is_one_of_those_tried() -> None:
    assert version("protobuf").split(".")[0] in {tried.split(".")[0] for tried in VERSIONS}
