"""Several scorers of the same servers are asked with one message, and fail each for itself."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from server_process import HEADER, Server, eventually, running

from reward_client import Code, Encoding, Image, Item

FAR = "[scorers.jpeg]\n[scorers.geneval]\noptions = { detector = 'shapes' }\n"
ROW = {"tag": "single_object", "include": [{"class": "square", "count": 1}]}


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    far_folder, near_folder = (tmp_path_factory.mktemp(name) for name in ("far", "near"))
    with running(far_folder, HEADER + FAR, wait_for=("jpeg", "geneval")) as far:
        target = f"127.0.0.1:{far.ports['grpc']}"
        names = {"jpeg": "jpeg", "geneval": "geneval", "second": "jpeg", "missing": "nothing"}
        tables = [
            f'[scorers.{name}]\nupstream = "{target}"\nupstream_scorer = "{there}"\n'
            for name, there in names.items()
        ]
        near = HEADER + "".join(tables)
        with running(near_folder, near, wait_for=("jpeg", "geneval", "second")) as gateway:
            yield far, gateway


def pictures(n: int) -> list[Item]:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 64, 64, 3), np.uint8)
    return [
        Item(str(i), "a square", (Image.from_array(one),), spec=ROW, spec_kind="geneval")
        for i, one in enumerate(pixels)
    ]


def requests_at(server: Server) -> float:
    return sum(
        float(line.rsplit(" ", 1)[1])
        for line in server.get("/metrics").splitlines()
        if line.startswith("reward_requests_total") and "grpc" in line
    )


def test_two_scorers_of_one_server_are_one_message(servers: tuple[Server, Server]) -> None:
    far, gateway = servers
    sent = pictures(5)
    with far.client() as direct, gateway.client() as client:
        expected = direct.score(sent, ["jpeg", "geneval"])
        before = requests_at(far)
        found = client.score(sent, ["jpeg", "geneval"])
        assert requests_at(far) == before + 1
    for name in ("jpeg", "geneval"):
        assert found[name].scores == expected[name].scores
        assert found[name].fingerprint == expected[name].fingerprint
        assert found[name].components == expected[name].components
    eventually(lambda: gateway.metric("reward_admitted_bytes") == 0)


def test_a_scorer_that_is_not_there_costs_the_others_nothing(
    servers: tuple[Server, Server],
) -> None:
    far, gateway = servers
    sent = pictures(2)
    sent[1] = Item("broken", "a square", (Image(b"no", Encoding.PNG),))
    with gateway.client(attempts=1) as client:
        before = requests_at(far)
        found = client.score(sent, ["geneval", "missing", "jpeg"])
        assert requests_at(far) == before + 1
    assert {error.code for error in found["missing"].errors.values()} == {Code.UNAVAILABLE}
    assert [score is None for score in found["jpeg"].scores] == [False, True]
    assert "serves no scorer 'nothing'" in found["missing"].errors[0].message


def test_one_scorer_under_two_names_is_asked_twice(servers: tuple[Server, Server]) -> None:
    far, gateway = servers
    with gateway.client() as client:
        before = requests_at(far)
        found = client.score(pictures(2), ["jpeg", "second"])
        assert requests_at(far) == before + 2
    assert found["jpeg"].scores == found["second"].scores
