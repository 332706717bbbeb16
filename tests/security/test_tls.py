"""TLS and mTLS over both APIs, with every client; renewal; broken files in one line."""

from __future__ import annotations

import datetime
import shutil
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme
from server_process import Server, eventually, items, run_cli, running

from reward_client import AsyncRewardClient, InvalidArgument, RewardClient, RewardError, TlsFiles
from reward_server.config import ConfigError, ServerConfig
from reward_server.security.tls import tls_from

SERVER = """
[server]
http = "127.0.0.1:0"
grpc = "127.0.0.1:0"
log_format = "json"
tls_cert_file = "{cert}"
tls_key_file = "{key}"
{more}
[scorers.bright]
scorer = "tests.scorers_bad.bad:Mean"
"""


@dataclass(frozen=True)
class Files:
    """An authority, and certificates that it signed."""

    ca: Path
    cert: Path
    key: Path
    client_cert: Path
    client_key: Path

    @property
    def trusting(self) -> TlsFiles:
        return TlsFiles(ca_file=str(self.ca))

    @property
    def mutual(self) -> TlsFiles:
        return TlsFiles(str(self.ca), str(self.client_cert), str(self.client_key))


def files_in(folder: Path) -> Files:
    authority = trustme.CA()
    files = Files(*(folder / f"{name}.pem" for name in ("ca", "cert", "key", "ccert", "ckey")))
    authority.cert_pem.write_to_path(files.ca)
    issue(authority, files.cert, files.key, "localhost", "127.0.0.1")
    issue(authority, files.client_cert, files.client_key, "trainer.example")
    return files


def issue(
    authority: trustme.CA, cert: Path, key: Path, *names: str, days: float | None = None
) -> None:
    until = None
    if days is not None:
        until = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=days)
    made = authority.issue_cert(*names, not_after=until)
    cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    key.write_bytes(made.private_key_pem.bytes())


def urls(server: Server) -> tuple[str, str]:
    return (
        f"grpcs://localhost:{server.ports['grpc']}",
        f"https://localhost:{server.ports['http']}",
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return files_in(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def server(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("tls")
    toml = SERVER.format(cert=files.cert, key=files.key, more="")
    with running(folder, toml) as server:
        for url in urls(server):
            with RewardClient(url, tls=files.trusting) as client:
                client.wait_ready(["bright"], 60)
        yield server
        assert server.stop() == 0


@pytest.fixture(scope="module")
def mutual_server(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("mtls")
    more = f'tls_client_ca_file = "{files.ca}"'
    with running(folder, SERVER.format(cert=files.cert, key=files.key, more=more)) as server:
        with RewardClient(urls(server)[0], tls=files.mutual) as client:
            client.wait_ready(["bright"], 60)
        yield server
        assert server.stop() == 0


@pytest.mark.parametrize("api", [0, 1])
async def test_tls_with_every_client(server: Server, files: Files, api: int) -> None:
    url = urls(server)[api]
    with RewardClient(url, tls=files.trusting) as client:
        assert client.score(items(["a"]), ["bright"]).results["bright"].scores == (10.0,)
    async with AsyncRewardClient(url, tls=files.trusting) as client:
        found = await client.score(items(["a"]), ["bright"])
        assert found.results["bright"].scores == (10.0,)


@pytest.mark.parametrize("api", [0, 1])
def test_a_client_that_does_not_trust_us_does_not_talk(
    server: Server, api: int, tmp_path: Path
) -> None:
    stranger = files_in(tmp_path)
    for tls in (None, stranger.trusting):
        with (
            RewardClient(urls(server)[api], tls=tls, attempts=1, timeout_s=5) as client,
            pytest.raises(RewardError),
        ):
            client.list_scorers()
    plain = urls(server)[api].replace("s://", "://")
    with RewardClient(plain, attempts=1, timeout_s=5) as client, pytest.raises(RewardError):
        client.list_scorers()


@pytest.mark.parametrize("api", [0, 1])
def test_another_host_name_is_refused(
    tmp_path: Path, files: Files, api: int, server: Server
) -> None:
    # The certificate is for localhost and 127.0.0.1; any other name of this host must fail.
    url = urls(server)[api].replace("localhost", "ip6-localhost")
    try:
        socket.getaddrinfo("ip6-localhost", 1)
    except OSError:
        url = url.replace("ip6-localhost", "127.0.0.2")
    with (
        RewardClient(url, tls=files.trusting, attempts=1, timeout_s=5) as client,
        pytest.raises(RewardError),
    ):
        client.list_scorers()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_protocols_are_refused(server: Server, version: ssl.TLSVersion) -> None:
    for api in ("http", "grpc"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = context.maximum_version = version
        with (
            socket.create_connection(("127.0.0.1", server.ports[api]), 10) as sock,
            pytest.raises((ssl.SSLError, ConnectionError)),
        ):
            context.wrap_socket(sock)


@pytest.mark.parametrize("api", [0, 1])
def test_mutual_tls(mutual_server: Server, files: Files, api: int, tmp_path: Path) -> None:
    url = urls(mutual_server)[api]
    with RewardClient(url, tls=files.mutual) as client:
        assert client.score(items(["a"]), ["bright"]).results["bright"].scores == (10.0,)
    stranger = files_in(tmp_path)
    forged = TlsFiles(str(files.ca), str(stranger.client_cert), str(stranger.client_key))
    for tls in (files.trusting, forged):
        with (
            RewardClient(url, tls=tls, attempts=1, timeout_s=5) as client,
            pytest.raises(RewardError),
        ):
            client.list_scorers()


def served_certificate(server: Server, api: str) -> str:
    return ssl.get_server_certificate(("127.0.0.1", server.ports[api]), timeout=10)


def test_a_renewed_certificate_is_taken_without_a_restart(tmp_path: Path) -> None:
    folder = tmp_path / "certificates"
    folder.mkdir()
    files = files_in(folder)
    toml = SERVER.format(cert=files.cert, key=files.key, more="")
    with running(tmp_path, toml) as server:
        before = {api: served_certificate(server, api) for api in ("http", "grpc")}
        assert before["http"] == before["grpc"]
        old_key = files.key.read_bytes()
        files.key.write_bytes(b"half of a renewal")
        eventually(lambda: "certificate not reloaded" in server.log_file.read_text(), 10)
        for api in ("http", "grpc"):
            assert served_certificate(server, api) == before[api]
        files.key.write_bytes(old_key)
        renewed = tmp_path / "renewed"
        renewed.mkdir()
        new = files_in(renewed)
        for name in ("ca", "cert", "key"):
            shutil.copy(getattr(new, name), getattr(files, name))
        for api in ("http", "grpc"):
            eventually(lambda api=api: served_certificate(server, api) != before[api], 15)
        for url in urls(server):
            with RewardClient(url, tls=new.trusting) as client:
                client.wait_ready(["bright"], 60)


# --- broken files ---------------------------------------------------------------------------------


def server_config(**files: object) -> ServerConfig:
    return ServerConfig.model_validate({key: str(value) for key, value in files.items()})


def refused(**files: object) -> str:
    with pytest.raises(ConfigError) as caught:
        tls_from(server_config(**files))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_broken_files_are_one_line(files: Files, tmp_path: Path) -> None:
    good = {"tls_cert_file": files.cert, "tls_key_file": files.key}
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    other = files_in(tmp_path)
    assert tls_from(server_config()) is None
    assert tls_from(server_config(**good, tls_client_ca_file=files.ca)) is not None
    assert "needs both" in refused(tls_cert_file=files.cert)
    assert "needs both" in refused(tls_key_file=files.key)
    assert "needs both" in refused(tls_client_ca_file=files.ca)
    assert "cannot read" in refused(**{**good, "tls_cert_file": "none.pem"})
    assert "cannot read" in refused(**{**good, "tls_key_file": tmp_path})
    assert "is not the key of" in refused(**{**good, "tls_key_file": other.key})
    assert "not a PEM certificate" in refused(**{**good, "tls_cert_file": garbage})
    assert "holds no PEM certificate" in refused(**good, tls_client_ca_file=garbage)
    assert "authority" in refused(**good, tls_client_ca_file=files.client_cert)


def test_an_expired_certificate_is_told_before_any_caller_meets_it(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issue(trustme.CA(), cert, key, "localhost", days=-1)
    assert "certificate has expired" in refused(tls_cert_file=cert, tls_key_file=key)
    told = run_cli(
        "serve",
        "--scorers",
        "jpeg",
        REWARD_SERVER__SERVER__TLS_CERT_FILE=f"'{cert}'",
        REWARD_SERVER__SERVER__TLS_KEY_FILE=f"'{key}'",
    )
    assert told.returncode == 2
    (line,) = told.stderr.splitlines()
    assert "certificate has expired" in line


def test_the_client_names_what_is_wrong(files: Files, tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("no certificate")
    for scheme in ("grpcs", "https"):
        url = f"{scheme}://localhost:1"
        for tls, words in (
            (TlsFiles("none.pem"), "cannot read none.pem"),
            (TlsFiles(str(garbage)), "holds no PEM certificate"),
            (TlsFiles(None, str(garbage), str(files.key)), "not a PEM certificate"),
            (TlsFiles(None, str(files.cert), str(files.client_key)), "its key"),
        ):
            for client in (RewardClient, AsyncRewardClient):
                with pytest.raises(InvalidArgument, match=words):
                    client(url, tls=tls)
    with pytest.raises(InvalidArgument, match="belong together"):
        TlsFiles(client_cert_file="a.pem")
    with pytest.raises(InvalidArgument, match="write grpcs://"):
        RewardClient("grpc://localhost:1", tls=files.trusting)
    assert TlsFiles.from_env({}) is None
    assert TlsFiles.from_env({"REWARD_CA_FILE": "ca.pem"}) == TlsFiles("ca.pem")
