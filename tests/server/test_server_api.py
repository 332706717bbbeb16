"""The APIs of a running server: every encoding and body, batching, health, reflection, errors."""

from __future__ import annotations

import base64
import http.client
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import PIL.Image
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_services import service_stub
from server_process import BAD, Server, eventually, grey, items, run_cli, running
from typer.testing import CliRunner

from reward_client import (
    Code,
    Encoding,
    Image,
    InvalidArgument,
    Item,
    NotFound,
    RewardClient,
    ScorerSelector,
    codec,
)
from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._wire import (
    convert,
)
from reward_client.types import ScoreRequest
from reward_server.cli import app

SERVICE = pb.DESCRIPTOR.services_by_name["RewardService"]
TOML = f"""
[scorers.jpeg]
[scorers.mean]
scorer = "{BAD}:Mean"
max_wait_ms = 400
[scorers.slow]
scorer = "{BAD}:Mean"
max_batch_items = 1
max_wait_ms = 0
options = {{ sleep_s = 0.5, log_file = "LOG" }}
[scorers.picky]
scorer = "{BAD}:Mean"
options = {{ inputs = "image,prompt,references,spec.geneval" }}
"""
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 16, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("api")
    toml = TOML.replace("LOG", str(folder / "slow.log"))
    with running(folder, toml, wait_for=("jpeg", "mean", "slow", "picky")) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture(params=["grpc", "http"])
def client(server: Server, request: pytest.FixtureRequest) -> Iterator[RewardClient]:
    url = server.grpc_url if request.param == "grpc" else server.http_url
    with RewardClient(url, attempts=1) as client:
        yield client


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
        yield channel


def test_every_encoding_in_one_request(client: RewardClient) -> None:
    sent = [Item(encoding.value, "", (codec.encode(PIXELS, encoding),)) for encoding in Encoding]
    found = client.score(sent, ["mean"]).results["mean"]
    assert found.errors == {}
    for item, score, is_lossy in zip(sent, found.scores, found.lossy_input, strict=True):
        assert is_lossy == (item.id == "JPEG")
        assert score == pytest.approx(PIXELS.mean(), abs=3.0 if is_lossy else 1e-9)


def test_several_scorers_versions_transforms_details(client: RewardClient) -> None:
    asked = [ScorerSelector("mean", "7", "halved"), ScorerSelector("jpeg")]
    response = client.score(items(["a", "b"]), asked, include_details=True)
    assert list(response.results) == ["mean", "jpeg"]
    mean = response.results["mean"]
    assert mean.scores == (5.0, 5.5)
    assert mean.raw == (10.0, 11.0)
    assert mean.components == {"width": (8.0, 8.0)}
    assert mean.details == ({"prompt": "a"}, {"prompt": "b"})
    assert mean.version == "7"
    assert mean.fingerprint == "ffffffff"
    assert mean.compute_ms > 0
    infos = {info.name: info for info in client.list_scorers()}
    assert infos["mean"].transforms == ("halved", "raw")
    assert infos["mean"].output_range == (0.0, 255.0)


def test_bad_requests_name_what_is_wrong(client: RewardClient) -> None:
    with pytest.raises(NotFound, match="did you mean 'jpeg'"):
        client.score(items(["a"]), ["jpge"])
    with pytest.raises(NotFound, match="version '7'"):
        client.score(items(["a"]), [ScorerSelector("mean", "8")])
    with pytest.raises(NotFound, match="halved, raw"):
        client.score(items(["a"]), [ScorerSelector("mean", "", "third")])
    broken = Image(b"\x89PNG\r\n\x1a\nnonsense", Encoding.PNG)
    with pytest.raises(InvalidArgument, match=r"item 'x', images\[0\]") as caught:
        client.score([Item("x", "", (broken,))], ["mean"])
    assert set(caught.value.items) == {0}


def test_broken_items_leave_the_others_alone(client: RewardClient) -> None:
    broken = Image(b"\x89PNG\r\n\x1a\nnonsense", Encoding.PNG)
    sent = [*items(["a"]), Item("x", "", (broken,)), Item("none", "", ())]
    found = client.score(sent, ["mean"]).results["mean"]
    assert found.scores == (10.0, None, None)
    assert {error.code for error in found.errors.values()} == {Code.INVALID_ARGUMENT}
    assert "`images`" in found.errors[2].message


def test_missing_inputs_are_named(client: RewardClient) -> None:
    spec = {"tag": "single_object", "include": [{"class": "star", "count": 1}], "exclude": []}
    good = Item("good", "p", (grey(9),), (grey(1),), spec, "geneval")
    sent = [
        good,
        Item("no prompt", " ", good.images, good.references, spec, "geneval"),
        Item("no reference", "p", good.images, (), spec, "geneval"),
        Item("no spec", "p", good.images, good.references),
    ]
    found = client.score(sent, ["picky"]).results["picky"]
    assert found.scores == (9.0, None, None, None)
    for index, word in ((1, "`prompt`"), (2, "`references`"), (3, "GenEval metadata row")):
        assert word in found.errors[index].message


def test_requests_share_batches(server: Server) -> None:
    batches, count = "reward_batch_items_count", "reward_batch_items_sum"
    before = server.metric(batches, scorer="mean"), server.metric(count, scorer="mean")
    with server.client() as client:
        threads = [
            threading.Thread(target=lambda: client.score(items(["x"] * 2), ["mean"]))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    after = server.metric(batches, scorer="mean"), server.metric(count, scorer="mean")
    assert after[1] - before[1] == 16
    assert after[0] - before[0] < 8


def test_a_retry_joins_the_request_in_flight(server: Server) -> None:
    before = server.metric("reward_batch_items_sum", scorer="slow")
    answers: list[Any] = []
    with server.client(attempts=1) as client:

        def ask() -> None:
            answers.append(client.score(items(["x"] * 3), ["slow"], request_id="same"))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        eventually(lambda: server.metric("reward_queue_items", scorer="slow") > 0)
        with pytest.raises(InvalidArgument, match="in flight with other content"):
            client.score(items(["y"]), ["slow"], request_id="same")
        for thread in threads:
            thread.join(30)
    assert [answer.results["slow"].scores for answer in answers] == [(10.0, 11.0, 12.0)] * 3
    assert server.metric("reward_batch_items_sum", scorer="slow") - before == 3


@pytest.mark.parametrize("api", ["grpc", "http"])
def test_work_of_a_caller_that_hung_up_is_dropped(server: Server, api: str) -> None:
    eventually(lambda: server.metric("reward_queue_items", scorer="slow") == 0)
    before = server.metric("reward_batch_items_sum", scorer="slow")
    request = ScoreRequest("", (ScorerSelector("slow"),), tuple(items(["x"] * 40)))
    body = convert.request_to_proto(request).SerializeToString()
    if api == "http":
        connection = http.client.HTTPConnection("127.0.0.1", server.ports["http"])
        headers = {"content-type": "application/x-protobuf"}
        connection.request("POST", "/v1/score", body, headers)
        eventually(lambda: server.metric("reward_queue_items", scorer="slow") > 0)
        connection.close()
    else:
        with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
            call = service_stub(channel, SERVICE).Score.future(pb.ScoreRequest.FromString(body))
            eventually(lambda: server.metric("reward_queue_items", scorer="slow") > 0)
            call.cancel()
    eventually(lambda: server.metric("reward_queue_items", scorer="slow") == 0, 10)
    assert server.metric("reward_batch_items_sum", scorer="slow") - before < 30


def test_score_stream_answers_as_ready(channel: grpc.Channel) -> None:
    stub = service_stub(channel, SERVICE)

    def requests() -> Iterator[pb.ScoreRequest]:
        for name, scorer in (("1", "slow"), ("2", "jpeg"), ("3", "absent"), ("4", "jpeg")):
            yield convert.request_to_proto(
                ScoreRequest(name, (ScorerSelector(scorer),), tuple(items(["x"])))
            )

    answers = list(stub.ScoreStream(requests(), timeout=30))
    assert sorted(answer.request_id for answer in answers) == ["1", "2", "3", "4"]
    assert answers[-1].request_id == "1"
    by_id = {answer.request_id: answer for answer in answers}
    assert by_id["3"].error.code == pb.ItemStatus.NOT_FOUND
    assert by_id["1"].response.results[0].scores == [10.0]


def test_a_message_of_a_stream_says_how_long_it_is_waited_for(
    server: Server, channel: grpc.Channel
) -> None:
    stub = service_stub(channel, SERVICE)
    sent = convert.request_to_proto(
        ScoreRequest("late", (ScorerSelector("slow"),), tuple(items(["x"] * 64)))
    )
    sent.timeout_ms = 300
    before = server.metric("reward_batch_items_sum", scorer="slow")
    (answer,) = stub.ScoreStream(iter([sent]), timeout=60)
    late = {answer.error.code} if answer.HasField("error") else set()
    late |= {status.code for result in answer.response.results for status in result.status}
    assert late == {pb.ItemStatus.DEADLINE_EXCEEDED}
    # Nothing is computed for a caller that has left.
    eventually(lambda: server.metric("reward_queue_items", scorer="slow") == 0, 5)
    assert server.metric("reward_batch_items_sum", scorer="slow") - before < 64


def test_a_client_that_leaves_its_stream_leaves_no_work_behind(server: Server) -> None:
    before = server.metric("reward_batch_items_sum", scorer="slow")
    with RewardClient(server.grpc_url) as client:
        found = list(client.score_stream(items(["x"] * 64), ["slow"], deadline_s=0.3))
    assert {scored.errors["slow"].code for scored in found if scored.errors} == {
        Code.DEADLINE_EXCEEDED
    }
    eventually(lambda: server.metric("reward_queue_items", scorer="slow") == 0, 5)
    assert server.metric("reward_batch_items_sum", scorer="slow") - before < 64


def test_health_and_reflection(channel: grpc.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    for name in ("", "reward.v1.RewardService", "jpeg", "mean"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
        stub.Check(health_pb2.HealthCheckRequest(service="absent"), timeout=10)
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    (listed,) = reflection.ServerReflectionInfo(iter([asked]), timeout=10)
    names = {service.name for service in listed.list_services_response.service}
    assert {"reward.v1.RewardService", "grpc.health.v1.Health"} <= names


def test_health_answers_while_the_server_is_busy(server: Server, channel: grpc.Channel) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    big = np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)
    png = codec.encode(big, Encoding.PNG)
    stop = threading.Event()

    def load() -> None:
        with server.client(timeout_s=60) as client:
            while not stop.is_set():
                client.score([Item(f"{i}", "", (png,)) for i in range(6)], ["mean"])

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    waits = []
    try:
        for _ in range(20):
            begin = time.perf_counter()
            stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
            waits.append(time.perf_counter() - begin)
            time.sleep(0.05)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
    assert sorted(waits)[len(waits) // 2] < 1.0


def test_json_body_and_its_errors(server: Server) -> None:
    data = base64.b64encode(PIXELS.tobytes()).decode()
    media = {"data": data, "encoding": "RAW_U8_RGB_HWC", "width": 16, "height": 24}
    body: dict[str, Any] = {
        "scorers": [{"name": "mean"}],
        "items": [{"id": "a", "prompt": "p", "images": [media]}, {"id": "b"}],
        "include_details": True,
    }
    with httpx.Client(base_url=server.http_url, trust_env=False, timeout=30) as http_client:
        answer = http_client.post("/v1/score", json=body)
        assert answer.status_code == 200
        (result,) = answer.json()["results"]
        assert result["scores"] == [pytest.approx(PIXELS.mean()), None]
        assert result["status"][0]["code"] == "INVALID_ARGUMENT"

        def error(status: int, **request: Any) -> dict[str, Any]:
            answer = http_client.post("/v1/score", **request)
            assert answer.status_code == status, answer.text
            found = answer.json()["error"]
            assert set(found) >= {"code", "message", "retryable", "items"}
            assert "\n" not in found["message"]
            return found

        assert "itmes" in error(422, json={"itmes": []})["message"]
        assert (
            "JSON"
            in error(422, content=b"{", headers={"content-type": "application/json"})["message"]
        )
        assert (
            "content-type" in error(422, content=b"", headers={"content-type": "text/x"})["message"]
        )
        assert "empty" in error(422, json={**body, "items": []})["message"]
        unknown = {**body, "scorers": [{"name": "maen"}]}
        assert "'mean'" in error(404, json=unknown)["message"]
        error(422, content=b"\xff\xff", headers={"content-type": "application/x-protobuf"})
        assert "limit" in error(413, content=b"x" * (33 << 20))["message"]
        assert http_client.get("/nowhere").status_code == 404


def test_multipart_form(server: Server) -> None:
    buffer = io.BytesIO()
    PIL.Image.fromarray(PIXELS).save(buffer, "PNG")
    files = [("images", (name, buffer.getvalue())) for name in ("a.png", "b.png")]
    with httpx.Client(base_url=server.http_url, trust_env=False, timeout=30) as http_client:
        form = {"scorers": "mean, jpeg", "prompt": "p", "include_details": "true"}
        answer = http_client.post("/v1/score", files=files, data=form)
        assert answer.status_code == 200, answer.text
        first, second = answer.json()["results"]
        assert first["scores"] == [pytest.approx(PIXELS.mean())] * 2
        assert (first["name"], second["name"]) == ("mean", "jpeg")
        for wrong in ({}, {"scorers": "mean", "promt": "p"}, {"scorers": "mean", "spec": "{"}):
            answer = http_client.post("/v1/score", files=files, data=wrong)
            assert answer.status_code == 422
            assert answer.json()["error"]["code"] == "INVALID_ARGUMENT"


def test_probes_metrics_docs_and_page(server: Server) -> None:
    assert json.loads(server.get("/livez"))["status"] == "alive"
    assert json.loads(server.get("/readyz"))["ready"] is True
    assert json.loads(server.get("/readyz?scorer=jpeg"))["scorers"] == {"jpeg": "READY"}
    listed = json.loads(server.get("/v1/scorers"))["scorers"]
    assert [info["name"] for info in listed] == ["jpeg", "mean", "slow", "picky"]
    paths = json.loads(server.get("/openapi.json"))["paths"]
    assert "multipart/form-data" in paths["/v1/score"]["post"]["requestBody"]["content"]
    assert "swagger" in server.get("/docs").lower()
    assert "<html" in server.get("/")
    text = server.get("/metrics")
    for name in ("reward_requests_total", "reward_score_bucket", "reward_compute_seconds_sum"):
        assert name in text


def test_command_line_against_a_server(server: Server, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    PIL.Image.fromarray(PIXELS).save(picture)
    run = CliRunner().invoke
    shown = run(app, ["score", str(picture), "--scorers", "mean,jpeg", "--url", server.grpc_url])
    assert shown.exit_code == 0, shown.output
    assert f"{PIXELS.mean():.6g}" in shown.output
    listed = run(app, ["scorers", "--url", server.http_url])
    assert listed.exit_code == 0, listed.output
    assert "READY" in listed.output
    for arguments, words in (
        (["score", str(picture), "--scorers", "maen"], "did you mean 'mean'"),
        (["score", str(tmp_path / "none.png"), "--scorers", "mean"], "none.png: No such file"),
        (["score", str(Path(__file__)), "--scorers", "mean"], "is not a PNG"),
        (["score", str(picture), "--scorers", "mean", "--spec", "{"], "--spec is not JSON"),
    ):
        wrong = run(app, [*arguments, "--url", server.grpc_url])
        assert wrong.exit_code == 2
        assert wrong.stderr.count("\n") == 1
        assert words in wrong.stderr


@pytest.mark.parametrize("key", ["http", "grpc"])
def test_a_port_in_use_is_one_line(server: Server, key: str) -> None:
    other = {"http": "grpc", "grpc": "http"}[key]
    address = f"127.0.0.1:{server.ports[key]}"
    taken = run_cli("serve", f"--{key}", address, f"--{other}", "off")
    assert taken.returncode == 2
    (line,) = taken.stderr.splitlines()
    assert "port is in use" in line
    assert f"--{key}" in line
