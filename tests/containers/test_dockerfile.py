"""What can be said of images and configurations without an engine."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from reward_server import config

ROOT = Path(__file__).parents[2]
HADOLINT = Path(sys.executable).with_name("hadolint")
CONFIGS = sorted((ROOT / "docker" / "config").glob("*.toml"))


def test_hadolint_has_nothing_to_say() -> None:
    done = subprocess.run(
        [HADOLINT, "docker/Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_builds_need_no_registry_but_the_base_image() -> None:
    text = (ROOT / "docker" / "Dockerfile").read_text()
    assert "# syntax" not in text
    stages = set(re.findall(r" AS ([a-z-]+)$", text, re.MULTILINE))
    bases = set(re.findall(r"^FROM (\S+)", text, re.MULTILINE))
    assert bases - stages == {"${BASE_IMAGE}", "scratch"}
    assert {"gateway", "geneval", "ocr", "preference", "trainer", "mini"} <= stages


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_configurations_of_the_images_are_valid(file: Path) -> None:
    assert config.load(file).scorers


def test_a_gateway_offers_what_the_services_behind_it_have() -> None:
    served = {f.stem: set(config.load(f).scorers) for f in CONFIGS}
    for gateway in ("gateway-mini", "gateway-full"):
        for name, section in config.load(ROOT / f"docker/config/{gateway}.toml").scorers.items():
            for upstream in section.targets:
                service = upstream.removeprefix("dns:///").partition(":")[0]
                assert name in served[service]


_spec = importlib.util.spec_from_file_location("compose_up", ROOT / "scripts" / "compose_up.py")
assert _spec is not None
assert _spec.loader is not None
compose_up = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(compose_up)


# What Docker Engine 26 and the NVIDIA Container Toolkit print.
@pytest.mark.parametrize(
    ("said", "does"),
    [
        (
            "Error response from daemon: driver failed programming external connectivity on"
            " endpoint x: Error starting userland proxy: listen tcp4 127.0.0.1:8000: bind: address"
            " already in use",
            "REWARD_HTTP_PORT",
        ),
        (
            "Error response from daemon: driver failed programming external connectivity on"
            " endpoint x: Bind for 127.0.0.1:8000 failed: port is already allocated",
            "REWARD_HTTP_PORT",
        ),
        (
            'Error response from daemon: could not select device driver "nvidia" with capabilities:'
            " [[gpu]]",
            "NVIDIA Container Toolkit",
        ),
        (
            "nvidia-container-cli: device error: 9: unknown device: unknown",
            "there is no GPU 9 on this host",
        ),
        (
            "error while interpolating services.x: required variable GENEVAL_GPU is missing a"
            " value: set GENEVAL_GPU in .env",
            "set GENEVAL_GPU in .env",
        ),
        ("no service selected", "COMPOSE_PROFILES"),
        (
            "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker"
            " daemon running?",
            "no Docker engine answers",
        ),
        ("docker: 'compose' is not a docker command.", "compose plugin"),
    ],
)
def test_what_the_engine_says_becomes_one_line_of_advice(said: str, does: str) -> None:
    lines = compose_up.advice(f" Container x  Starting\n{said}\n")
    assert len(lines) == 1
    assert does in lines[0]
    assert "\n" not in lines[0]


def test_what_is_not_known_is_left_as_it_is() -> None:
    assert compose_up.advice("Container x Started\nsome other failure\n") == []
