"""A gateway shows its key and its certificate to the servers behind it, and checks theirs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trustme
from server_process import BAD, HEADER, Server, eventually, items, run_cli, running
from typer.testing import CliRunner

from reward_client import RewardClient, ScorerInfo, TlsFiles
from reward_server.cli import app


def certificate(authority: trustme.CA, folder: Path, name: str) -> tuple[Path, Path]:
    made = authority.issue_cert(name)
    cert, key = folder / f"{name}.cert.pem", folder / f"{name}.key.pem"
    cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    key.write_bytes(made.private_key_pem.bytes())
    return cert, key


def info(client: RewardClient, name: str) -> ScorerInfo:
    return {found.name: found for found in client.list_scorers()}[name]


def test_keys_and_certificates_both_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = trustme.CA()
    ca = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca))
    cert, key = certificate(authority, tmp_path, "localhost")
    own_cert, own_key = certificate(authority, tmp_path, "gateway.example")
    keys = tmp_path / "keys.toml"
    made = CliRunner().invoke(app, ["keys", "create", "gateway", "--file", str(keys)])
    monkeypatch.setenv("GOOD_KEY", made.stdout.strip())
    monkeypatch.setenv("BAD_KEY", "no such key")
    behind = f"""{HEADER}keys_file = "{keys}"
tls_cert_file = "{cert}"
tls_key_file = "{key}"
tls_client_ca_file = "{ca}"
[scorers.mean]
scorer = "{BAD}:Mean"
"""
    for name in ("behind", "front"):
        (tmp_path / name).mkdir()
    with running(tmp_path / "behind", behind) as far:
        # By address, while the certificate is for the name: dns:/// targets are checked by name.
        target = f"dns:///localhost:{far.ports['grpc']}"
        common = f'''upstream = "{target}"
upstream_scorer = "mean"
upstream_ca_file = "{ca}"
'''
        shown = f'upstream_cert_file = "{own_cert}"\nupstream_key_file = "{own_key}"\n'
        front = f"""
[scorers.good]
{common}{shown}upstream_api_key_env = "GOOD_KEY"
[scorers.wrong_key]
{common}{shown}upstream_api_key_env = "BAD_KEY"
[scorers.no_certificate]
{common}upstream_api_key_env = "GOOD_KEY"
"""
        with running(tmp_path / "front", front) as near, near.client(attempts=1) as client:
            _wait_far(far, ca, own_cert, own_key)
            client.wait_ready(["good"])
            assert client.score(items(["a"]), ["good"]).results["good"].scores == (10.0,)
            eventually(lambda: info(client, "wrong_key").state == "FAILED")
            assert "refuses this server's API key" in info(client, "wrong_key").last_error
            assert "no such key" not in info(client, "wrong_key").last_error
            assert info(client, "no_certificate").state == "STARTING"
            assert "cannot reach" in info(client, "no_certificate").last_error
    half = tmp_path / "half.toml"
    half.write_text(f'[scorers.x]\nupstream = "a:1"\nupstream_cert_file = "{own_cert}"\n')
    refused = run_cli("config", "check", str(half))
    assert refused.returncode == 2
    assert "upstream_cert_file and upstream_key_file belong together" in refused.stderr


def _wait_far(far: Server, ca: Path, cert: Path, key: Path) -> None:
    url = f"grpcs://localhost:{far.ports['grpc']}"
    tls = TlsFiles(str(ca), str(cert), str(key))
    with RewardClient(url, api_key=os.environ["GOOD_KEY"], tls=tls) as client:
        client.wait_ready(["mean"])
