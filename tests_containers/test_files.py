"""The compose files: every combination is valid, and what they say holds for every service."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from tests_containers.stack import BASE, GPU, Stack

SECURE = "docker/compose.secure.yaml"
PROFILES = ("mini", "full", "monitoring", "tools", "train")
FILES = {
    "root": ("compose.yaml",),
    "base": BASE,
    "gpu": GPU,
    "secure": (*BASE, SECURE),
    "gpu-secure": (*GPU, SECURE),
}
COMBINATIONS = [c for n in (1, 2, 5) for c in itertools.combinations(PROFILES, n)]


def resolved(stack: Stack) -> dict[str, Any]:
    done = stack.compose("config", "--format", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("files", FILES.values(), ids=FILES)
def test_every_combination_of_files_and_profiles_is_valid(files: tuple[str, ...]) -> None:
    for profiles in COMBINATIONS:
        done = Stack(files, profiles).compose("config", "--quiet")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", ""), profiles


def test_plain_up_in_the_root_starts_the_miniature() -> None:
    stack = Stack(("compose.yaml",))
    done = stack.run(
        "env",
        "-u",
        "COMPOSE_FILE",
        "-u",
        "COMPOSE_PROFILES",
        "docker",
        "compose",
        "config",
        "--services",
    )
    assert sorted(done.stdout.split()) == ["gateway", "mini", "ocr"]


def test_what_every_service_has() -> None:
    services = resolved(Stack(GPU, PROFILES))["services"]
    assert len(services) == 10
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["logging"]["options"] == {"max-size": "10m", "max-file": "3"}, name
        assert name in {"models", "trainer"} or service["restart"] == "unless-stopped", name
        if name in {"models", "trainer"}:
            continue
        assert int(service["deploy"]["resources"]["limits"]["memory"]) > 0, name
        assert service["healthcheck"]["test"], name
        for port in service.get("ports", ()):
            assert port["host_ip"] == "127.0.0.1", name


def test_scorers_and_gateways_drain_before_they_are_killed() -> None:
    for name, service in resolved(Stack(BASE, ("mini", "full")))["services"].items():
        assert service["stop_grace_period"] == "40s", name
        if name.startswith("gateway"):
            waits = {c["condition"] for c in service["depends_on"].values()}
            assert waits == {"service_started"}, name


def test_the_secure_overlay_leaves_no_gateway_open() -> None:
    services = resolved(Stack((*BASE, SECURE), PROFILES))["services"]
    for name in ("gateway", "gateway-full"):
        environment = services[name]["environment"]
        assert environment["REWARD_SERVER__SERVER__ALLOW_UNAUTHENTICATED"] == "false"
        assert environment["REWARD_SERVER__SERVER__KEYS_FILE"] == "/run/secrets/reward_keys"


@pytest.mark.parametrize("name", ["GENEVAL_GPU", "PREFERENCE_GPU", "TRAINER_GPU"])
def test_a_missing_gpu_number_is_one_line_that_says_what_to_set(name: str) -> None:
    done = Stack(GPU, ("full",), {name: ""}).compose("config", "--quiet")
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1
    assert f"set {name} in .env" in done.stderr
