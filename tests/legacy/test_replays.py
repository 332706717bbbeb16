"""Recorded requests of the public clients, replayed over raw sockets; see `record.py`."""

from __future__ import annotations

import http.client
import json
import pickle
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from legacy_server import jpeg
from record import GREYS, scenes_and_rows
from requests.adapters import HTTPAdapter
from server_process import Server, eventually
from urllib3.util.retry import Retry

FOLDER = Path(__file__).parents[1] / "golden" / "legacy"
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def replay(server: Server, port: str, name: str) -> list[tuple[int, bytes]]:
    """Send a recording, request by request on one connection; status and body of each answer."""
    answers = []
    left = (FOLDER / f"{name}.http").read_bytes()
    with socket.create_connection(("127.0.0.1", server.ports[port]), timeout=60) as sock:
        while left:
            head = left.partition(b"\r\n\r\n")[0]
            lengths = [
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.startswith(b"Content-Length:")
            ]
            size = len(head) + 4 + sum(lengths)
            # In pieces, as a socket with a small buffer would hand them over.
            for at in range(0, size, 5000):
                sock.sendall(left[at : min(at + 5000, size)])
            left = left[size:]
            response = http.client.HTTPResponse(sock)
            response.begin()
            answers.append((response.status, response.read()))
    return answers


@pytest.mark.parametrize(
    "name", ["flow_grpo_geneval", "flow_grpo_geneval_py314", "deepgen_geneval"]
)
def test_geneval(server: Server, name: str) -> None:
    ((status, body),) = replay(server, "legacy_geneval", name)
    assert status == 200
    found = pickle.loads(body)
    rows = scenes_and_rows()[1]
    assert set(found) >= {
        *("scores", "rewards", "strict_rewards", "group_rewards", "group_strict_rewards")
    }
    for key in ("scores", "rewards", "strict_rewards"):
        assert len(found[key]) == 9
        assert all(type(value) is float for value in found[key])
    for i in range(9):
        fits = i % 3 != 0
        assert (found["rewards"][i], found["strict_rewards"][i]) == (float(fits), float(fits))
        assert found["scores"][i] == 1.0 if fits else found["scores"][i] < 1.0
    for kind in ("", "strict_"):
        groups = found[f"group_{kind}rewards"]
        assert set(groups) == set(TAGS)
        for tag in TAGS:
            expected = [
                reward if row["tag"] == tag else -10.0
                for reward, row in zip(found[f"{kind}rewards"], rows, strict=True)
            ]
            assert groups[tag] == expected


def test_deqa_in_two_chunks(server: Server) -> None:
    answers = replay(server, "legacy_deqa", "flow_grpo_deqa")
    assert [status for status, _ in answers] == [200, 200]
    found = [pickle.loads(body)["outputs"] for _, body in answers]
    assert [len(part) for part in found] == [35, 35]
    assert [*found[0], *found[1]] == pytest.approx(list(GREYS), abs=1.0)


def test_verl_omni(server: Server) -> None:
    ((status, body),) = replay(server, "http", "verl_omni")
    found = pickle.loads(body)
    assert (status, "error" in found) == (200, False)
    assert float(found["scores"][0]) == pytest.approx(90, abs=1.0)


def test_flow_factory(server: Server) -> None:
    health, compute = replay(server, "http", "flow_factory")
    assert health == (200, b'{"status":"ok"}')
    assert compute[0] == 200
    assert json.loads(compute[1]) == {"rewards": [30.0, 60.0]}


def test_unirl(server: Server) -> None:
    ((status, body),) = replay(server, "http", "unirl")
    found = json.loads(body)
    assert (status, found["protocol_version"], found["errors"]) == (200, "1", [{}, {}])
    for index, grey in enumerate((30, 60)):
        assert set(found["results"][index]) == {"deqa", "ocr"}
        for metrics in found["results"][index].values():
            assert next(iter(metrics.values())) == pytest.approx(grey, abs=1.0)
        assert found["identities"][index]["sample_id"] == f"sample-{index}"


def session_of_flow_grpo() -> requests.Session:
    """Configured as the client does: a thousand retries of 500, whatever the method."""
    session = requests.Session()
    session.trust_env = False
    any_method: Any = False
    retries = Retry(
        total=1000, backoff_factor=1, status_forcelist=[500], allowed_methods=any_method
    )
    session.mount("http://", HTTPAdapter(max_retries=retries))
    return session


def ask(server: Server, scorer: str, message: Any) -> requests.Response:
    with session_of_flow_grpo() as session:
        url = f"{server.http_url}/compat/pickle/{scorer}"
        return session.post(url, data=pickle.dumps(message), timeout=120)


def answered(server: Server, code: str) -> float:
    return server.metric("reward_requests_total", api="pickle", code=code)


def test_their_retries_ride_out_a_full_server(server: Server) -> None:
    answers: list[requests.Response] = []
    message = {"images": [jpeg(value) for value in range(40)]}
    refused = answered(server, "RESOURCE_EXHAUSTED")
    threads = [
        threading.Thread(target=lambda: answers.append(ask(server, "slow", message)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert all(len(pickle.loads(answer.content)["scores"]) == 40 for answer in answers)
    assert answered(server, "RESOURCE_EXHAUSTED") > refused  # one was sent away, and came back


@pytest.mark.parametrize(
    ("scorer", "message", "status"),
    [
        ("deqa", {"images": [b"no picture"]}, 422),
        ("sick", {"images": [jpeg()], "prompts": ["raise"]}, 424),
        ("sick", {"images": [jpeg()], "prompts": ["unavailable"]}, 502),
        ("broken", {"images": [jpeg()]}, 424),
        ("absent", {"images": [jpeg()]}, 404),
    ],
)
def test_their_retries_stop_at_what_does_not_pass(
    server: Server, scorer: str, message: Any, status: int
) -> None:
    if scorer == "broken":
        eventually(lambda: "broken" in json.loads(_readyz(server)).get("errors", {}))
    before_s = time.monotonic()
    answer = ask(server, scorer, message)
    assert answer.status_code == status
    # The client unpickles whatever comes and looks for its key: a KeyError, not a hang.
    found = pickle.loads(answer.content)
    with pytest.raises(KeyError):
        found["scores"]
    assert found["error"]
    assert answer.raw.retries.history == ()
    assert time.monotonic() - before_s < 30


def _readyz(server: Server) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", server.ports["http"], timeout=30)
    connection.request("GET", "/readyz")
    return connection.getresponse().read()
