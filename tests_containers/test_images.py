"""The images: sizes, labels, user, and that each holds its own family and no other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests_containers.conftest import REVISION
from tests_containers.stack import docker

GB, MB = 10**9, 10**6
# Bytes. With CPU builds of torch; geneval, preference and trainer are for GPUs and have no bound.
LIMITS = {"gateway": 300 * MB, "ocr": 900 * MB, "mini": 1600 * MB}
IMPORTS = {
    "gateway": ({"grpc", "fastapi"}, {"torch", "scipy", "cv2", "trainer"}),
    "ocr": ({"rapidocr", "onnxruntime"}, {"torch", "trainer"}),
    "geneval": ({"torch", "torchvision", "open_clip", "transformers"}, {"rapidocr", "trainer"}),
    "preference": ({"torch", "torchvision", "open_clip", "transformers"}, {"rapidocr", "trainer"}),
    "trainer": ({"torch", "diffusers", "peft", "trainer"}, {"fastapi", "rapidocr"}),
    "mini": ({"torch", "diffusers", "rapidocr", "scipy", "trainer"}, {"open_clip"}),
}


def config_of(name: str) -> dict[str, Any]:
    return json.loads(docker("image", "inspect", f"flow-reward/{name}:test"))[0]


def test_sizes_are_within_their_bounds(images: None, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = {name: config_of(name)["Size"] for name in IMPORTS}
    with capsys.disabled():
        print("\nimage sizes: " + ", ".join(f"{n} {s / MB:.0f} MB" for n, s in sizes.items()))
    assert not {n: sizes[n] for n, limit in LIMITS.items() if sizes[n] > limit}


@pytest.mark.parametrize("name", IMPORTS)
def test_an_image_says_what_it_is_and_holds_its_family(images: None, name: str) -> None:
    config = config_of(name)["Config"]
    assert config["User"] == "10001:10001"
    labels = {key.rpartition(".")[2]: value for key, value in config["Labels"].items()}
    assert labels["version"] == "0.2.0"
    assert labels["revision"] == REVISION
    present, absent = IMPORTS[name]
    program = (
        "import importlib.util as u, json, sys;"
        "print(json.dumps([n for n in sys.argv[1:] if u.find_spec(n)]))"
    )
    run = ["run", "--rm", "--network", "none", "--read-only", "--cap-drop", "ALL"]
    run += ["--entrypoint", "python", f"flow-reward/{name}:test", "-c", program]
    assert set(json.loads(docker(*run, *present, *absent))) == present


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("gateway", ["config", "check", "/etc/flow-reward/gateway-full.toml"], "ok, 8 scorers"),
        ("geneval", ["config", "check", "/etc/flow-reward/geneval.toml"], "ok, 1 scorer"),
        ("preference", ["models", "list"], "pickscore"),
        ("trainer", ["presets", "list"], "geneval_sd35m"),
    ],
)
def test_commands_run_without_rights_and_without_a_network(
    images: None, name: str, arguments: list[str], says: str
) -> None:
    run = [
        "run",
        "--rm",
        "--network",
        "none",
        "--read-only",
        "--cap-drop",
        "ALL",
        "--tmpfs",
        "/tmp",
    ]
    run += ["--env", "REWARD_SERVER__SERVER__ALLOW_UNAUTHENTICATED=true"]
    assert says in docker(*run, f"flow-reward/{name}:test", *arguments)
