"""Replicas that break, are slow, or cannot start for now."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from server_process import BAD, Server, eventually, items, running

from reward_client import Code, RewardClient
from reward_client.types import ScorerResult
from reward_server.config import ScorerConfig
from reward_server.observability.metrics import Metrics
from reward_server.scheduling.cache import ResultCache
from reward_server.workers.pool import open_pools
from reward_server.workers.replica import Pace

TOML = f"""
[scorers.breakable]
scorer = "{BAD}:Breakable"
max_wait_ms = 50
[scorers.breakable_in_a_window]
scorer = "{BAD}:Breakable"
options = {{ self_test_s = 0.5 }}
max_batch_items = 2
[scorers.busy]
scorer = "{BAD}:BusyAtFirst"
options = {{ marker = "MARKER" }}
[scorers.slow]
scorer = "{BAD}:SlowItems"
options = {{ item_s = 0.2 }}
timeout_s = 1
[scorers.forker]
scorer = "{BAD}:Forker"
[scorers.twins]
scorer = "{BAD}:OfThisProcess"
replicas = 2
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("replicas")
    toml = TOML.replace("MARKER", str(folder / "marker"))
    ready = ("breakable", "breakable_in_a_window", "slow", "forker", "twins")
    with running(folder, toml, wait_for=ready) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[RewardClient]:
    with server.client(attempts=1) as client:
        yield client


def restarts(server: Server, scorer: str, cause: str) -> float:
    return server.metric("reward_worker_restarts_total", scorer=scorer, cause=cause)


def test_a_broken_device_is_replaced_and_only_its_item_fails(
    server: Server, client: RewardClient
) -> None:
    before = restarts(server, "breakable", "self_test")
    found = client.score(items(["ok", "ok", "break", "ok"]), ["breakable"]).results["breakable"]
    assert set(found.errors) == {2}
    assert found.errors[2].code is Code.UNAVAILABLE
    assert found.errors[2].retryable
    assert "illegal memory access" in found.errors[2].message
    # In the batch, and alone.
    assert restarts(server, "breakable", "self_test") - before == 2


def test_items_of_a_device_that_broke_before_run_again(
    server: Server, client: RewardClient
) -> None:
    before = restarts(server, "breakable", "self_test")
    assert client.score(items(["break later"]), ["breakable"]).results["breakable"].errors == {}
    found = client.score(items(["ok"] * 8), ["breakable"]).results["breakable"]
    assert found.errors == {}
    assert found.scores == tuple(10.0 + i for i in range(8))
    assert restarts(server, "breakable", "self_test") - before == 1


def test_a_device_that_breaks_between_two_self_tests_costs_no_item(
    server: Server, client: RewardClient
) -> None:
    name = "breakable_in_a_window"
    before = restarts(server, name, "self_test")

    def score(*prompts: str) -> ScorerResult:
        return client.score(items(list(prompts)), [name]).results[name]

    def bad_items(*prompts: str) -> set[int]:
        found = score(*prompts).errors
        assert {error.code for error in found.values()} <= {Code.INTERNAL}
        return set(found)

    # The device works: failures are the items' own, whether a batch or a self-test shows it.
    begin_s = time.monotonic()
    assert bad_items("raise") == {0}
    assert bad_items("raise", "raise", "ok", "raise") == {0, 1, 3}
    assert bad_items("raise", "ok", "ok", "ok") == {0}
    assert bad_items("raise", "raise", "raise", "raise", "raise") == {0, 1, 2, 3, 4}
    assert time.monotonic() - begin_s < 5.0  # nothing waits for the next regular self-test
    assert restarts(server, name, "self_test") == before
    # A self-test has just passed, the next one is not due for seconds.
    assert score("break later").errors == {}
    found = score(*["ok"] * 8)
    assert found.errors == {}
    assert found.scores == tuple(10.0 + i for i in range(8))
    assert restarts(server, name, "self_test") - before == 1


def test_a_self_test_that_could_not_run_is_tried_again(
    server: Server, client: RewardClient
) -> None:
    client.wait_ready(["busy"], 60)
    assert restarts(server, "busy", "load") == 1
    failed = [e for e in server.log() if e["event"] == "scorer failed" and e["scorer"] == "busy"]
    assert failed == []


def test_slow_items_are_no_hang(server: Server, client: RewardClient) -> None:
    begin_s = time.monotonic()
    found = client.score(items(["ok"] * 16), ["slow"]).results["slow"]
    assert found.errors == {}
    assert time.monotonic() - begin_s > 16 * 0.2
    assert server.metric("reward_worker_restarts_total", scorer="slow") == 0


@pytest.mark.parametrize("item_s", [4.3, 5.5])
def test_the_shipped_scorers_fit_the_default_limit(item_s: float) -> None:
    """PickScore's and HPSv2's seconds per image, CPU: reference/scorers_preference.md, Speed."""
    config = ScorerConfig.model_validate({})
    pace = Pace(config.timeout_s)
    pace.tested(6 * item_s)
    for _ in range(20):
        assert pace.limit_s(config.max_batch_items) > 2 * config.max_batch_items * item_s
        pace.ran(config.max_batch_items, config.max_batch_items * item_s)
    # A fast scorer's hang is found soon, however long its first load took.
    pace.tested(300.0)
    for _ in range(50):
        pace.ran(16, 0.2)
    assert pace.limit_s(16) == pytest.approx(config.timeout_s, abs=1.0)


def test_a_forked_child_does_not_hide_the_death_of_its_worker(
    server: Server, client: RewardClient
) -> None:
    begin_s = time.monotonic()
    found = client.score(items(["ok", "crash"]), ["forker"], deadline_s=50).results["forker"]
    assert set(found.errors) == {1}
    assert found.errors[1].code is Code.UNAVAILABLE
    assert "signal 9" in found.errors[1].message
    assert time.monotonic() - begin_s < 45
    assert restarts(server, "forker", "died") == 2


def test_a_result_has_the_fingerprint_of_the_process_that_computed_it(
    server: Server, client: RewardClient
) -> None:
    def ready() -> list[int | None]:
        (info,) = [info for info in client.list_scorers() if info.name == "twins"]
        return [one.pid for one in info.replicas if one.state == "READY"]

    def stays(but: int | None) -> bool:
        """Whether one process has been READY for a while: a new one may give way to the other."""
        first = ready()
        time.sleep(0.5)
        return len(first) == 1 and first != [but] and ready() == first

    # One of the two serves; the other one would be something else under the same name.
    eventually(lambda: len(ready()) == 1)
    (pid,) = ready()
    for _ in range(2):
        result = client.score(items(["ok"] * 40), ["twins"]).results["twins"]
        assert result.errors == {}
        assert result.fingerprint == f"{pid:064d}"
    (info,) = [info for info in client.list_scorers() if info.name == "twins"]
    assert any("fingerprint" in one.last_error for one in info.replicas)
    assert pid
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: stays(pid))
    (pid,) = ready()
    assert client.score(items(["ok"]), ["twins"]).results["twins"].fingerprint == f"{pid:064d}"


async def test_a_host_out_of_descriptors_delays_a_start() -> None:
    config = ScorerConfig.model_validate({"scorer": f"{BAD}:Mean"})
    pool = open_pools({"mean": config}, Metrics(), lambda name: None, ResultCache(0))["mean"]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        pool.start()
        await until(lambda: bool(pool.last_error))
        assert pool.state == "STARTING"
        assert "Too many open files" in pool.last_error
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        await until(lambda: pool.state == "READY")
    finally:
        await pool.stop()


async def test_a_host_out_of_processes_or_memory_delays_a_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, refusals = asyncio.create_subprocess_exec, [errno.EAGAIN, errno.ENOMEM]

    async def refused_at_first(*arguments: Any, **options: Any) -> Any:
        if refusals:
            number = refusals.pop(0)
            raise OSError(number, os.strerror(number))
        return await start(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refused_at_first)
    config = ScorerConfig.model_validate({"scorer": f"{BAD}:Mean"})
    pool = open_pools({"mean": config}, Metrics(), lambda name: None, ResultCache(0))["mean"]
    reasons: set[str] = set()
    pool.start()
    try:
        await until(lambda: reasons.add(pool.last_error) or pool.state == "READY")
    finally:
        await pool.stop()
    for reason in ("Resource temporarily unavailable", "Cannot allocate memory"):
        assert any(reason in text for text in reasons), reasons


async def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.02)


def test_the_old_version_serves_while_the_new_one_loads_even_if_it_restarts(
    tmp_path: Path,
) -> None:
    toml = f'[scorers.mean]\nscorer = "{BAD}:Mean"\n'
    with running(tmp_path, toml, wait_for=("mean",)) as server, server.client(attempts=1) as client:
        config = tmp_path / "config.toml"
        config.write_text(config.read_text().replace(":Mean", ":SlowToLoad"))
        (old,) = server.worker_pids()
        server.process.send_signal(signal.SIGHUP)
        eventually(lambda: len(server.worker_pids()) == 2)
        os.kill(old, signal.SIGKILL)
        while not any(e["event"] == "scorer replaced" for e in server.log()):
            assert client.score(items(["ok"]), ["mean"]).results["mean"].errors == {}
            time.sleep(0.05)
        assert client.score(items(["ok"]), ["mean"]).results["mean"].errors == {}
