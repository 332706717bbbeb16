"""What goes wrong inside a scorer or its process, with real processes."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.error
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import BAD, Server, eventually, is_running, items, running
from unharmed import unharmed, within

from reward_client import Code, RewardClient, Unavailable

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
[scorers.hungry]
scorer = "{BAD}:Hungry"
options = {{ room_bytes = 167772160, item_bytes = 33554432 }}
[scorers.looping]
scorer = "{BAD}:DiesWhile"
options = {{ file = "LOOPING" }}
cool_down_s = 2
[scorers.doomed]
scorer = "{BAD}:Obedient"
cool_down_s = 1
[scorers.parent]
scorer = "{BAD}:Parent"
[scorers.unblessed]
scorer = "{BAD}:WrongUntil"
options = {{ file = "BLESSED" }}
"""
LOAD_S = 30.0  # to start a worker of these scorers on a busy machine; a tenth of it on an idle one


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    toml = FAULTS
    for name in ("LOG", "MARKER", "LOOPING", "BLESSED"):
        toml = toml.replace(name, str(folder / name.lower()))
    (folder / "looping").touch()
    ready = ("obedient", "short", "small", "reborn", "hungry", "doomed", "parent")
    with running(folder, toml, wait_for=ready) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[RewardClient]:
    with server.client(attempts=1) as client:
        yield client


def test_a_poison_item_stands_alone(server: Server, client: RewardClient) -> None:
    prompts = ["ok"] * 5 + ["raise"] + ["ok"] * 3 + ["nan", "nan component", "unavailable"]
    sent = items(prompts)
    with unharmed(server) as watched, within(LOAD_S):
        found = watched.answered(sent, client.score(sent, ["obedient"])).results["obedient"]
    assert {i: error.code for i, error in found.errors.items()} == {
        5: Code.INTERNAL,
        9: Code.INTERNAL,
        10: Code.INTERNAL,
        11: Code.UNAVAILABLE,
    }
    assert "poison" in found.errors[5].message
    assert found.errors[11].retryable


def test_wrong_length_is_narrowed_down(server: Server, client: RewardClient) -> None:
    sent = items(["ok", "short", "ok", "ok"])
    with unharmed(server) as watched, within(LOAD_S):
        found = watched.answered(sent, client.score(sent, ["short"])).results["short"]
    assert set(found.errors) == {1}
    assert "0 outcomes for 1 items" in found.errors[1].message


def test_an_item_that_kills_its_worker_takes_no_other_with_it(
    server: Server, client: RewardClient
) -> None:
    before = server.metric("reward_worker_restarts_total", scorer="obedient", cause="died")
    sent = items(["ok", "ok", "crash", "ok"])
    with unharmed(server, scorers=["obedient"]) as watched, within(2 * LOAD_S):
        found = watched.answered(sent, client.score(sent, ["obedient"])).results["obedient"]
    assert set(found.errors) == {2}
    assert found.errors[2].code is Code.UNAVAILABLE
    assert found.errors[2].retryable
    assert "signal 9" in found.errors[2].message
    # In the batch, and alone.
    after = server.metric("reward_worker_restarts_total", scorer="obedient", cause="died")
    assert after - before == 2


def test_a_hang_is_ended_and_only_its_item_fails(server: Server, client: RewardClient) -> None:
    sent = items(["ok", "hang"])
    # Hangs once in company and once alone, for `timeout_s` = 3 s each.
    with unharmed(server, scorers=["obedient"]) as watched, within(2 * 3 + 2 * LOAD_S):
        found = watched.answered(sent, client.score(sent, ["obedient"])).results["obedient"]
    assert set(found.errors) == {1}
    assert "hung" in found.errors[1].message
    assert server.metric("reward_worker_restarts_total", scorer="obedient", cause="hung") >= 1


def test_a_worker_is_killed_with_its_children(server: Server, client: RewardClient) -> None:
    with unharmed(server, scorers=["parent"]) as watched, within(2 * LOAD_S):
        sent = items(["ok", "crash"])
        found = watched.answered(sent, client.score(sent, ["parent"])).results["parent"]
    assert set(found.errors) == {1}


def test_out_of_memory_halves_and_is_remembered(server: Server, client: RewardClient) -> None:
    with unharmed(server) as watched, within(LOAD_S):
        for _ in range(3):
            sent = items(["ok"] * 16)
            found = watched.answered(sent, client.score(sent, ["small"])).results["small"]
            assert found.errors == {}


def test_an_allocator_that_refuses_costs_no_item(server: Server, client: RewardClient) -> None:
    """512 MiB under a limit of 160: the kernel refuses, for real, until the batch is small."""
    with unharmed(server) as watched, within(LOAD_S):
        for _ in range(2):
            sent = items(["ok"] * 16)
            found = watched.answered(sent, client.score(sent, ["hungry"])).results["hungry"]
            assert found.errors == {}
    assert server.metric("reward_worker_restarts_total", scorer="hungry") == 0
    (remembered,) = [e for e in server.log() if e["event"] == "out of device memory"][-1:]
    assert remembered["new_max_batch_pixels"] < 16 * 64


def test_a_crash_loop_opens_a_circuit_that_closes_again(
    server: Server, client: RewardClient, folder: Path
) -> None:
    def state() -> str:
        return {info.name: info.state for info in client.list_scorers()}["looping"]

    eventually(lambda: state() == "FAILED", 5 * LOAD_S)
    info = next(info for info in client.list_scorers() if info.name == "looping")
    assert "status 3" in info.last_error
    assert "no weights today" in info.last_error
    with pytest.raises(urllib.error.HTTPError) as unready:
        server.get("/readyz?scorer=looping")
    with unready.value as answer:
        assert answer.code == 503
        assert "no weights today" in json.loads(answer.read())["errors"]["looping"]
    with pytest.raises(Unavailable, match="no weights today") as refused:
        client.score(items(["ok"]), ["looping"])
    assert refused.value.retryable
    assert 0 <= (refused.value.retry_after_s or 0) <= 2
    with unharmed(server) as watched:
        sent = items(["ok"])
        watched.answered(sent, client.score(sent, ["small"]))
    # An open circuit costs one start per cool-down, not a start after the other.
    starts = len(server.worker_pids())
    time.sleep(3.0)
    assert len(server.worker_pids()) - starts <= 3
    assert state() == "FAILED"
    (folder / "looping").unlink()
    with unharmed(server, scorers=["looping"], new_workers=1) as watched, within(2 + 2 * LOAD_S):
        client.wait_ready(["small"])
        eventually(lambda: state() == "READY", 2 + LOAD_S)
        watched.answered(sent, client.score(sent, ["looping"]))


def test_workers_that_die_with_every_batch_open_the_circuit(
    server: Server, client: RewardClient
) -> None:
    with within(7 * LOAD_S):
        found = client.score(items(["crash"] * 6), ["doomed", "small"], deadline_s=100)
    assert found.results["small"].errors == {}
    errors = found.results["doomed"].errors
    assert {error.code for error in errors.values()} == {Code.UNAVAILABLE}
    assert all(error.retryable for error in errors.values())
    assert any("has failed" in error.message for error in errors.values())
    failures = [e for e in server.log() if e["event"] == "scorer failed"]
    assert any(e["scorer"] == "doomed" and e["losses"] == 5 for e in failures)
    # One worker is tried after the cool-down, and its first good batch closes the circuit.
    with unharmed(server, scorers=["doomed"], new_workers=1) as watched:
        eventually(
            lambda: "READY" in {i.state for i in client.list_scorers() if i.name == "doomed"},
            LOAD_S,
        )
        sent = items(["ok"])
        watched.answered(sent, client.score(sent, ["doomed"]))


def test_what_was_mended_is_tried_again_on_sighup(
    server: Server, client: RewardClient, folder: Path
) -> None:
    def state() -> str:
        return {info.name: info.state for info in client.list_scorers()}["unblessed"]

    eventually(lambda: state() == "FAILED", LOAD_S)
    before = {pid for pid in server.worker_pids() if is_running(pid)}
    (folder / "blessed").touch()
    with unharmed(server, new_workers=1), within(LOAD_S):
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: state() == "READY", LOAD_S)
    # Whoever was well keeps the worker it had.
    assert before <= {pid for pid in server.worker_pids() if is_running(pid)}


def test_states_tell_why_a_scorer_failed(server: Server, client: RewardClient) -> None:
    eventually(
        lambda: (
            {i.name for i in client.list_scorers() if i.state == "FAILED"}
            >= {"self_test", "absent", "options", "elsewhere"}
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
