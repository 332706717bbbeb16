"""Beyond loopback, a server wants keys, mTLS or a clear yes; otherwise one line and status 2."""

from __future__ import annotations

from pathlib import Path

import pytest
from server_process import run_cli

from reward_server import config
from reward_server.config import ConfigError
from reward_server.security.guard import check_exposure, is_loopback, open_guard


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("192.168.0.4:1", False),
        ("localhost.example:1", False),
        ("myhost:1", False),
    ],
)
def test_loopback_is_told(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


@pytest.mark.parametrize("key", ["http", "grpc"])
def test_each_address_counts(key: str) -> None:
    server = config.load().server.model_copy(update={key: "0.0.0.0:1"})
    with pytest.raises(ConfigError, match=rf"server\.{key} = '0\.0\.0\.0:1'.*keys_file"):
        check_exposure(server)
    for way_out in (
        {"allow_unauthenticated": True},
        {"keys_file": "keys.toml"},
        {"tls_client_ca_file": "ca.pem"},
        {key: "off"},
    ):
        check_exposure(server.model_copy(update=way_out))


def test_a_server_certificate_alone_lets_nobody_in_unknown() -> None:
    server = config.load().server.model_copy(
        update={"http": "0.0.0.0:1", "tls_cert_file": "c", "tls_key_file": "k"}
    )
    with pytest.raises(ConfigError, match="nothing asks callers who they are"):
        open_guard(server)


def test_serve_and_config_check_say_it(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[server]\nhttp = "0.0.0.0:0"\ngrpc = "off"\n[scorers.jpeg]\n')
    for arguments in (
        ("serve", "--config", str(file)),
        ("config", "check", str(file)),
        ("serve", "--http", "0.0.0.0:0", "--grpc", "off", "--scorers", "jpeg"),
    ):
        refused = run_cli(*arguments)
        assert refused.returncode == 2
        (line,) = refused.stderr.splitlines()
        assert "--allow-unauthenticated" in line
        assert "reward-server keys create" in line
    allowed = run_cli(
        "config", "check", str(file), REWARD_SERVER__SERVER__ALLOW_UNAUTHENTICATED="true"
    )
    assert allowed.returncode == 0, allowed.stderr
