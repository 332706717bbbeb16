"""Traces from the client through a gateway to the worker, as a real collector receives them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from otlp_receiver import Receiver, Span, receiving
from server_process import BAD, HEADER, ROOT, Server, eventually, items, run_cli, running

from reward_client import AsyncRewardClient, RewardClient
from reward_client.errors import NotFound

SCORERS = f"""
[scorers.mean]
scorer = "{BAD}:Mean"
max_wait_ms = 300
options = {{ sleep_s = 0.02 }}
"""


@dataclass
class Chain:
    """client -> gateway -> backend, each server a process of its own."""

    receiver: Receiver
    gateway: Server
    backend: Server

    def trace(self, trace_id: str, n_servers: int = 2) -> list[Span]:
        """The spans of one trace, once the last of the outer server's spans has arrived."""

        def whole() -> bool:
            found = [s for s in self.receiver.spans if s.trace_id == trace_id]
            return sum(s.kind == trace.SpanKind.SERVER.value + 1 for s in found) >= n_servers

        eventually(whole)
        return [span for span in self.receiver.spans if span.trace_id == trace_id]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chain]:
    with receiving() as receiver, pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        patch.setenv("OTEL_SERVICE_NAME", "backend")
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        with running(tmp_path_factory.mktemp("b"), SCORERS, wait_for=("mean",)) as backend:
            patch.setenv("OTEL_SERVICE_NAME", "gateway")
            patch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
            target = backend.grpc_url.removeprefix("grpc://")
            toml = f'{HEADER}otlp_endpoint = "{receiver.url}"\n'
            toml += f'[scorers.mean]\nupstream = "{target}"\n'
            with running(tmp_path_factory.mktemp("g"), toml, wait_for=("mean",)) as gateway:
                yield Chain(receiver, gateway, backend)


@pytest.fixture(scope="module", autouse=True)
def tracer() -> trace.Tracer:
    """The host program's own tracing: spans of the client become part of it."""
    trace.set_tracer_provider(TracerProvider(shutdown_on_exit=False))
    return trace.get_tracer("host")


def children(spans: list[Span], parent_id: str) -> list[str]:
    return sorted(span.name for span in spans if span.parent_id == parent_id)


def one(spans: list[Span], name: str, service: str) -> Span:
    (found,) = [span for span in spans if (span.name, span.service) == (name, service)]
    return found


@pytest.mark.parametrize("kind", ["grpc", "http", "aio-grpc", "aio-http"])
def test_one_trace_from_client_through_gateway_to_worker(
    chain: Chain, tracer: trace.Tracer, kind: str
) -> None:
    url = chain.gateway.grpc_url if kind.endswith("grpc") else chain.gateway.http_url

    async def ask() -> None:
        async with AsyncRewardClient(url) as client:
            await client.score(items(["a", "b"]), ["mean"])

    with tracer.start_as_current_span("training step") as step:
        if kind.startswith("aio"):
            asyncio.run(ask())
        else:
            with RewardClient(url) as client:
                client.score(items(["a", "b"]), ["mean"])
        own = step.get_span_context()
    spans = chain.trace(f"{own.trace_id:032x}")
    method = "reward.v1.RewardService/Score" if kind.endswith("grpc") else "POST /v1/score"
    outer = one(spans, method, "gateway")
    # The client's span lies between: the host exports it, not we.
    assert outer.parent_id not in {span.span_id for span in spans}
    assert outer.parent_id not in {f"{own.span_id:016x}", ""}
    assert children(spans, outer.span_id) == ["receive", "score"]
    forward = one(spans, "forward", "gateway")
    assert children(spans, one(spans, "score", "gateway").span_id) == ["forward"]
    inner = one(spans, "reward.v1.RewardService/Score", "backend")
    assert inner.parent_id == forward.span_id
    assert children(spans, inner.span_id) == ["decode", "receive", "score"]
    assert children(spans, one(spans, "score", "backend").span_id) == ["batch", "queue"]
    batch, compute = one(spans, "batch", "backend"), one(spans, "compute", "backend")
    assert compute.parent_id == batch.span_id
    assert compute.attributes["process.pid"] in chain.backend.worker_pids()
    assert batch.attributes["reward.batch.items"] == 2
    assert outer.attributes["reward.code"] == "OK"
    assert compute.end_ns - compute.begin_ns >= 20e6
    for parent, child in ((outer, forward), (forward, inner), (inner, batch), (batch, compute)):
        slack_ns = 5e6  # clocks are read one after the other
        assert parent.begin_ns - slack_ns <= child.begin_ns
        assert child.end_ns <= parent.end_ns + slack_ns


def test_requests_that_share_a_batch_are_linked(chain: Chain, tracer: trace.Tracer) -> None:
    def ask(index: int) -> str:
        with (
            tracer.start_as_current_span(f"caller {index}") as span,
            RewardClient(chain.backend.grpc_url) as client,
        ):
            client.score(items(["x"], first=index), ["mean"])
            return f"{span.get_span_context().trace_id:032x}"

    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(ask, range(4)))
    batches = [one(chain.trace(name, 1), "batch", "backend") for name in ids]
    shared = [batch for batch in batches if batch.attributes["reward.batch.items"] > 1]
    assert shared
    for batch in shared:
        linked = {trace_id for trace_id, _ in batch.links}
        assert len(batch.links) == batch.attributes["reward.batch.items"] - 1
        assert linked <= set(ids) - {batch.trace_id}


def test_failures_are_marked_and_named_in_the_log(chain: Chain, tracer: trace.Tracer) -> None:
    with (
        tracer.start_as_current_span("step") as span,
        RewardClient(chain.backend.grpc_url, attempts=1) as client,
        pytest.raises(NotFound),
    ):
        client.score(items(["secret prompt"]), ["absent"])
    trace_id = f"{span.get_span_context().trace_id:032x}"
    spans = chain.trace(trace_id, 1)
    failed = one(spans, "reward.v1.RewardService/Score", "backend")
    assert failed.failed
    assert failed.attributes["error.type"] == "NOT_FOUND"
    assert "secret prompt" not in repr(spans)
    assert trace_id in {line.get("trace_id") for line in chain.backend.log()}


def test_untraced_callers_get_traces_of_their_own(chain: Chain) -> None:
    before = len(chain.receiver.named("POST /v1/score"))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\nfrom reward_client import *\nimport numpy as np\n"
            "image = Image.from_array(np.zeros((8, 8, 3), np.uint8))\n"
            f"with RewardClient('{chain.backend.http_url}') as client:\n"
            "    client.score([Item('a', '', (image,))], ['mean'])\n"
            "sys.exit('opentelemetry.trace' in sys.modules)\n",
        ],
        cwd=ROOT,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0  # the client has not imported OpenTelemetry
    eventually(lambda: len(chain.receiver.named("POST /v1/score")) > before)
    assert chain.receiver.named("POST /v1/score")[-1].parent_id == ""


def test_a_collector_that_is_away_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    with running(tmp_path, SCORERS, wait_for=("mean",)) as server:
        with server.client() as client:
            assert client.score(items(["a"]), ["mean"]).results["mean"].scores == (10.0,)
        begin_s = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begin_s < 15


def test_an_unsupported_protocol_is_one_line() -> None:
    done = run_cli(
        *("serve", "--scorers", "jpeg"),
        OTEL_EXPORTER_OTLP_PROTOCOL="grpc",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9",
    )
    assert done.returncode == 2
    assert "http/protobuf" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
