"""A gateway and the servers behind it: what dies, drains, hangs and differs loses no item."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
import urllib.error
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fleet import PLACES, Asking, Member, both_usable, free_port, gateway, timed_items, usable
from server_process import Server, eventually

from reward_client import (
    AsyncRewardClient,
    DeadlineExceeded,
    Item,
    ResourceExhausted,
    RewardClient,
    Unavailable,
)
from reward_client.codec import encode
from reward_client.errors import Code
from reward_client.images import Encoding, Image
from reward_client.types import ScorerInfo


@pytest.fixture(scope="module")
def all_members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Member]]:
    folder = tmp_path_factory.mktemp("members")
    members = [Member(folder / "a"), Member(folder / "b"), Member(folder / "c", "e" * 8)]
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Member.start, members))
        yield members
    finally:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Member.close, members))


@pytest.fixture(scope="module")
def members(all_members: list[Member]) -> tuple[Member, Member]:
    """Two equal servers."""
    return all_members[0], all_members[1]


@pytest.fixture(scope="module")
def other(all_members: list[Member]) -> Member:
    """One with another fingerprint."""
    return all_members[2]


@pytest.fixture(scope="module")
def served(
    members: tuple[Member, Member], other: Member, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("gateway") / "g"
    targets = [member.target for member in members]
    # The same servers again: by the other policy, one of them alone, and one that differs.
    more = f"""
[scorers.in_turn]
upstream = {targets}
upstream_scorer = "timed"
upstream_policy = "round_robin"
max_batch_items = 1
[scorers.lone]
upstream = "{targets[0]}"
upstream_scorer = "timed"
upstream_wait_s = 30
[scorers.mixed]
upstream = {[other.target, *targets]}
upstream_scorer = "timed"
"""
    with gateway(folder, targets, more) as server:
        yield server


@pytest.fixture
def client(served: Server, members: tuple[Member, Member]) -> Iterator[RewardClient]:
    both_usable(served, members)
    for member in members:
        member.forget()
    with served.client(attempts=1) as client:
        client.wait_ready(["timed", "in_turn", "lone", "mixed"])
        yield client


def test_it_shows_what_the_servers_behind_it_say(
    served: Server, members: tuple[Member, Member], client: RewardClient
) -> None:
    info = _info(client, "timed")
    assert (info.version, info.fingerprint, info.state) == ("7", "f" * 8, "READY")
    assert info.transforms == ("halved", "raw")
    assert {replica.name for replica in info.replicas} == {member.target for member in members}
    assert json.loads(served.get("/readyz"))["ready"]
    found = client.score(timed_items([9], 0), ["timed"], include_details=True).results["timed"]
    assert found.scores == (9.0,)
    assert found.components == {"width": (8.0,)}
    assert found.details == ({"prompt": "0"},)
    # A gateway needs neither torch nor a worker.
    maps = Path(f"/proc/{served.process.pid}/maps").read_text()
    assert "torch" not in maps
    assert served.worker_pids() == []


def test_encoded_images_pass_through_and_broken_ones_fail_alone(client: RewardClient) -> None:
    pixels = np.full((8, 8, 3), 50, np.uint8)
    images = [encode(pixels, encoding) for encoding in (Encoding.PNG, Encoding.JPEG)]
    images.append(Image(images[0].data[:40], Encoding.PNG))
    sent = [Item(str(i), "0", (image,)) for i, image in enumerate(images)]
    found = client.score(sent, ["timed"]).results["timed"]
    assert found.scores == (50.0, 50.0, None)
    assert found.lossy_input[:2] == (False, True)
    assert found.errors[2].code is Code.INVALID_ARGUMENT
    assert "'2'" in found.errors[2].message


def test_one_request_is_scored_by_both_and_each_item_once(
    members: tuple[Member, Member], client: RewardClient
) -> None:
    for scorer in ("timed", "in_turn"):
        for member in members:
            member.forget()
        values = list(range(40))
        found = client.score(timed_items(values, 0.02), [scorer]).results[scorer]
        assert found.scores == tuple(float(v) for v in values)
        by_member = [member.scored() for member in members]
        assert Counter(by_member[0] + by_member[1]) == Counter(values)
        assert min(len(scored) for scored in by_member) >= 10


def test_one_request_may_ask_several_scorers_of_one_server(client: RewardClient) -> None:
    results = client.score(timed_items([1, 2], 0), ["timed", "in_turn", "lone"]).results
    assert {name: found.scores for name, found in results.items()} == dict.fromkeys(
        ("timed", "in_turn", "lone"), (1.0, 2.0)
    )


def test_the_least_loaded_gets_the_next_items(
    members: tuple[Member, Member], client: RewardClient
) -> None:
    for _ in range(3):
        for member in members:
            member.forget()
        slow = Asking(client, timed_items([1], 1.0))
        eventually(lambda: any(member.scored() for member in members))
        busy = next(member for member in members if member.scored())
        for value in (2, 3, 4):
            client.score(timed_items([value], 0), ["timed"])
        assert busy.scored() == [1]
        assert slow.scores() == (1.0,)


def test_kill_9_in_the_middle_of_a_batch_costs_nothing(
    served: Server, members: tuple[Member, Member], client: RewardClient
) -> None:
    first, second = members
    values = list(range(48))
    before = served.metric("reward_upstream_failovers_total", scorer="timed")
    asking = Asking(client, timed_items(values, 0.3))
    eventually(lambda: len(first.scored()) >= 4)
    first.kill()
    assert asking.scores() == tuple(float(v) for v in values)
    # What the dead server had not answered was scored by the other one, once each.
    assert max(Counter(second.scored()).values()) == 1
    assert served.metric("reward_upstream_failovers_total", scorer="timed") > before
    info = _info(client, "timed")
    assert info.state == "READY"
    assert first.target in info.last_error
    assert "cannot reach" in info.last_error
    # It comes back by itself, and gets work again.
    first.start()
    eventually(lambda: usable(served, first.target))
    first.forget()
    assert Asking(client, timed_items(values, 0.02)).scores() == tuple(float(v) for v in values)
    assert first.scored()


def test_the_only_server_dies_and_comes_back_on_its_port(
    served: Server, members: tuple[Member, Member], client: RewardClient
) -> None:
    first, _ = members
    sent = timed_items(list(range(12)), 0.3)
    asking = Asking(client, sent, "lone")
    eventually(lambda: len(first.scored()) >= 4)
    first.kill()
    eventually(lambda: _info(client, "lone").state == "STARTING")
    assert "lone" in json.loads(_body(served, "/readyz"))["errors"]
    first.start()
    assert asking.scores() == tuple(map(float, range(12)))


def test_a_draining_server_finishes_and_gets_nothing_new(
    served: Server, members: tuple[Member, Member], client: RewardClient
) -> None:
    first, second = members
    asking = Asking(client, timed_items(list(range(16)), 0.5))
    eventually(lambda: first.scored() and second.scored())
    first.signal(signal.SIGTERM)
    eventually(lambda: not usable(served, first.target))
    begun = set(first.scored())
    assert Asking(client, timed_items([100, 101], 0)).scores() == (100.0, 101.0)
    assert asking.scores() == tuple(map(float, range(16)))
    assert first.server.process.wait(30) == 0
    assert {100, 101} <= set(second.scored())
    # It finished what it had begun: none of that was scored a second time.
    assert not begun & set(second.scored())
    first.start()


def test_a_server_that_hangs_is_left_for_another(
    served: Server, members: tuple[Member, Member], client: RewardClient
) -> None:
    first, _ = members
    asking = Asking(client, timed_items(list(range(8)), 0.3))
    eventually(lambda: bool(first.scored()))
    first.signal(signal.SIGSTOP)
    try:
        # Two unanswered questions of three seconds each tell that it hangs.
        begin_s = time.monotonic()
        assert asking.scores() == tuple(map(float, range(8)))
        assert time.monotonic() - begin_s < 30
        assert "not answer" in _info(client, "timed").last_error
        # Nobody else to go to: the deadline bounds the wait.
        begin_s = time.monotonic()
        with pytest.raises((DeadlineExceeded, Unavailable)):
            client.score(timed_items([1], 0), ["lone"], deadline_s=1.0)
        assert time.monotonic() - begin_s < 5
    finally:
        first.signal(signal.SIGCONT)
    eventually(lambda: usable(served, first.target))


async def test_a_caller_that_hangs_up_stops_the_work_behind_the_gateway(
    served: Server, members: tuple[Member, Member], client: RewardClient
) -> None:
    first, _ = members
    async with AsyncRewardClient(served.grpc_url, attempts=1) as caller:
        asking = asyncio.create_task(caller.score(timed_items(list(range(40)), 0.5), ["lone"]))
        while not first.scored():
            await asyncio.sleep(0.02)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    eventually(lambda: first.server.metric("reward_queue_items", scorer="timed") == 0, 5)
    await asyncio.sleep(0.6)
    assert len(first.scored()) <= 8  # the batch that ran, and perhaps the next: not the other 32
    assert outstanding(served) == 0
    assert served.metric("reward_admitted_bytes") == 0


def test_servers_that_differ_are_never_mixed(client: RewardClient, other: Member) -> None:
    eventually(lambda: _info(client, "mixed").fingerprint == "f" * 8)  # two against one
    states = {replica.name: replica.state for replica in _info(client, "mixed").replicas}
    assert states.pop(other.target) == "FAILED"
    assert set(states.values()) == {"READY"}
    error = _info(client, "mixed").last_error
    assert f"{other.target}: not used, because it differs" in error
    assert "e" * 8 in error
    other.forget()
    for _ in range(6):
        assert client.score(timed_items([1, 2], 0), ["mixed"]).results["mixed"].errors == {}
    assert other.scored() == []


def test_full_servers_answer_with_their_advice(
    served: Server, members: tuple[Member, Member], client: RewardClient
) -> None:
    slow = [Asking(client, timed_items([value], 6.0)) for value in (201, 202)]
    eventually(lambda: all(member.scored() for member in members))
    # Behind those all the places that one caller can have, the same number at both.
    sent = timed_items(range(2 * (PLACES - PLACES // 16 - 1)), 0)
    filling = Asking(client, sent, "in_turn")
    eventually(lambda: outstanding(served) == len(sent) + 2)
    with pytest.raises(ResourceExhausted, match="full") as caught:
        client.score(timed_items([203], 0), ["timed"])
    assert caught.value.retryable
    assert caught.value.retry_after_s
    assert [asking.scores() for asking in slow] == [(201.0,), (202.0,)]
    assert filling.scores() == tuple(map(float, range(len(sent))))
    scored = [value for member in members for value in member.scored()]
    assert Counter(scored) == Counter([*range(len(sent)), 201, 202])


def test_the_memory_of_a_gateway_comes_back(served: Server, client: RewardClient) -> None:
    pixels = np.zeros((512, 512, 3), np.uint8)
    sent = [Item(str(i), "0", (Image.from_array(pixels),)) for i in range(16)]

    def resident_mib() -> float:
        pages = Path(f"/proc/{served.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE") / 2**20

    for _ in range(4):  # allocators take what they need, and keep some of it
        client.score(sent, ["timed"])
    before_mib = resident_mib()
    for _ in range(12):  # of 144 MiB that pass through, none may stay
        client.score(sent, ["timed"])
    assert resident_mib() - before_mib < 80
    assert served.metric("reward_admitted_bytes") == 0


def test_gateways_of_gateways_work_and_loops_do_not(
    members: tuple[Member, Member], tmp_path: Path
) -> None:
    first, _ = members
    here, there = (f"127.0.0.1:{free_port()}" for _ in range(2))
    myself = '[scorers.self]\nupstream = "{}"\n'
    # Each may fall back on the other, so that requests could go round between them.
    with (
        gateway(tmp_path / "x", [there, first.target], myself.format(here), here) as outer,
        gateway(tmp_path / "y", [here, first.target], myself.format(there), there),
        outer.client(attempts=1) as client,
    ):
        client.wait_ready(["timed"])
        for value in range(12):
            found = client.score(timed_items([value], 0), ["timed"]).results["timed"]
            assert found.scores == (float(value),)
        eventually(lambda: _info(client, "self").state == "FAILED")
        assert "loop of gateways" in _info(client, "self").last_error
        with pytest.raises(Unavailable, match="loop of gateways"):
            client.score(timed_items([1], 0), ["self"])


def outstanding(served: Server) -> float:
    return served.metric("reward_upstream_outstanding_items")


def _info(client: RewardClient, name: str) -> ScorerInfo:
    return {info.name: info for info in client.list_scorers()}[name]


def _body(server: Server, path: str) -> str:
    try:
        return server.get(path)
    except urllib.error.HTTPError as error:
        return error.read().decode()
