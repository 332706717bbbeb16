"""SIGTERM with work in flight, and SIGHUP with a changed config: nothing is lost."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from server_process import BAD, HEADER, Server, eventually, is_running, items, running
from unharmed import check_answer, children, unharmed, within

from reward_client import InvalidArgument, NotFound, RewardClient, ScoreResponse, Unavailable

LOAD_S = 30.0


def mean(name: str, **options: object) -> str:
    listed = ", ".join(f"{key} = {value!r}" for key, value in options.items())
    return (
        f'[scorers.{name}]\nscorer = "{BAD}:Mean"\nmax_batch_items = 4\nmax_wait_ms = 0\n'
        f"options = {{ {listed} }}\n"
    )


WRONG = f'[scorers.slow]\nscorer = "{BAD}:FailsSelfTest"\n'
KEPT, SLOW = mean("kept"), mean("slow", sleep_s=0.4)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("signals")
    with running(folder, HEADER + KEPT + SLOW, wait_for=("kept", "slow")) as server:
        yield server
        assert server.stop() == 0


def reload(server: Server, scorers: str) -> None:
    """Change the config file, send SIGHUP, and wait until the server says what it did."""
    (server.log_file.parent / "config.toml").write_text(HEADER + scorers)
    before = reloads(server)
    server.process.send_signal(signal.SIGHUP)
    eventually(lambda: reloads(server) > before, 10)


def reloads(server: Server) -> int:
    words = ("config reloaded", "config not reloaded: the old one stays")
    return sum(event["event"] in words for event in server.log())


def live(server: Server, scorer: str) -> set[int]:
    started = [e for e in server.log() if e["event"] == "worker started"]
    return {e["pid"] for e in started if e["scorer"] == scorer and is_running(e["pid"])}


def names(client: RewardClient) -> set[str]:
    return {info.name for info in client.list_scorers()}


def test_requests_in_flight_survive_every_reload(server: Server) -> None:
    """While requests never stop, scorers are added, changed and removed, five times over."""
    stop = threading.Event()

    def load(url: str, scorer: str) -> int:
        count = 0
        with RewardClient(url, attempts=1) as client:
            while not stop.is_set():
                sent = items(["ok"] * 6, first=1 + count % 100)
                watched.answered(sent, client.score(sent, [scorer]))
                count += 1
        return count

    with unharmed(server, scorers=["kept", "slow"]) as watched, server.client() as client:
        kept, changed = live(server, "kept"), live(server, "slow")
        pool = ThreadPoolExecutor(4)
        urls = (server.grpc_url, server.http_url)
        # attempts=1: a request that a reload turns away fails the test.
        tasks = [pool.submit(load, url, name) for url in urls for name in ("kept", "slow")]
        for round_number in range(2):
            reload(server, KEPT + mean("slow", sleep_s=0.3 - 0.1 * round_number) + mean("new"))
            with within(LOAD_S):
                client.wait_ready(["new"], LOAD_S)
                eventually(lambda old=changed: not old & live(server, "slow"), LOAD_S)
            changed = live(server, "slow")
            reload(server, KEPT + mean("slow", sleep_s=0.3 - 0.1 * round_number))
            assert names(client) == {"kept", "slow"}
            with pytest.raises(NotFound, match="new"):
                client.score(items(["ok"]), ["new"])
        stop.set()
        assert all(task.result(60) > 0 for task in tasks)
        pool.shutdown()
        assert live(server, "kept") == kept
        eventually(lambda: len(children(server.process.pid)) == 2, LOAD_S)
    reload(server, KEPT + SLOW)
    eventually(lambda: len(children(server.process.pid)) == 2, LOAD_S)


def test_a_removed_scorer_finishes_what_it_was_given(server: Server) -> None:
    with unharmed(server) as watched, server.client(attempts=1) as client:
        sent = items(["ok"] * 12)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(client.score, sent, ["slow"])
            eventually(lambda: server.metric("reward_queue_items", scorer="slow") > 0)
            reload(server, KEPT)
            assert names(client) == {"kept"}
            watched.answered(sent, waiting.result(LOAD_S))
        assert watched.answers[-1][1].results["slow"].errors == {}
        eventually(lambda: not live(server, "slow"), LOAD_S)
        with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            found = stub.Check(health_pb2.HealthCheckRequest(service="slow"), timeout=10)
            assert found.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    with server.client() as client:
        reload(server, KEPT + SLOW)
        client.wait_ready(["slow"], LOAD_S)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("[scorers.kept]\nreplics = 1\n", "did you mean 'replicas'"),
        ("[scorers.kept\n", "not valid TOML"),
        ("", "no scorer configured"),
    ],
)
def test_a_broken_config_is_refused_in_one_line(server: Server, broken: str, words: str) -> None:
    with unharmed(server) as watched, server.client() as client:
        workers = live(server, "kept") | live(server, "slow")
        reload(server, broken)
        (refusal,) = [e for e in server.log() if e["event"].startswith("config not reloaded")][-1:]
        assert words in refusal["reason"]
        assert "\n" not in refusal["reason"]
        assert names(client) == {"kept", "slow"}
        assert live(server, "kept") | live(server, "slow") == workers
        sent = items(["ok"])
        watched.answered(sent, client.score(sent, ["kept"]))


def test_a_new_version_that_cannot_start_leaves_the_old_one(server: Server) -> None:
    with unharmed(server) as watched, server.client(attempts=1) as client:
        workers = live(server, "slow")
        reload(server, KEPT + WRONG)
        with within(LOAD_S):
            eventually(
                lambda: (
                    "the new version failed"
                    in {i.name: i for i in client.list_scorers()}["slow"].last_error
                ),
                LOAD_S,
            )
        sent = items(["ok"])
        watched.answered(sent, client.score(sent, ["slow"]))
        reload(server, KEPT + SLOW)  # back: what failed is forgotten
        assert {i.name: i.last_error for i in client.list_scorers()}["slow"] == ""
        assert live(server, "slow") == workers


def test_keys_that_need_a_restart_are_named(server: Server) -> None:
    with unharmed(server), server.client(attempts=1) as client:
        client.score(items(["ok"]), ["kept"])  # from here on it knows what the server accepts
        config = server.log_file.parent / "config.toml"
        changed = "max_items = 2\ndecode_threads = 3\n"
        config.write_text(HEADER + changed + KEPT + SLOW)
        before = reloads(server)
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: reloads(server) > before, 10)
        (warning,) = [e for e in server.log() if e["event"].startswith("config keys")][-1:]
        assert warning["keys"] == ["server.decode_threads"]
        with pytest.raises(InvalidArgument, match="limit of 2"):
            client.score(items(["ok"] * 3), ["kept"])
    reload(server, KEPT + SLOW)


def test_sigterm_finishes_what_is_in_flight(tmp_path: Path) -> None:
    shared_before = set(os.listdir("/dev/shm"))
    toml = HEADER + mean("slow", sleep_s=1.0)
    with running(tmp_path, toml, wait_for=("slow",)) as server:
        client = server.client(attempts=1)
        sent = items(["ok"] * 8)
        answers: list[ScoreResponse] = []
        threads = [
            threading.Thread(target=lambda: answers.append(client.score(sent, ["slow"])))
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        eventually(lambda: server.metric("reward_queue_items", scorer="slow") == 16)
        pids = server.worker_pids()
        server.process.send_signal(signal.SIGTERM)
        server.process.send_signal(signal.SIGHUP)  # no time for that any more
        time.sleep(0.2)
        with pytest.raises(Unavailable, match="shutting down") as refused:
            client.score(items(["ok"]), ["slow"])
        assert refused.value.retryable
        with within(4 * 1.0 + LOAD_S):
            for thread in threads:
                thread.join(60)
            assert server.process.wait(30) == 0
        assert len(answers) == 2
        for response in answers:
            check_answer(sent, response)
            assert response.results["slow"].errors == {}
        client.close()
        assert not any(is_running(pid) for pid in pids)
    assert set(os.listdir("/dev/shm")) <= shared_before
