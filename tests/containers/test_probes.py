"""The probes of the manifests and the containers' health check, asked of real servers.

One scorer that fails must not make the others unreachable: not in its own pod, which Kubernetes
drops from the Service when its readiness probe fails, and not through the gateway.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from server_process import BAD, HEADER, ROOT, Server, eventually, items, run_cli, running

from reward_client import Unavailable

SCORERS = f"""
[scorers.good]
scorer = "{BAD}:Mean"
[scorers.bad]
scorer = "{BAD}:FailsSelfTest"
"""


@pytest.fixture(scope="module")
def pod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("pod"), SCORERS, wait_for=("good",)) as server:
        eventually(lambda: "FAILED" in server.get("/v1/scorers"))
        yield server


@pytest.fixture(scope="module")
def gateway(pod: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    address = f"127.0.0.1:{pod.ports['grpc']}"
    toml = "".join(f'[scorers.{name}]\nupstream = "{address}"\n' for name in ("good", "bad"))
    with running(tmp_path_factory.mktemp("gateway"), toml, wait_for=("good",)) as server:
        yield server


def probes() -> set[tuple[str, str]]:
    """Kind and path of every probe of every container in docker/k8s."""
    found = set()
    for file in (ROOT / "docker" / "k8s").rglob("*.yaml"):
        for manifest in yaml.safe_load_all(file.read_text()):
            if (manifest or {}).get("kind") != "Deployment":
                continue
            for container in manifest["spec"]["template"]["spec"].get("containers", ()):
                for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                    # An overlay's patch may change the scheme alone.
                    if path := container.get(kind, {}).get("httpGet", {}).get("path"):
                        found.add((kind, path))
    assert {kind for kind, _ in found} == {"startupProbe", "readinessProbe", "livenessProbe"}
    return found


def status(server: Server, path: str) -> int:
    try:
        with urllib.request.urlopen(server.http_url + path, timeout=30) as response:
            return response.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def health_check(server: Server) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "docker" / "healthcheck.py")],
        env={**os.environ, "REWARD_SERVER__SERVER__HTTP": f"127.0.0.1:{server.ports['http']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_failed_scorer_leaves_the_others_reachable(pod: Server, gateway: Server) -> None:
    for server in (pod, gateway):
        for kind, path in probes():
            assert status(server, path) == 200, (kind, path)
        done = health_check(server)
        assert done.returncode == 0, done.stdout
        assert "bad is " in done.stdout
    with gateway.client(attempts=1) as client:
        response = client.score(items(["ok"]), ["good", "bad"])
        assert response.results["good"].scores == (10.0,)
        assert set(response.results["bad"].errors) == {0}


def test_every_scorer_has_a_row_and_a_health_name_of_its_own(pod: Server) -> None:
    body = json.loads(pod.get("/readyz"))
    assert body["ready"] is True
    assert body["scorers"] == {"good": "READY", "bad": "FAILED"}
    assert "expected 1, found 2" in body["errors"]["bad"]
    assert status(pod, "/readyz?scorer=good") == 200
    assert status(pod, "/readyz?scorer=bad") == 503
    assert status(pod, "/readyz?scorer=absent") == 503
    serving, not_serving = (health_pb2.HealthCheckResponse.ServingStatus.Value(n) for n in STATES)
    with grpc.insecure_channel(pod.grpc_url.removeprefix("grpc://")) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        for name, expected in {
            "": serving,
            "reward.v1.RewardService": serving,
            "good": serving,
            "bad": not_serving,
        }.items():
            request = health_pb2.HealthCheckRequest(service=name)
            assert stub.Check(request, timeout=30).status == expected, name


STATES = ("SERVING", "NOT_SERVING")


def test_a_server_without_any_scorer_is_not_ready(tmp_path: Path) -> None:
    with running(tmp_path, f'[scorers.bad]\nscorer = "{BAD}:FailsSelfTest"\n') as server:
        eventually(lambda: "FAILED" in server.get("/v1/scorers"))
        assert status(server, "/readyz") == 503
        assert status(server, "/livez") == 200
        done = health_check(server)
        assert done.returncode == 1
        assert "expected 1, found 2" in done.stdout
        with server.client(attempts=1) as client, pytest.raises(Unavailable):
            client.score(items(["ok"]), ["bad"])


def test_the_health_check_needs_no_key(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    made = run_cli("keys", "create", "probe", "--file", str(keys))
    assert made.returncode == 0, made.stderr
    toml = HEADER + f'keys_file = "{keys}"\n' + SCORERS
    with running(tmp_path, toml) as server:
        # Without a key a probe learns the states, and not the reasons.
        eventually(lambda: "FAILED" in health_check(server).stdout)
        eventually(lambda: health_check(server).returncode == 0)
        done = health_check(server)
    assert done.stderr == ""
    assert "bad is FAILED: see /v1/scorers or the log" in done.stdout
    assert "expected 1" not in done.stdout


def test_the_gateway_waits_for_no_scorer() -> None:
    compose = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
    for name in ("gateway", "gateway-full"):
        conditions = {d["condition"] for d in compose["services"][name]["depends_on"].values()}
        assert conditions == {"service_started"}, name
