"""More work than the server can do: what is refused, what is told, and who is served first."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from server_process import BAD, HEADER, Server, eventually, items, running
from unharmed import rss_bytes, unharmed, within

from reward_client import (
    DeadlineExceeded,
    Image,
    InvalidArgument,
    Item,
    Priority,
    ResourceExhausted,
    RewardClient,
    ScoreResponse,
    ScorerSelector,
    Unavailable,
)
from reward_client._wire import (
    convert,
)
from reward_client.types import ScoreRequest

BATCH_S = 0.25
BATCH_ITEMS = 4
PLACES = 64
LOAD = f"""
max_queue_items = {PLACES}
[scorers.slow]
scorer = "{BAD}:Mean"
max_batch_items = {BATCH_ITEMS}
max_wait_ms = 0
options = {{ sleep_s = {BATCH_S} }}
[scorers.quick]
scorer = "{BAD}:Mean"
[scorers.late]
scorer = "{BAD}:SlowToLoad"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("load")
    with running(folder, HEADER + LOAD, wait_for=("slow", "quick")) as server:
        with server.client(attempts=1) as client:
            # A scorer that still loads is refused at once, whatever else the server does.
            with pytest.raises(Unavailable, match="is starting") as warming:
                client.score(items(["ok"]), ["late"])
            assert warming.value.retryable
            assert warming.value.retry_after_s
            client.wait_ready(["late"])
        yield server
        assert server.stop() == 0


def waiting(server: Server) -> float:
    return server.metric("reward_queue_items", scorer="slow")


class Backlog:
    """Requests that wait in the background, from a connection of their own."""

    def __init__(self, server: Server, sizes: list[int], priority: Priority) -> None:
        self._client = RewardClient(server.grpc_url, attempts=1, timeout_s=60)
        self._pool = ThreadPoolExecutor(len(sizes))
        self.sent = [items(["ok"] * size) for size in sizes]
        self._futures = [
            self._pool.submit(self._client.score, sent, ["slow"], priority=priority)
            for sent in self.sent
        ]

    def answers(self) -> list[tuple[list[Item], ScoreResponse]]:
        found = [future.result(60) for future in self._futures]
        self._pool.shutdown()
        self._client.close()
        return list(zip(self.sent, found, strict=True))


def full(server: Server, priority: Priority = Priority.TRAIN) -> Backlog:
    backlog = Backlog(server, [PLACES], priority)
    eventually(lambda: waiting(server) >= PLACES - BATCH_ITEMS)
    return backlog


def asked(client: RewardClient, sent: list[Item]) -> ScoreResponse | ResourceExhausted:
    try:
        return client.score(sent, ["slow"])
    except ResourceExhausted as error:
        return error


def test_a_full_queue_refuses_and_its_advice_can_be_followed(server: Server) -> None:
    with unharmed(server) as watched, server.client(attempts=1) as client:
        with pytest.raises(InvalidArgument, match="smaller requests"):
            client.score(items(["ok"] * (PLACES + 1)), ["slow"])
        backlog = full(server)
        time.sleep(4 * BATCH_S)  # until a rate can be measured
        sent = items(["ok"] * 16)
        refused = 0
        begin_s = time.monotonic()
        while isinstance(response := asked(client, sent), ResourceExhausted):
            assert "full" in response.message
            assert response.retryable
            assert response.retry_after_s is not None
            # 16 places are free again after 1 s on an idle machine; a busy one is slower, and says
            # so.
            assert 0.1 <= response.retry_after_s <= 10
            refused += 1
            time.sleep(response.retry_after_s)
        assert 1 <= refused <= 2, "the advice was followed and led nowhere"
        assert time.monotonic() - begin_s < 20
        watched.answered(sent, response)
        for answer in backlog.answers():
            watched.answered(*answer)


def test_the_advice_is_the_measured_rate(server: Server) -> None:
    with unharmed(server) as watched, server.client(attempts=1) as client:
        backlog = full(server)
        begin, begin_s = waiting(server), time.monotonic()
        time.sleep(8 * BATCH_S)
        left, took_s = waiting(server), time.monotonic() - begin_s
        per_s = (begin - left) / took_s
        asked = PLACES
        with pytest.raises(ResourceExhausted) as refused:
            client.score(items(["ok"] * asked), ["slow"])
        told_s = refused.value.retry_after_s or 0
        # As long as it takes until all that wait are gone, at the rate that was seen from outside.
        assert told_s == pytest.approx(left / per_s, rel=0.6, abs=2 * BATCH_S)
        for answer in backlog.answers():
            watched.answered(*answer)


def test_a_slow_scorer_that_is_full_does_not_shut_the_others_out(server: Server) -> None:
    with unharmed(server) as watched, server.client(attempts=1) as client:
        backlog = full(server)
        sent = items(["ok"] * 32)
        with within(5):
            watched.answered(sent, client.score(sent, ["quick"]))
        assert waiting(server) > 0
        for answer in backlog.answers():
            watched.answered(*answer)


def test_memory_stays_flat_while_a_full_queue_refuses(server: Server) -> None:
    image = Image.from_array(np.full((128, 128, 3), 7, np.uint8))
    large = [Item(f"i{i}", "", (image,)) for i in range(62)]  # 3 MB a request
    with unharmed(server) as watched, server.client(attempts=1) as client:
        backlog = full(server)
        before, highest = rss_bytes(server), 0
        for _ in range(40):
            assert isinstance(asked(client, large), ResourceExhausted)
            highest = max(highest, rss_bytes(server))
        assert highest - before < 60 << 20  # 120 MB were sent
        for answer in backlog.answers():
            watched.answered(*answer)


def test_training_goes_before_evaluation_before_bulk(server: Server) -> None:
    order: list[Priority] = []
    with unharmed(server) as watched, server.client(attempts=1) as client:
        ahead = Backlog(server, [8 * BATCH_ITEMS], Priority.TRAIN)
        eventually(lambda: waiting(server) > 0)
        threads = []
        for priority in (Priority.BULK, Priority.EVAL, Priority.TRAIN):

            def ask(priority: Priority = priority) -> None:
                sent = items(["ok"] * BATCH_ITEMS)
                response = client.score(sent, ["slow"], priority=priority)
                order.append(priority)
                watched.answered(sent, response)

            threads.append(threading.Thread(target=ask))
            threads[-1].start()
            time.sleep(0.2)
        for thread in threads:
            thread.join(30)
        for answer in ahead.answers():
            watched.answered(*answer)
    assert order == [Priority.TRAIN, Priority.EVAL, Priority.BULK]


def test_a_client_with_one_item_does_not_wait_for_one_with_many(server: Server) -> None:
    with unharmed(server) as watched:
        backlog = Backlog(server, [60], Priority.TRAIN)
        eventually(lambda: waiting(server) >= 50)
        # Over HTTP: gRPC channels of one process to one server share a connection.
        with RewardClient(server.http_url, attempts=1) as client:
            sent = items(["ok"])
            before = waiting(server)
            response = client.score(sent, ["slow"], priority=Priority.TRAIN)
            watched.answered(sent, response)
            passed = before - waiting(server)
        # The batch that runs and its own are ahead of it; some more pass while this test asks.
        assert passed <= before / 2, f"{passed} of {before} items went first"
        assert before > 20
        for answer in backlog.answers():
            watched.answered(*answer)


def test_deadlines_hold_in_the_queue(server: Server) -> None:
    with unharmed(server) as watched, server.client(attempts=1) as client:
        backlog = Backlog(server, [40], Priority.TRAIN)
        eventually(lambda: waiting(server) >= 36)
        computed = server.metric("reward_batch_items_sum", scorer="slow")
        with within(5), pytest.raises(DeadlineExceeded):
            client.score(items(["ok"] * 12), ["slow"], priority=Priority.BULK, deadline_s=0.3)
        for answer in backlog.answers():
            watched.answered(*answer)
        # Nobody computed what nobody waited for any more.
        eventually(lambda: waiting(server) == 0)
        assert server.metric("reward_batch_items_sum", scorer="slow") - computed <= 40


@pytest.mark.parametrize("api", ["grpc", "http"])
def test_a_caller_that_hangs_up_leaves_nothing_behind(server: Server, api: str) -> None:
    request = ScoreRequest("", (ScorerSelector("slow"),), tuple(items(["x"] * 60)))
    body = convert.request_to_proto(request).SerializeToString()
    with unharmed(server):
        before = server.metric("reward_batch_items_sum", scorer="slow")
        if api == "http":
            connection = http.client.HTTPConnection("127.0.0.1", server.ports["http"])
            connection.request(
                "POST", "/v1/score", body, {"content-type": "application/x-protobuf"}
            )
            eventually(lambda: waiting(server) > 0)
            connection.close()
        else:
            with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
                call = channel.unary_unary("/reward.v1.RewardService/Score").future(body)
                eventually(lambda: waiting(server) > 0)
                call.cancel()
        with within(10 * BATCH_S + 5):  # the batch that runs is finished; the rest is dropped
            eventually(lambda: waiting(server) == 0)
        assert server.metric("reward_admitted_bytes") == 0
        assert server.metric("reward_batch_items_sum", scorer="slow") - before < 60


def test_retries_of_a_request_in_flight_are_computed_once(server: Server) -> None:
    with unharmed(server) as watched:
        before = server.metric("reward_batch_items_sum", scorer="slow")
        sent = items(["x"] * 12)
        clients = [RewardClient(url, attempts=1) for url in (server.grpc_url, server.http_url)]
        with ThreadPoolExecutor(6) as pool:
            futures = [
                pool.submit(clients[i % 2].score, sent, ["slow"], request_id="once")
                for i in range(6)
            ]
            for future in futures:
                watched.answered(sent, future.result(60))
        for client in clients:
            client.close()
        assert server.metric("reward_batch_items_sum", scorer="slow") - before == 12
