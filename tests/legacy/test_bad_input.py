"""The same bad input by every API and dialect: a typed status, field and remedy."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import pytest
from grpc_services import service_stub
from legacy_server import jpeg, post_pickle
from server_process import Server

from reward_client._pb.reward.v1 import reward_pb2
from reward_server._pb.inference.v2 import inference_pb2

Answer = tuple[Any, str]  # a status, and the message; empty for a score
Ask = Callable[[Server, bytes, str], Answer]
JSON = {"content-type": "application/json"}
PROTOBUF = {"content-type": "application/x-protobuf"}


def native(file: bytes, scorer: str) -> reward_pb2.ScoreRequest:
    media = reward_pb2.Media(data=file, encoding=reward_pb2.Media.PNG)
    item = reward_pb2.Item(id="x", images=[media])
    return reward_pb2.ScoreRequest(
        request_id="r", scorers=[reward_pb2.ScorerSelector(name=scorer)], items=[item]
    )


def over_grpc(server: Server, file: bytes, scorer: str) -> Answer:
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
        stub = service_stub(channel, reward_pb2.DESCRIPTOR.services_by_name["RewardService"])
        return called(lambda: stub.Score(native(file, scorer), timeout=60))


def over_a_stream(server: Server, file: bytes, scorer: str) -> Answer:
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
        stub = service_stub(channel, reward_pb2.DESCRIPTOR.services_by_name["RewardService"])
        answers: list[Any] = []
        failed = called(
            lambda: answers.extend(stub.ScoreStream(iter([native(file, scorer)]), timeout=60))
        )
        if not answers:
            return failed
        error = answers[0].error
        return reward_pb2.ItemStatus.Code.Name(error.code).replace("CODE_", ""), error.message


def called(call: Callable[[], Any]) -> Answer:
    try:
        call()
    except grpc.RpcError as error:
        return error.code().name, error.details() or ""  # type: ignore[attr-defined]
    return "OK", ""


def post(server: Server, path: str, headers: dict[str, str] | None = None, **body: Any) -> Any:
    url = server.http_url + path
    return httpx.post(url, headers=headers, trust_env=False, timeout=60, **body)


def ours(answer: httpx.Response) -> Answer:
    error = answer.json()["error"] if answer.is_error else {"code": "OK", "message": ""}
    return (answer.status_code, error["code"]), error["message"]


def as_protobuf(server: Server, file: bytes, scorer: str) -> Answer:
    content = native(file, scorer).SerializeToString()
    answer = post(server, "/v1/score", PROTOBUF, content=content)
    return ours(answer) if answer.is_error else ((200, "OK"), "")


def as_json(server: Server, file: bytes, scorer: str) -> Answer:
    image = {"data": base64.b64encode(file).decode(), "encoding": "PNG"}
    body = {"scorers": [{"name": scorer}], "items": [{"id": "x", "images": [image]}]}
    return ours(post(server, "/v1/score", json=body))


def as_a_form(server: Server, file: bytes, scorer: str) -> Answer:
    return ours(
        post(server, "/v1/score", files={"images": ("a.png", file)}, data={"scorers": scorer})
    )


def as_a_pickle(server: Server, file: bytes, scorer: str) -> Answer:
    status, _, found = post_pickle(server, "http", {"images": [file]}, f"/compat/pickle/{scorer}")
    return status, found.get("error", "")


def flow_factory(server: Server, file: bytes, scorer: str) -> Answer:
    body = {"prompt": [""], "image": [base64.b64encode(file).decode()]}
    answer = post(server, f"/compat/flow-factory/{scorer}/compute", json=body)
    error = answer.json().get("error", "")
    return answer.status_code, error if isinstance(error, str) else error["message"]


def unirl(server: Server, file: bytes, scorer: str) -> Answer:
    turn = {"text": "", "image_b64": base64.b64encode(file).decode()}
    body = {"requests": [{"history": [turn], "required_rewards": [scorer]}]}
    answer = post(server, "/score", json=body)
    found = answer.json()
    return answer.status_code, found.get("detail") or "".join(found["errors"][0].values())


def oip_http(server: Server, file: bytes, scorer: str) -> Answer:
    data = [base64.b64encode(file).decode()]
    tensor = {"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": data}
    answer = post(
        server, f"/v2/models/{scorer}/infer", JSON, content=json.dumps({"inputs": [tensor]})
    )
    return answer.status_code, answer.json().get("error", "")


def oip_grpc(server: Server, file: bytes, scorer: str) -> Answer:
    request = inference_pb2.ModelInferRequest(model_name=scorer)
    request.inputs.add(name="IMAGE", datatype="BYTES", shape=[1]).contents.bytes_contents.append(
        file
    )
    with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
        service = inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
        return called(lambda: service_stub(channel, service).ModelInfer(request, timeout=60))


def png(width: int, height: int) -> bytes:
    """The header of a picture, and pixels for another."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(64)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


INVALID, ABSENT = "INVALID_ARGUMENT", "NOT_FOUND"
# By API: the status of bad input, of an unknown scorer, and of a message over the limit.
WAYS: dict[str, tuple[Ask, Any, Any, Any]] = {
    "gRPC": (over_grpc, INVALID, ABSENT, "RESOURCE_EXHAUSTED"),
    "gRPC stream": (over_a_stream, INVALID, ABSENT, "RESOURCE_EXHAUSTED"),
    "protobuf": (as_protobuf, (422, INVALID), (404, ABSENT), (413, INVALID)),
    "JSON": (as_json, (422, INVALID), (404, ABSENT), (413, INVALID)),
    "form": (as_a_form, (422, INVALID), (404, ABSENT), (413, INVALID)),
    "pickle": (as_a_pickle, 422, 404, 422),
    "Flow-Factory": (flow_factory, 200, 404, 200),
    "UniRL": (unirl, 200, 400, 413),
    "OIP": (oip_http, 400, 404, 413),
    "OIP over gRPC": (oip_grpc, INVALID, ABSENT, "RESOURCE_EXHAUSTED"),
}


@pytest.mark.parametrize("name", WAYS)
def test_every_api_says_what_is_wrong_and_goes_on(server: Server, name: str) -> None:
    ask, invalid, absent, too_large = WAYS[name]
    good = jpeg(100, format_name="PNG")

    def refused(file: bytes, scorer: str, status: Any, *words: str) -> None:
        found, message = ask(server, file, scorer)
        assert found == status, message
        assert len(message) < 2000
        assert "\n" not in message
        for word in words:
            assert word in message, message

    for bad, words in (
        (b"no picture", ("[0]", "PNG")),
        (good[:-20], ("[0]", "truncated PNG")),
        (good + good, ("[0]", "follow the end", "save it again")),
        (png(60_000, 60_000), ("60000x60000 px", "the limit is", "scale it down")),
    ):
        refused(bad, "deqa", invalid, *words)
    refused(good, "deqaa", absent, "did you mean 'deqa'")
    # UniRL has a place for what is wrong with an entry, and none for what is wrong with all.
    too_long = absent if name == "UniRL" else invalid
    refused(good, "d" * 4000, too_long, "the name 'ddd", "4000 characters, the limit is 128")
    refused(bytes(33 << 20), "deqa", too_large, "larger" if "gRPC" in name else "limit")
    if name == "OIP":
        model = httpx.get(f"{server.http_url}/v2/models/{'d' * 4000}/ready", trust_env=False)
        assert (model.status_code, "the limit is 128" in model.json()["error"]) == (400, True)
    # Nothing is lost, and nothing stays behind.
    assert ask(server, good, "deqa")[1] == ""
    assert server.metric("reward_queue_items") == 0


def test_every_defect_of_names_is_refused_alike(server: Server) -> None:
    """What cost most to check: many scorers, and one twice, where an API takes several."""
    good = base64.b64encode(jpeg(100, format_name="PNG")).decode()
    many = [f"s{i}" for i in range(65)]
    for names, words in ((many, ("65 are named", "the limit is 64")), (["deqa"] * 2, ("twice",))):
        image = {"data": good, "encoding": "PNG"}
        body = {
            "scorers": [{"name": one} for one in names],
            "items": [{"id": "x", "images": [image]}],
        }
        form = {"scorers": ",".join(names)}
        file = {"images": ("a.png", base64.b64decode(good))}
        message = native(base64.b64decode(good), names[0])
        message.scorers.extend(reward_pb2.ScorerSelector(name=one) for one in names[1:])
        for answer in (
            post(server, "/v1/score", json=body),
            post(server, "/v1/score", files=file, data=form),
            post(server, "/v1/score", PROTOBUF, content=message.SerializeToString()),
        ):
            assert answer.status_code == 422
            assert all(word in answer.json()["error"]["message"] for word in words)
    turn = {"text": "", "image_b64": good}
    twice = {"requests": [{"history": [turn], "required_rewards": ["deqa", "deqa"]}]}
    answer = post(server, "/score", json=twice)
    assert (answer.status_code, "each once" in answer.json()["detail"]) == (400, True)
