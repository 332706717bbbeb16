"""No answer tells where things lie on the server: no paths, no tracebacks, bugs included."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from server_process import ROOT, Server, eventually, items, running

from reward_client import Image, Item, RewardClient, RewardError
from reward_client.images import Encoding
from reward_server.api.errors import redacted

TOML = """
[server]
http = "127.0.0.1:0"
grpc = "127.0.0.1:0"
log_format = "json"
[scorers.bright]
scorer = "tests.scorers_bad.bad:Mean"
[scorers.talkative]
scorer = "tests.scorers_bad.talkative:Talkative"
[scorers.broken]
scorer = "tests.scorers_bad.talkative:Talkative"
options = { fail_to_load = true }
[scorers.absent]
scorer = "tests.scorers_bad.nowhere:Nothing"
"""
TELLTALES = ("Traceback", str(ROOT), "/usr/", "/tmp/", "site-packages", 'File "', "/etc/secret")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(
        tmp_path_factory.mktemp("answers"), TOML, wait_for=("bright", "talkative")
    ) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture(params=["grpc", "http"])
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[RewardClient]:
    url = server.grpc_url if request.param == "grpc" else server.http_url
    with RewardClient(url, attempts=1) as client:
        yield client


def clean(text: str) -> None:
    for word in TELLTALES:
        assert word not in text, text


def test_a_scorer_that_talks_too_much(client: RewardClient, server: Server) -> None:
    sent = [*items(["a", "/etc/secret.pem", "b"])]
    found = client.score(sent, ["talkative"]).results["talkative"]
    assert set(found.errors) == {1}
    message = found.errors[1].message
    assert found.errors[1].code.value == "INTERNAL"
    assert "secret.pem" in message  # enough to find it in the log
    clean(message)
    assert "\n" not in message


@pytest.mark.parametrize("scorer", ["broken", "absent"])
def test_a_scorer_that_does_not_start(client: RewardClient, server: Server, scorer: str) -> None:
    def trouble() -> str:
        return {info.name: info for info in client.list_scorers()}[scorer].last_error

    eventually(lambda: bool(trouble()) or scorer == "broken", 60)
    clean(trouble())
    with pytest.raises(RewardError) as caught:
        client.score(items(["a"]), [scorer])
    clean(caught.value.message)
    clean(json.dumps(httpx.get(server.http_url + "/readyz", trust_env=False).json()))
    clean(httpx.get(server.http_url + "/v1/scorers", trust_env=False).text)


def test_every_refusal_there_is(server: Server) -> None:
    json_type = {"content-type": "application/json"}
    good = {"scorers": [{"name": "bright"}], "items": []}
    with httpx.Client(base_url=server.http_url, trust_env=False, timeout=30) as http_client:
        answers = [
            http_client.post("/v1/score", content=b"{", headers=json_type),
            http_client.post("/v1/score", content=b"\xff" * 9, headers=json_type),
            http_client.post("/v1/score", json=good),
            http_client.post("/v1/score", json={**good, "items": [{"id": 3}]}),
            http_client.post("/v1/score", content=b"\xff", headers={"content-type": "a/b"}),
            http_client.post(
                "/v1/score", content=b"x", headers={"content-type": "multipart/form-data"}
            ),
            http_client.post(
                "/v1/score", content=b"\xff", headers={"content-type": "application/x-protobuf"}
            ),
            http_client.post("/v1/score", json=good, headers={"x-reward-deadline-ms": "soon"}),
            http_client.get("/etc/passwd"),
            http_client.get("/../../etc/passwd"),
            http_client.get("/static/..%2f..%2fetc/passwd"),
            http_client.put("/v1/score"),
        ]
    for answer in answers:
        assert 400 <= answer.status_code < 500, answer.text
        clean(answer.text)


@pytest.mark.parametrize("encoding", list(Encoding))
def test_decoders_do_not_quote_the_server(client: RewardClient, encoding: Encoding) -> None:
    for data in (b"\0" * 40, b"\x89PNG\r\n\x1a\n" + bytes(60), b"qoif" + bytes(40)):
        with pytest.raises(RewardError) as caught:
            client.score([Item("x", "", (Image(data, encoding, 4, 4),))], ["bright"])
        clean(caught.value.message)
        assert "0x" not in caught.value.message  # nor addresses of objects


# --- the rule by itself ---------------------------------------------------------------------------


@given(
    st.lists(st.text("abcXYZ019_-.", min_size=1, max_size=8), min_size=1, max_size=5),
    st.sampled_from(["usr", "etc", "tmp", "root", "home", "var"]),
    st.sampled_from(["{}", "[Errno 2] No such file: '{}'", "at {}, line 3", "a={}\nb", '("{}")']),
)
def test_paths_lose_their_folders(parts: list[str], root: str, frame: str) -> None:
    path = "/" + "/".join([root, *parts])
    shown = redacted(frame.format(path))
    assert f"/{root}/" not in shown
    assert parts[-1] in shown
    assert "\n" not in shown


@pytest.mark.parametrize(
    "text",
    [
        "see /docs",
        "POST /v1/score",
        "http://127.0.0.1:8000/v1/score",
        "grpc://127.0.0.1:50051",
        "n/a and 3/4",
        "images[0]: 2/3 of application/x-protobuf",
    ],
)
def test_other_slashes_stay(text: str) -> None:
    assert redacted(text) == text
