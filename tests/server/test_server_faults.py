"""What goes wrong inside a scorer or its process, with real processes."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import BAD, HEADER, Server, eventually, is_running, items, running

from reward_client import (
    Code,
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    RewardClient,
    Unavailable,
)

FAULTS = f"""
[scorers.obedient]
scorer = "{BAD}:Obedient"
timeout_s = 3
max_wait_ms = 50
[scorers.short]
scorer = "{BAD}:WrongLength"
[scorers.small]
scorer = "{BAD}:Small"
options = {{ room_px = 200, log_file = "LOG" }}
[scorers.self_test]
scorer = "{BAD}:FailsSelfTest"
[scorers.absent]
scorer = "no_such_module:Scorer"
[scorers.options]
scorer = "{BAD}:Mean"
options = {{ sleeps = 1 }}
[scorers.reborn]
scorer = "{BAD}:DiesWhileLoading"
options = {{ marker = "MARKER" }}
[scorers.elsewhere]
scorer = "jpeg"
python = "/no/such/python"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("faults")
    toml = FAULTS.replace("LOG", str(folder / "sizes")).replace("MARKER", str(folder / "marker"))
    with running(folder, toml, wait_for=("obedient", "short", "small", "reborn")) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[RewardClient]:
    with server.client(attempts=1) as client:
        yield client


def test_a_poison_item_stands_alone(client: RewardClient) -> None:
    prompts = ["ok"] * 5 + ["raise"] + ["ok"] * 3 + ["nan", "nan component", "unavailable"]
    found = client.score(items(prompts), ["obedient"]).results["obedient"]
    assert set(found.errors) == {5, 9, 10, 11}
    assert {i: error.code for i, error in found.errors.items()} == {
        5: Code.INTERNAL,
        9: Code.INTERNAL,
        10: Code.INTERNAL,
        11: Code.UNAVAILABLE,
    }
    assert "poison" in found.errors[5].message
    assert found.errors[11].retryable
    assert [score for score in found.scores if score is not None] == [
        10.0 + i for i in range(12) if i not in found.errors
    ]
    assert all((found.scores[i] is None) == (i in found.errors) for i in range(12))


def test_an_item_that_kills_its_worker_takes_no_other_with_it(
    server: Server, client: RewardClient
) -> None:
    before = server.metric("reward_worker_restarts_total", scorer="obedient", cause="died")
    found = client.score(items(["ok", "ok", "crash", "ok"]), ["obedient"]).results["obedient"]
    assert set(found.errors) == {2}
    assert found.errors[2].code is Code.UNAVAILABLE
    assert found.errors[2].retryable
    assert "signal 9" in found.errors[2].message
    assert found.scores == (10.0, 11.0, None, 13.0)
    # In the batch, and alone.
    after = server.metric("reward_worker_restarts_total", scorer="obedient", cause="died")
    assert after - before == 2


def test_a_hang_is_ended_and_only_its_item_fails(server: Server, client: RewardClient) -> None:
    found = client.score(items(["ok", "hang"]), ["obedient"]).results["obedient"]
    assert found.scores == (10.0, None)
    assert "hung" in found.errors[1].message
    assert server.metric("reward_worker_restarts_total", scorer="obedient", cause="hung") >= 1


def test_wrong_length_is_narrowed_down(client: RewardClient) -> None:
    prompts = ["ok", "short", "ok", "ok"]
    found = client.score(items(prompts), ["short"]).results["short"]
    assert found.scores == (10.0, None, 12.0, 13.0)
    assert "0 outcomes for 1 items" in found.errors[1].message


def test_out_of_memory_halves_and_is_remembered(client: RewardClient, tmp_path: Path) -> None:
    for _ in range(3):
        found = client.score(items(["ok"] * 16), ["small"]).results["small"]
        assert found.scores == tuple(10.0 + i for i in range(16))


def test_states_tell_why_a_scorer_failed(server: Server, client: RewardClient) -> None:
    eventually(
        lambda: (
            {i.name for i in client.list_scorers() if i.state == "FAILED"}
            == {"self_test", "absent", "options", "elsewhere"}
        )
    )
    infos = {info.name: info for info in client.list_scorers()}
    assert "expected 1, found 2" in infos["self_test"].last_error
    assert "no_such_module" in infos["absent"].last_error
    assert "sleeps" in infos["options"].last_error
    assert "/no/such/python" in infos["elsewhere"].last_error
    with pytest.raises(Unavailable, match="self-test") as caught:
        client.score(items(["ok"]), ["self_test"])
    assert not caught.value.retryable


def test_a_worker_that_dies_while_loading_is_started_again(server: Server) -> None:
    assert server.metric("reward_worker_restarts_total", scorer="reborn", cause="load") == 1


def test_one_failed_scorer_does_not_spoil_the_others(client: RewardClient) -> None:
    results = client.score(items(["ok"]), ["short", "self_test"]).results
    assert results["short"].scores == (10.0,)
    assert results["self_test"].errors[0].code is Code.UNAVAILABLE


def test_kill_9_in_the_middle_of_a_batch_costs_nothing(tmp_path: Path) -> None:
    toml = f"""
[scorers.mean]
scorer = "{BAD}:Mean"
replicas = 2
max_batch_items = 4
options = {{ sleep_s = 0.3, log_file = "{tmp_path / "sizes"}" }}
"""
    with running(tmp_path, toml, wait_for=("mean",)) as server, server.client(attempts=1) as client:
        answer: list[object] = []
        thread = threading.Thread(
            target=lambda: answer.append(client.score(items(["ok"] * 32), ["mean"]))
        )
        thread.start()
        for _ in range(2):
            # Of a fresh batch: a second kill of the same items, alone by then, would fail them.
            full = len([n for _, n in sizes(tmp_path) if n == 4])
            eventually(lambda full=full: len([n for _, n in sizes(tmp_path) if n == 4]) > full)
            os.kill([pid for pid, n in sizes(tmp_path) if n == 4][-1], signal.SIGKILL)
        thread.join(60)
        (response,) = answer
        found = response.results["mean"]  # type: ignore[attr-defined]
        assert found.errors == {}
        assert found.scores == tuple(10.0 + i for i in range(32))
        assert server.metric("reward_worker_restarts_total", scorer="mean", cause="died") == 2
        # No worker outlives its server, not even one that was killed.
        pids = server.worker_pids()
        assert any(is_running(pid) for pid in pids)
        server.process.kill()
        server.process.wait(10)
        eventually(lambda: not any(is_running(pid) for pid in pids))


def sizes(folder: Path) -> list[tuple[int, int]]:
    file = folder / "sizes"
    lines = file.read_text().splitlines() if file.exists() else []
    return [(int(line.split()[0]), int(line.split()[1])) for line in lines]


LOAD = f"""
max_queue_items = 8
[scorers.slow]
scorer = "{BAD}:Mean"
max_batch_items = 4
max_wait_ms = 0
options = {{ sleep_s = 1.0 }}
[scorers.late]
scorer = "{BAD}:SlowToLoad"
"""


def test_overload_deadline_warming_and_drain(tmp_path: Path) -> None:
    shared_before = set(os.listdir("/dev/shm"))
    with running(tmp_path, HEADER + LOAD, wait_for=("slow",)) as server:
        client = server.client(attempts=1)
        with pytest.raises(Unavailable, match="is starting") as warming:
            client.score(items(["ok"]), ["late"])
        assert warming.value.retryable
        assert warming.value.retry_after_s
        with pytest.raises(InvalidArgument, match="smaller requests"):
            client.score(items(["ok"] * 9), ["slow"])
        with pytest.raises(DeadlineExceeded):
            client.score(items(["ok"] * 4), ["slow"], deadline_s=0.2)
        # What nobody waits for any more is dropped from the queue.
        eventually(lambda: server.metric("reward_queue_items", scorer="slow") == 0)

        answers: list[object] = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(client.score(items(["ok"] * 4), ["slow"]))
            )
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: server.metric("reward_queue_items", scorer="slow") == 8)
        with pytest.raises(ResourceExhausted, match="full") as full:
            client.score(items(["ok"]), ["slow"])
        assert full.value.retryable
        assert full.value.retry_after_s
        # SIGTERM now: what is in flight is answered, what comes is refused, the exit is clean.
        pids = server.worker_pids()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        with pytest.raises(Unavailable, match="shutting down"):
            client.score(items(["ok"]), ["slow"])
        for thread in threads:
            thread.join(60)
        assert len(answers) == 2
        assert server.process.wait(30) == 0
        client.close()
        assert not any(is_running(pid) for pid in pids)
    assert set(os.listdir("/dev/shm")) <= shared_before
