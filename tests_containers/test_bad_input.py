"""What goes wrong outside of us: each gives one clear line that says what to do."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from reward_client import RewardClient
from reward_client._tls import TlsFiles
from reward_client.errors import Code, RewardError
from tests_containers import pictures
from tests_containers.stack import BASE, GPU, ROOT, Stack, composed, docker, override

UP = (sys.executable, "scripts/compose_up.py")
# Long enough to load, then one check decides.
DECIDES = {"healthcheck": {"start_period": "30s", "interval": "3s", "retries": 1}}


@pytest.fixture
def clean() -> Iterator[list[Stack]]:
    """Stacks that a test starts; taken down afterwards."""
    stacks: list[Stack] = []
    yield stacks
    for stack in stacks:
        stack.down()


def failed_up(stack: Stack, *arguments: str) -> str:
    """The line in which `make up` says what to do."""
    done = stack.run(*UP, *arguments)
    assert done.returncode != 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("make up: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_a_port_in_use(images: None, clean: list[Stack]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        clean.append(Stack(env={"REWARD_HTTP_PORT": port}))
        line = failed_up(clean[0], "--no-deps", "gateway")
    assert "another program holds the port" in line
    assert "REWARD_HTTP_PORT" in line


def test_no_nvidia_runtime(images: None, clean: list[Stack]) -> None:
    if "nvidia" in docker("info", "--format", "{{json .Runtimes}}"):
        pytest.skip("this engine has an NVIDIA runtime")
    clean.append(Stack(GPU, ("full",)))
    assert "install the NVIDIA Container Toolkit" in failed_up(clean[0], "geneval")


def test_nothing_selected() -> None:
    assert "set COMPOSE_PROFILES in .env" in failed_up(Stack(profiles=()))


def test_no_engine() -> None:
    stack = Stack(env={"DOCKER_HOST": "unix:///nowhere.sock"})
    assert "no Docker engine answers" in failed_up(stack)


def test_a_volume_without_weights(images: None, clean: list[Stack], tmp_path: Path) -> None:
    """The container stays unhealthy; its health check and its log say which command helps."""
    file = override(tmp_path, {"geneval": DECIDES})
    clean.append(Stack((*BASE, file), ("full",)))
    line = failed_up(clean[0], "geneval")
    assert line.startswith("make up: geneval is not healthy: geneval is ")
    assert "models pull" in line
    assert "models pull" in clean[0].compose("logs", "geneval").stdout
    assert "Traceback" not in line


def test_a_broken_self_test(images: None, clean: list[Stack], tmp_path: Path) -> None:
    """The service is healthy, for its sound scorers score; its health check gives the reason."""
    changed = {
        **DECIDES,
        "environment": {
            "PYTHONPATH": "/extra",
            "REWARD_SERVER__SCORERS__BROKEN__SCORER": "scorers_bad.bad:FailsSelfTest",
        },
        "command": ["serve", "--config", "/etc/flow-reward/ocr.toml"],
        "volumes": [f"{ROOT}/tests/scorers_bad:/extra/scorers_bad:ro"],
    }
    stack = Stack((*BASE, override(tmp_path, {"ocr": changed})))
    clean.append(stack)
    stack.up("ocr")
    line = docker("exec", stack.containers("ocr")[0], "healthcheck")
    assert line.startswith("ready; broken is FAILED: ")
    reason = "self-test"
    assert reason in line
    assert reason in stack.compose("logs", "ocr").stdout
    ready = docker("exec", stack.containers("ocr")[0], "reward-server", "scorers")
    assert "READY" in ready
    assert "FAILED" in ready


@pytest.fixture(scope="module")
def secured(images: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Path]]:
    """The service with keys and TLS, as compose.secure.yaml has it; and its folder of secrets."""
    folder = tmp_path_factory.mktemp("secrets")
    folder.chmod(0o755)
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "localhost")
    certificate.private_key_pem.write_to_path(folder / "tls.key")
    certificate.cert_chain_pems[0].write_to_path(folder / "tls.crt")
    authority.cert_pem.write_to_path(folder / "ca.crt")
    create = [sys.executable, "-m", "reward_server", "keys", "create", "trainer"]
    done = subprocess.run(
        [*create, "--file", str(folder / "keys.toml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    (folder / "key").write_text(done.stdout.strip().split()[-1])
    subprocess.run(["chown", "-R", "10001", folder], check=True)
    env = {
        "REWARD_KEYS_FILE": str(folder / "keys.toml"),
        "REWARD_TLS_CERT_FILE": str(folder / "tls.crt"),
        "REWARD_TLS_KEY_FILE": str(folder / "tls.key"),
    }
    with composed(Stack((*BASE, "docker/compose.secure.yaml"), env=env)) as stack:
        yield stack, folder


def test_a_wrong_key_and_no_key_are_refused_in_one_line(secured: tuple[Stack, Path]) -> None:
    stack, folder = secured
    items, tls = pictures.signs(2), TlsFiles(ca_file=str(folder / "ca.crt"))
    grpc, http = (url.replace("://", "s://") for url in (stack.grpc_url, stack.http_url))
    key = (folder / "key").read_text()
    for url in (grpc, http):
        with RewardClient(url, api_key=key, tls=tls) as client:
            assert not client.score(items, ["ocr"]).results["ocr"].errors
        for wrong in (key[:-4] + "0000", None):
            with (
                RewardClient(url, api_key=wrong, tls=tls) as client,
                pytest.raises(RewardError) as failed,
            ):
                client.score(items, ["ocr"])
            assert failed.value.code is Code.UNAUTHENTICATED
            assert "key" in failed.value.message
            assert "\n" not in failed.value.message
            assert key[-8:] not in failed.value.message


def test_a_plain_connection_to_a_port_with_tls_gets_nothing(secured: tuple[Stack, Path]) -> None:
    stack, _ = secured
    with socket.create_connection(("127.0.0.1", stack.port(8000)), 5) as plain:
        plain.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b"200 OK" not in plain.recv(4096)


def test_secrets_that_the_server_cannot_read(
    images: None, clean: list[Stack], tmp_path: Path
) -> None:
    for name in ("keys.toml", "tls.crt", "tls.key"):
        (tmp_path / name).write_text("")
        (tmp_path / name).chmod(0o600)
    env = {
        "REWARD_KEYS_FILE": str(tmp_path / "keys.toml"),
        "REWARD_TLS_CERT_FILE": str(tmp_path / "tls.crt"),
        "REWARD_TLS_KEY_FILE": str(tmp_path / "tls.key"),
    }
    file = override(tmp_path, {"gateway": {"restart": "no"}})
    clean.append(Stack((*BASE, "docker/compose.secure.yaml", file), env=env))
    failed = clean[0].compose("up", "--wait", "--no-deps", "gateway")
    assert failed.returncode != 0
    said = [
        line
        for line in clean[0].compose("logs", "--no-log-prefix", "gateway").stdout.splitlines()
        if "reward-server: " in line
    ]
    assert len(said) == 1
    assert "Permission denied" in said[0]
