"""What a running server tells its operator: metrics, states of replicas, lines in the log."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from server_process import BAD, HEADER, Server, eventually, grey, is_running, items, running

from reward_client import Item, Priority, RewardClient, RewardError
from reward_server.observability.gauges import WINDOW_SCORES, ScorerWatch
from reward_server.observability.metrics import Metrics
from reward_server.observability.requests import BURST_LINES, LINES_PER_S, LogBudget
from reward_server.scheduling.batching import BatchLimits, Job

TOML = f"""{HEADER}slow_request_s = 2
[scorers.mean]
scorer = "{BAD}:Obedient"
max_batch_items = 4
max_wait_ms = 20
[scorers.slow]
scorer = "{BAD}:Mean"
max_batch_items = 1
replicas = 2
options = {{ sleep_s = 0.5 }}
[scorers.broken]
scorer = "{BAD}:FailsSelfTest"
"""
SECRET = "a secret prompt nobody may read"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("o"), TOML, wait_for=("mean", "slow")) as server:
        yield server
        assert server.stop() == 0


def families(server: Server) -> dict[str, Metric]:
    """Parsed as Prometheus parses them."""
    return {
        family.name: family for family in text_string_to_metric_families(server.get("/metrics"))
    }


def test_metrics_of_requests_batches_and_scores(server: Server) -> None:
    with server.client(attempts=1) as client:
        for _ in range(3):
            client.score(items(["a"] * 8), ["mean"])
        client.score(items(["nan", "a"]), ["mean"])
        with pytest.raises(RewardError):
            client.score(items(["a"]), ["absent"])
    found = families(server)
    for name in ("reward_queue_seconds", "reward_decode_seconds", "reward_compute_seconds"):
        assert server.metric(f"{name}_count", scorer="mean") > 0, name
    assert server.metric("reward_scorer_seconds_count", scorer="mean") == 4
    assert server.metric("reward_items_total", scorer="mean", code="INTERNAL") == 1
    assert server.metric("reward_requests_total", code="NOT_FOUND") == 1
    assert server.metric("reward_batch_fill_ratio_sum", scorer="mean") > 0
    fill = server.metric("reward_batch_fill_ratio_sum", scorer="mean")
    assert fill == pytest.approx(server.metric("reward_batch_items_sum", scorer="mean") / 4)
    scores = [10 + i for i in range(8)] * 3 + [11]
    mean = sum(scores) / len(scores)
    spread = (sum((s - mean) ** 2 for s in scores) / len(scores)) ** 0.5
    assert server.metric("reward_recent_score_mean", scorer="mean") == pytest.approx(mean)
    assert server.metric("reward_recent_score_std", scorer="mean") == pytest.approx(spread)
    (build,) = found["reward_build_info"].samples
    assert build.labels["version"] not in ("", "unknown")
    assert len(build.labels["revision"]) == 40
    assert server.metric("process_resident_memory_bytes") > 1e6


def test_no_text_of_a_caller_becomes_a_label(server: Server) -> None:
    marker = "xyzzy"
    with server.client(attempts=1) as client:
        for index in range(20):
            with pytest.raises(RewardError):
                client.score(items([marker]), [f"{marker}{index}"], request_id=f"{marker}{index}")
    before = len(list(server.get("/metrics").splitlines()))
    with httpx.Client(base_url=server.http_url, trust_env=False) as other:
        for index in range(20):
            other.post(f"/v1/{marker}{index}", headers={"user-agent": marker})
            other.post("/v1/score", content=b"", headers={"content-type": f"{marker}/{index}"})
    text = server.get("/metrics")
    assert marker not in text
    # Only the first INVALID_ARGUMENT over HTTP makes new lines.
    assert len(text.splitlines()) - before < 40


def test_workers_and_their_memory_are_told_and_gpu_memory_is_not_made_up(server: Server) -> None:
    found = families(server)
    assert server.metric("reward_replica_ready", scorer="slow") == 2
    assert {s.labels["replica"] for s in found["reward_worker_rss_bytes"].samples} >= {"0", "1"}
    assert all(s.value > 1e6 for s in found["reward_worker_rss_bytes"].samples)
    assert found["reward_worker_gpu_memory_bytes"].samples == []
    assert server.metric("reward_scorer_state", scorer="broken", state="FAILED") == 1
    assert server.metric("reward_scorer_state", scorer="mean", state="READY") == 1
    assert server.metric("reward_scorer_state", scorer="mean") == 1


def test_age_of_the_oldest_item_grows_until_it_is_taken(server: Server) -> None:
    body = {
        "scorers": [{"name": "slow"}],
        "items": [
            {
                "id": f"{i}",
                "images": [{"data": "AAAA", "encoding": "RAW_U8_RGB_HWC", "width": 1, "height": 1}],
            }
            for i in range(6)
        ],
    }
    connection = http.client.HTTPConnection("127.0.0.1", server.ports["http"], timeout=30)
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/score", json.dumps(body), headers)
    eventually(lambda: server.metric("reward_oldest_wait_seconds", scorer="slow") > 0.3)
    assert server.metric("reward_waiting_items", scorer="slow") >= 1
    assert json.loads(connection.getresponse().read())["results"][0]["scores"] == [0.0] * 6
    connection.close()
    assert server.metric("reward_waiting_items", scorer="slow") == 0
    assert server.metric("reward_oldest_wait_seconds", scorer="slow") == 0


@pytest.mark.parametrize("api", ["grpc", "http"])
def test_the_list_of_scorers_shows_replicas(server: Server, api: str) -> None:
    url = server.grpc_url if api == "grpc" else server.http_url
    with RewardClient(url) as client:
        infos = {info.name: info for info in client.list_scorers()}
    slow = infos["slow"].replicas
    assert [replica.name for replica in slow] == ["0", "1"]
    for replica in slow:
        assert (replica.state, replica.device) == ("READY", "cpu")
        assert replica.pid is not None
        assert is_running(replica.pid)
        assert replica.rss_bytes is not None
        assert replica.rss_bytes > 1e6
        assert replica.device_memory_bytes is None
    (broken,) = infos["broken"].replicas
    assert (broken.state, broken.pid, broken.rss_bytes) == ("FAILED", None, None)
    assert "expected 1, found 2" in broken.last_error
    shown = json.loads(server.get("/v1/scorers"))["scorers"]
    (entry,) = [entry for entry in shown if entry["name"] == "mean"]
    assert isinstance(entry["replicas"][0]["rss_bytes"], float)


def test_a_restarted_worker_keeps_its_past_error(server: Server) -> None:
    with server.client() as client:
        old = {i.name: i for i in client.list_scorers()}["mean"].replicas[0]
        assert old.pid is not None
        os.kill(old.pid, signal.SIGKILL)

        def is_back() -> bool:
            (new,) = {i.name: i for i in client.list_scorers()}["mean"].replicas
            # An instant after the kill it is still READY, without a process.
            return new.state == "READY" and new.pid not in (None, old.pid)

        eventually(is_back)
        (new,) = {i.name: i for i in client.list_scorers()}["mean"].replicas
    assert new.restarts == old.restarts + 1
    assert f"worker {old.pid} was killed by signal 9" in new.last_error
    assert server.metric("reward_worker_restarts_total", scorer="mean", cause="died") >= 1


def lines(server: Server, request_id: str) -> list[dict[str, object]]:
    return [line for line in server.log() if line.get("request_id") == request_id]


def test_one_line_per_failed_or_slow_request_and_none_for_a_good_one(server: Server) -> None:
    with server.client(attempts=1) as client:
        client.score(items([SECRET]), ["mean"], request_id="good")
        # Ten times half a second on two replicas.
        client.score(items([SECRET] * 10), ["slow"], request_id="late")
        client.score(items(["nan", SECRET]), ["mean"], request_id="half")
        with pytest.raises(RewardError):
            client.score(items([SECRET]), ["absent"], request_id="bad\nevent")
    assert lines(server, "good") == []
    (slow,) = lines(server, "late")
    assert (slow["event"], slow["level"]) == ("slow request", "warning")
    assert float(str(slow["seconds"])) > 2
    (half,) = lines(server, "half")
    assert (half["code"], half["failed_items"]) == ("OK", {"INTERNAL": 1})
    (bad,) = lines(server, "bad?event")
    assert (bad["code"], bad["level"], bad["api"]) == ("NOT_FOUND", "info", "grpc")
    assert str(bad["caller"]).startswith("ipv4:127.0.0.1")
    assert SECRET not in server.log_file.read_text()
    starts = [line for line in server.log() if line["event"] == "worker started"]
    assert all({"scorer", "replica", "pid"} <= line.keys() for line in starts)


def test_the_level_changes_while_the_server_runs(server: Server) -> None:
    def score(request_id: str) -> None:
        with server.client() as client:
            client.score(items(["a"]), ["mean"], request_id=request_id)

    def changes() -> int:
        return sum(line["event"] == "log level changed" for line in server.log())

    os.kill(server.process.pid, signal.SIGUSR1)
    eventually(lambda: changes() == 1)
    score("seen")
    (line,) = lines(server, "seen")
    assert (line["level"], line["code"], line["items"]) == ("debug", "OK", 1)
    os.kill(server.process.pid, signal.SIGUSR2)
    eventually(lambda: changes() == 2)
    score("unseen")
    assert lines(server, "unseen") == []
    assert server.log()[-1]["log_level"] == "info"


def test_a_flood_of_failures_does_not_flood_the_log(tmp_path: Path) -> None:
    with running(tmp_path, "[scorers.jpeg]\n", wait_for=("jpeg",)) as server:
        with server.client(attempts=1) as client:
            for _ in range(150):
                with pytest.raises(RewardError):
                    client.score([Item("a", "", (grey(1),))], ["absent"])
        told = [line for line in server.log() if line.get("code") == "NOT_FOUND"]
        assert BURST_LINES <= len(told) < 150
        assert server.metric("reward_requests_total", code="NOT_FOUND") == 150


@given(st.lists(st.floats(0, 10), max_size=300))
def test_a_budget_loses_no_count(gaps_s: list[float]) -> None:
    now_s = [0.0]
    budget = LogBudget(lambda: now_s[0])
    written = suppressed = 0
    for gap_s in gaps_s:
        now_s[0] += gap_s
        if (held := budget.ask("kind")) is not None:
            written += 1
            suppressed += held
    now_s[0] += 1.0
    suppressed += budget.ask("kind") or 0
    assert written + suppressed == len(gaps_s)
    assert written <= BURST_LINES + LINES_PER_S * sum(gaps_s) + 1


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=2 * WINDOW_SCORES))
def test_the_window_knows_the_latest_scores_only(scores: list[float]) -> None:
    metrics = Metrics()
    for score in scores:
        metrics.observe_score("a", score)
    kept = scores[-WINDOW_SCORES:]
    mean = sum(kept) / len(kept)
    assert list(metrics.recent_scores["a"]) == kept
    families = ScorerWatch(tuple, tuple, metrics.recent_scores).collect()
    found = [family.samples[0].value for family in families if family.samples]
    assert found[0] == pytest.approx(mean, abs=1e-6)
    spread = (sum((score - mean) ** 2 for score in kept) / len(kept)) ** 0.5
    assert found[1] == pytest.approx(spread, abs=1e-6)


@given(st.integers(1, 20), st.integers(1, 1000), st.lists(st.integers(1, 100), max_size=30))
def test_fill_is_the_share_of_the_nearer_limit(
    max_items: int, max_pixels: int, sizes: list[int]
) -> None:
    batch = [Job(i, "", Priority.TRAIN, size, 0.0) for i, size in enumerate(sizes)]
    fill = BatchLimits(max_items, max_pixels, 0.0).fill(batch)
    assert 0 <= fill <= 1
    assert fill == min(1, max(len(sizes) / max_items, sum(sizes) / max_pixels))


def test_small_answers_do_not_wait_for_an_acknowledgement(server: Server) -> None:
    # Nagle's algorithm against delayed ACKs: 40 ms for every answer on a kept connection.
    waits_s = []
    with httpx.Client(base_url=server.http_url, trust_env=False) as client:
        for _ in range(40):
            begin_s = time.perf_counter()
            client.get("/livez").raise_for_status()
            waits_s.append(time.perf_counter() - begin_s)
    assert sorted(waits_s)[len(waits_s) // 2] < 0.035
