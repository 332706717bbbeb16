"""API keys: at rest, in the file, their limits, and over both APIs of a running server."""

from __future__ import annotations

import http.client
import json
import math
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given, settings
from hypothesis import strategies as st
from server_process import Server, eventually, items, run_cli, running
from typer.testing import CliRunner

from reward_client import (
    PermissionDenied,
    Priority,
    ResourceExhausted,
    RewardClient,
    RewardError,
    ScoreRequest,
    ScorerSelector,
    Unauthenticated,
)
from reward_server.cli import app
from reward_server.config import ConfigError
from reward_server.security import keys
from reward_server.security.access import Access, Caller
from reward_server.security.keys import KeyEntry, KeyRing

SERVER = """
[server]
http = "127.0.0.1:0"
grpc = "127.0.0.1:0"
log_format = "json"
keys_file = "KEYS"
[scorers.jpeg]
[scorers.bright]
scorer = "tests.scorers_bad.bad:Mean"
"""


def create(file: Path, name: str, *options: str) -> str:
    made = CliRunner().invoke(app, ["keys", "create", name, "--file", str(file), *options])
    assert made.exit_code == 0, made.output
    return made.stdout.strip()


# --- the file -------------------------------------------------------------------------------------


def test_a_key_is_random_and_only_its_hash_is_written(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    made = [create(file, f"k{i}") for i in range(4)]
    assert len(set(made)) == 4
    text = file.read_text()
    for key in made:
        assert len(key) >= 43  # 256 bits in base64
        assert key not in text
        assert key.removeprefix(keys.PREFIX) not in text
        assert keys.digest(key) in text
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [keys.read(file).find(key) for key in made] == ["k0", "k1", "k2", "k3"]


def test_list_and_revoke(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    key = create(file, "lab", "--priority", "eval", "--items-per-s", "50", "--scorers", "jpeg,ocr")
    listed = CliRunner().invoke(app, ["keys", "list", "--file", str(file)])
    assert listed.exit_code == 0
    for word in ("lab", "EVAL", "50", "100", "jpeg, ocr"):
        assert word in listed.stdout
    assert key not in listed.output
    assert keys.digest(key) not in listed.output
    for arguments, words in (
        (["create", "lab"], "already"),
        (["create", "a b"], "key name"),
        (["revoke", "lba"], "it has: lab"),
    ):
        wrong = CliRunner().invoke(app, ["keys", *arguments, "--file", str(file)])
        assert wrong.exit_code == 2
        assert wrong.stderr.count("\n") == 1
        assert words in wrong.stderr
    assert CliRunner().invoke(app, ["keys", "revoke", "lab", "-f", str(file)]).exit_code == 0
    assert keys.read(file).entries == {}


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.text("aZ09_.-", min_size=1, max_size=20).map("x".__add__),
        st.builds(
            KeyEntry,
            sha256=st.binary(min_size=32, max_size=32).map(bytes.hex),
            priority=st.sampled_from(Priority),
            items_per_s=st.floats(0, 1e6),
            burst_items=st.integers(0, 10**6),
            scorers=st.lists(st.sampled_from(["jpeg", "hpsv2.1", "my-own_1"])).map(tuple),
        ),
        max_size=4,
    ).filter(lambda entries: len({e.sha256 for e in entries.values()}) == len(entries))
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, entries: dict[str, KeyEntry]
) -> None:
    file = tmp_path_factory.mktemp("keys") / "keys.toml"
    keys.write(file, KeyRing(entries))
    assert keys.read(file).entries == entries


HASH = "0" * 64


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[keys.a]\nsha256 = '12'\n", "keys.a: sha256"),
        ("[keys.a]\n", "keys.a: sha256"),
        (f"[keys.a]\nsha256 = '{HASH}'\nprio = 'EVAL'\n", "keys.a: prio"),
        (f"[keys.a]\nsha256 = '{HASH}'\npriority = 'HIGH'\n", "keys.a: priority"),
        (f"[keys.a]\nsha256 = '{HASH}'\n[keys.b]\nsha256 = '{HASH}'\n", "share one key"),
        (f"[keys.'a b']\nsha256 = '{HASH}'\n", "key name 'a b'"),
        (f"[keys.a]\nsha256 = '{HASH}'\nscorers = ['a b']\n", "keys.a: scorers"),
        ("[kyes.a]\n", "unknown table 'kyes'"),
        ("keys = 3\n", "must hold tables"),
        ("[keys\n", "not valid TOML"),
    ],
)
def test_a_broken_file_is_one_line_without_hashes(tmp_path: Path, toml: str, words: str) -> None:
    file = tmp_path / "keys.toml"
    file.write_text(toml)
    with pytest.raises(ConfigError) as caught:
        keys.read(file)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    assert HASH not in message


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    refused = run_cli("serve", "--scorers", "jpeg", REWARD_SERVER__SERVER__KEYS_FILE="'none.toml'")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert "reward-server keys create" in refused.stderr


def test_a_file_that_others_can_read_is_told(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    create(file, "a")
    assert Access(file).warnings() == []
    file.chmod(0o644)
    (warning,) = Access(file).warnings()
    assert "chmod 600" in warning


def test_every_entry_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    real = keys.hmac.compare_digest

    def counting(a: bytes, b: bytes) -> bool:
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr(keys.hmac, "compare_digest", counting)
    made = [keys.new_key() for _ in range(5)]
    ring = KeyRing(
        {
            f"k{i}": KeyEntry.model_validate({"sha256": keys.digest(key)})
            for i, key in enumerate(made)
        }
    )
    for key, name in ((made[0], "k0"), (made[4], "k4"), ("wrong", None), ("", None)):
        compared.clear()
        assert ring.find(key) == name
        assert len(compared) == 5


# --- limits ---------------------------------------------------------------------------------------


def access_with(tmp_path: Path, clock: list[float], **limits: Any) -> tuple[Access, Caller]:
    file = tmp_path / "keys.toml"
    key = keys.new_key()
    keys.write(file, KeyRing({"a": KeyEntry(sha256=keys.digest(key), **limits)}))
    access = Access(file, lambda: clock[0])
    return access, access.identify(f"Bearer {key}", "peer")


def spend(access: Access, caller: Caller, n: int) -> None:
    with access.charged(caller, n):
        pass


def wait_told(access: Access, caller: Caller, n: int) -> float | None:
    """None if it passed, else the seconds to wait that were told."""
    try:
        spend(access, caller, n)
    except ResourceExhausted as error:
        return error.retry_after_s
    return None


def test_the_wait_that_is_told_is_true(tmp_path: Path) -> None:
    clock = [0.0]
    access, caller = access_with(tmp_path, clock, items_per_s=10, burst_items=20)
    spend(access, caller, 15)
    with pytest.raises(ResourceExhausted) as caught:
        spend(access, caller, 10)
    wait_s = caught.value.retry_after_s or 0.0
    assert wait_s == pytest.approx(0.5)
    clock[0] += wait_s - 1e-3
    with pytest.raises(ResourceExhausted):
        spend(access, caller, 10)
    clock[0] += 2e-3
    spend(access, caller, 10)


@settings(max_examples=40, deadline=None)
@given(
    steps=st.lists(st.tuples(st.floats(0, 5), st.integers(1, 100)), max_size=60),
    rate=st.floats(1, 50),
    burst=st.integers(1, 60),
)
def test_no_more_than_rate_and_burst_ever_passes(
    tmp_path_factory: pytest.TempPathFactory,
    steps: list[tuple[float, int]],
    rate: float,
    burst: int,
) -> None:
    clock = [0.0]
    folder = tmp_path_factory.mktemp("rate")
    access, caller = access_with(folder, clock, items_per_s=rate, burst_items=burst)
    passed, largest = 0, 0
    for wait_s, n in steps:
        clock[0] += wait_s
        told_s = wait_told(access, caller, n)
        if told_s is not None:
            assert 0 < told_s < math.inf
            clock[0] += told_s + 1e-6
            assert wait_told(access, caller, n) is None  # what was promised holds
        passed, largest = passed + n, max(largest, n)
        assert passed <= burst + rate * clock[0] + largest + 1e-3


def test_a_full_server_costs_nothing(tmp_path: Path) -> None:
    clock = [0.0]
    access, caller = access_with(tmp_path, clock, items_per_s=1, burst_items=5)
    for _ in range(3):
        with pytest.raises(ResourceExhausted, match="full"), access.charged(caller, 5):
            raise ResourceExhausted("the server is full")
    spend(access, caller, 5)
    with pytest.raises(ResourceExhausted, match="rate"):
        spend(access, caller, 1)


def test_priorities_and_scorers(tmp_path: Path) -> None:
    access, caller = access_with(tmp_path, [0.0], priority="EVAL", scorers=("jpeg",))
    jpeg = (ScorerSelector("jpeg"),)
    access.permit(caller, ScoreRequest("r", jpeg, (), Priority.EVAL))
    access.permit(caller, ScoreRequest("r", jpeg, (), Priority.BULK))
    with pytest.raises(PermissionDenied, match="EVAL"):
        access.permit(caller, ScoreRequest("r", jpeg, (), Priority.TRAIN))
    with pytest.raises(PermissionDenied, match="'ocr'"):
        access.permit(caller, ScoreRequest("r", (*jpeg, ScorerSelector("ocr")), (), Priority.BULK))
    assert access.may_use(caller, "jpeg")
    assert not access.may_use(caller, "ocr")


# --- a running server -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.toml"


@pytest.fixture(scope="module")
def made(key_file: Path) -> dict[str, str]:
    return {
        "full": create(key_file, "full"),
        "eval": create(key_file, "eval", "--priority", "EVAL", "--scorers", "bright"),
        "slow": create(key_file, "slow", "--items-per-s", "2", "--burst-items", "4"),
    }


@pytest.fixture(scope="module")
def server(
    key_file: Path, made: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    toml = SERVER.replace("KEYS", str(key_file))
    with running(tmp_path_factory.mktemp("server"), toml) as server:
        with RewardClient(server.grpc_url, api_key=made["full"]) as client:
            client.wait_ready(("jpeg", "bright"), 60)
        yield server
        log = server.log_file.read_text()
        assert server.stop() == 0
        assert not any(key in log for key in made.values())  # never, in no event


@pytest.fixture(params=["grpc", "http"])
def url(server: Server, request: pytest.FixtureRequest) -> str:
    return server.grpc_url if request.param == "grpc" else server.http_url


def test_no_key_or_a_wrong_one_is_unauthenticated(url: str, made: dict[str, str]) -> None:
    messages = set()
    for wrong in (None, "wrong", made["full"][:-1], made["full"] + "x", keys.new_key()):
        with RewardClient(url, api_key=wrong, attempts=3) as client:
            for call in (client.list_scorers, lambda c=client: c.score(items(["a"]), ["bright"])):
                with pytest.raises(Unauthenticated) as caught:
                    call()
                assert not caught.value.retryable
                if wrong is not None:
                    messages.add(caught.value.message)
                    assert wrong not in caught.value.message
    assert len(messages) == 1  # which key exists, or how near one came, is not told


def test_a_key_opens_what_it_may(url: str, made: dict[str, str]) -> None:
    with RewardClient(url, api_key=made["full"]) as client:
        assert client.score(items(["a"]), ["bright"]).results["bright"].scores == (10.0,)
        assert [info.name for info in client.list_scorers()] == ["jpeg", "bright"]
    with RewardClient(url, api_key=made["eval"]) as client:
        sent = items(["a"])
        assert client.score(sent, ["bright"], priority=Priority.EVAL).results
        assert [info.name for info in client.list_scorers()] == ["bright"]
        with pytest.raises(PermissionDenied, match="highest it may use is EVAL"):
            client.score(sent, ["bright"], priority=Priority.TRAIN)
        with pytest.raises(PermissionDenied, match="'jpeg'"):
            client.score(sent, ["jpeg"], priority=Priority.EVAL)


def test_over_its_rate_a_key_waits_and_others_do_not(url: str, made: dict[str, str]) -> None:
    with RewardClient(url, api_key=made["slow"], attempts=1) as once:

        def ask_ten_times() -> None:
            for _ in range(10):
                once.score(items(["a"] * 2), ["bright"])

        with pytest.raises(ResourceExhausted, match="rate of 2 items per second") as caught:
            ask_ten_times()
        assert caught.value.retry_after_s is not None
        assert 0 < caught.value.retry_after_s <= 1.5
    with RewardClient(url, api_key=made["full"], attempts=1) as client:
        client.score(items(["a"] * 20), ["bright"])
    begin_s = time.monotonic()
    with RewardClient(url, api_key=made["slow"], attempts=3, timeout_s=30) as client:
        client.score(items(["a"] * 2), ["bright"])  # the client honours what it is told
    assert time.monotonic() - begin_s < 10


def test_requests_of_different_keys_never_meet(url: str, made: dict[str, str]) -> None:
    with (
        RewardClient(url, api_key=made["full"]) as mine,
        RewardClient(url, api_key=made["eval"]) as theirs,
    ):
        options: dict[str, Any] = {"request_id": "1", "priority": Priority.EVAL}
        first = mine.score(items(["a"]), ["bright"], **options)
        second = theirs.score(items(["b"] * 2), ["bright"], **options)
    assert first.results["bright"].scores == (10.0,)
    assert second.results["bright"].scores == (10.0, 11.0)


def test_http_is_closed_but_for_probes_and_static_pages(
    server: Server, made: dict[str, str]
) -> None:
    with httpx.Client(base_url=server.http_url, trust_env=False, timeout=30) as http_client:
        for path in ("/livez", "/readyz", "/", "/docs", "/openapi.json"):
            assert http_client.get(path).status_code == 200, path
        assert "errors" not in http_client.get("/readyz").json()
        for method, path in (
            ("GET", "/metrics"),
            ("GET", "/v1/scorers"),
            ("POST", "/v1/score"),
            ("GET", "/nowhere"),
            ("GET", "/livez/"),
        ):
            refused = http_client.request(method, path)
            assert refused.status_code == 401, path
            assert refused.headers["www-authenticate"] == "Bearer"
            assert refused.json()["error"]["code"] == "UNAUTHENTICATED"
        for path in ("//metrics", "/docs/../metrics", "/%2e/metrics", "/livez;/../metrics"):
            raw = http.client.HTTPConnection("127.0.0.1", server.ports["http"], timeout=30)
            raw.request("GET", path)  # httpx would tidy the path up
            assert raw.getresponse().status == 401, path
            raw.close()
        headers = {"authorization": f"bearer {made['full']}"}
        metrics = http_client.get("/metrics", headers=headers)
        assert metrics.status_code == 200
        assert 'reward_requests_total{api="http",code="UNAUTHENTICATED"}' in metrics.text
        assert "errors" in http_client.get("/readyz", headers=headers).json()
        basic = http_client.get("/metrics", headers={"authorization": "Basic YTpi"})
        assert basic.status_code == 401


def test_grpc_is_closed_but_for_health(server: Server, made: dict[str, str]) -> None:
    with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
        health: Any = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        with pytest.raises(grpc.RpcError) as caught:
            list(reflection.ServerReflectionInfo(iter([asked]), timeout=10))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        metadata = (("authorization", f"Bearer {made['full']}"),)
        (answer,) = reflection.ServerReflectionInfo(iter([asked]), timeout=10, metadata=metadata)
        assert len(answer.list_services_response.service) == 3


def test_keys_come_and_go_without_a_restart(
    server: Server, key_file: Path, made: dict[str, str], url: str
) -> None:
    fresh = create(key_file, "fresh")

    def works(key: str) -> bool:
        try:
            with RewardClient(url, api_key=key, attempts=1) as client:
                return bool(client.list_scorers())
        except RewardError:
            return False

    eventually(lambda: works(fresh), 10)
    text = key_file.read_text()
    key_file.write_text(text + "\n[nonsense")  # a slip of the editor locks nobody out
    time.sleep(1.5)
    assert works(fresh)
    key_file.write_text(text)
    revoked = CliRunner().invoke(app, ["keys", "revoke", "fresh", "--file", str(key_file)])
    assert revoked.exit_code == 0
    eventually(lambda: not works(fresh), 10)
    assert works(made["full"])


def test_commands_take_the_key_from_the_environment(server: Server, made: dict[str, str]) -> None:
    without = run_cli("scorers", "--url", server.grpc_url)
    assert without.returncode == 2
    assert "API key" in without.stderr
    with_key = run_cli("scorers", "--url", server.grpc_url, REWARD_API_KEY=made["full"])
    assert with_key.returncode == 0, with_key.stderr


def test_the_log_names_the_key(server: Server) -> None:
    events = [json.loads(line) for line in server.log_file.read_text().splitlines() if line]
    assert any(event["event"] == "keys reloaded" for event in events)
