"""The Open Inference Protocol against a running server, over HTTP and gRPC."""

from __future__ import annotations

import base64
import json
import math
import struct
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_services import service_stub
from legacy_server import geneval_batch, jpeg, mean_of
from server_process import Server

from reward_client.errors import InvalidArgument
from reward_server._pb.inference.v2 import inference_pb2 as pb
from reward_server.api.dialects import oip_grpc
from reward_server.limits import RequestLimits


@pytest.fixture(scope="module")
def web(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.http_url, trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def stub(server: Server) -> Iterator[Any]:
    with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
        yield service_stub(channel, pb.DESCRIPTOR.services_by_name["GRPCInferenceService"])


def elements(*values: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(value)) + value for value in values)


def images_in_json(*files: bytes) -> dict[str, Any]:
    data = [base64.b64encode(file).decode() for file in files]
    return {"name": "IMAGE", "datatype": "BYTES", "shape": [len(files)], "data": data}


def texts(name: str, *values: str) -> dict[str, Any]:
    return {"name": name, "datatype": "BYTES", "shape": [len(values)], "data": list(values)}


def by_name(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    return {output["name"]: output["data"] for output in answer.json()["outputs"]}


def test_server_and_models(web: httpx.Client) -> None:
    assert web.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert web.get("/v2/health/live").json() == {"live": True}
    assert web.get("/v2/health/ready").json() == {"ready": True}  # the others serve, `broken` not
    described = web.get("/v2/models/geneval").json()
    assert [entry["name"] for entry in described["inputs"]] == ["IMAGE", "METADATA"]
    assert described["versions"] == ["1"]
    for path, status in (
        ("/v2/models/deqa/ready", 200),
        ("/v2/models/deqa/versions/7/ready", 200),
        ("/v2/models/deqa/versions/8/ready", 404),
        ("/v2/models/broken/ready", 503),
        ("/v2/models/absent/ready", 404),
        ("/v2/models/absent", 404),
    ):
        answer = web.get(path)
        assert answer.status_code == status, path
        assert ("error" in answer.json()) == (status == 404)


def test_infer_json(web: httpx.Client) -> None:
    files, rows = geneval_batch(3)
    metadata = [json.dumps({"geneval": row}) for row in rows]
    body = {"id": "42", "inputs": [images_in_json(*files), texts("METADATA", *metadata)]}
    answer = web.post("/v2/models/geneval/infer", json=body)
    found = by_name(answer)
    assert {"SCORE", "RAW", "official", "strict", "flowgrpo"} <= set(found)
    assert len(found["SCORE"]) == 3
    head = answer.json()
    assert (head["id"], head["model_name"], head["model_version"]) == ("42", "geneval", "1")
    picked = {**body, "outputs": [{"name": "official"}]}
    assert list(by_name(web.post("/v2/models/geneval/infer", json=picked))) == ["official"]
    pixels = np.full((2, 4, 5, 3), 9, np.uint8)
    raw = {"name": "IMAGE", "datatype": "UINT8", "shape": [2, 4, 5, 3], "data": pixels.tolist()}
    assert by_name(web.post("/v2/models/deqa/versions/7/infer", json={"inputs": [raw]}))[
        "SCORE"
    ] == [9.0, 9.0]


def test_infer_binary(web: httpx.Client) -> None:
    files = [jpeg(7), jpeg(99)]
    tensor = elements(*files)
    head = json.dumps(
        {
            "inputs": [
                {
                    "name": "IMAGE",
                    "datatype": "BYTES",
                    "shape": [2],
                    "parameters": {"binary_data_size": len(tensor)},
                }
            ],
            "outputs": [
                {"name": "RAW"},
                {"name": "SCORE", "parameters": {"binary_data": True}},
                {"name": "STATUS", "parameters": {"binary_data": True}},
            ],
        }
    ).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = web.post("/v2/models/deqa/infer", content=head + tensor, headers=headers)
    assert answer.status_code == 200, answer.text
    size = int(answer.headers["inference-header-content-length"])
    outputs = json.loads(answer.content[:size])["outputs"]
    assert outputs[0]["data"] == pytest.approx([mean_of(file) for file in files])
    assert [o.get("parameters", {}).get("binary_data_size") for o in outputs] == [None, 16, 8]
    assert struct.unpack("<2d", answer.content[size : size + 16]) == tuple(outputs[0]["data"])
    assert answer.content[size + 16 :] == elements(b"", b"")


def test_a_failed_item_is_a_status_or_fails_the_request(web: httpx.Client) -> None:
    inputs = [images_in_json(jpeg(5), jpeg(6)), texts("PROMPT", "fine", "raise")]
    failed = web.post("/v2/models/sick/infer", json={"inputs": inputs})
    assert (failed.status_code, list(failed.json())) == (500, ["error"])
    outputs = [{"name": "SCORE"}, {"name": "STATUS"}]
    found = by_name(web.post("/v2/models/sick/infer", json={"inputs": inputs, "outputs": outputs}))
    assert found["SCORE"][1] is None
    assert found["SCORE"][0] == pytest.approx(mean_of(jpeg(5)))
    assert found["STATUS"][0] == ""
    assert found["STATUS"][1].startswith("INTERNAL: ")


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ([], "IMAGE is missing"),
        ([images_in_json()], "IMAGE: the batch is empty"),
        ([{**images_in_json(jpeg()), "shape": [2]}], "does not fit 1 elements"),
        ([{**images_in_json(jpeg()), "shape": [-1]}], "does not fit"),
        ([{**images_in_json(jpeg()), "datatype": "FP32"}], "datatype"),
        ([{**images_in_json(jpeg()), "data": ["http://x/y.png"]}], "base64"),
        ([images_in_json(jpeg()), images_in_json(jpeg())], "twice"),
        ([images_in_json(jpeg()), texts("PROMPT", "a", "b")], "one per image"),
        ([images_in_json(jpeg()), texts("METADATA", "{")], "METADATA[0]: not JSON"),
        ([images_in_json(jpeg()), texts("METADATA", '{"x": 1}')], "METADATA[0]: expected"),
        ([images_in_json(b"no picture")], "IMAGE[0] is not a PNG"),
        (
            [{"name": "IMAGE", "datatype": "UINT8", "shape": [2, 2], "data": [[1, 2], [3, 256]]}],
            "0 to 255",
        ),
        (
            [{"name": "IMAGE", "datatype": "UINT8", "shape": [2, 2], "data": [1, 2, 3, 4]}],
            "[N, H, W, 3]",
        ),
    ],
)
def test_bad_tensors_are_400(web: httpx.Client, inputs: Any, words: str) -> None:
    answer = web.post("/v2/models/deqa/infer", json={"inputs": inputs})
    assert answer.status_code == 400
    assert words in answer.json()["error"]


@pytest.mark.parametrize("length", ["x", "-1", "999", "1e3", ""])
def test_a_wrong_header_length_is_400(web: httpx.Client, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length}
    answer = web.post("/v2/models/deqa/infer", content=b"{}", headers=headers)
    assert answer.status_code == 400


def test_grpc_server_and_models(stub: Any) -> None:
    assert stub.ServerLive(pb.ServerLiveRequest(), timeout=10).live
    assert stub.ServerReady(pb.ServerReadyRequest(), timeout=10).ready
    assert stub.ModelReady(pb.ModelReadyRequest(name="deqa"), timeout=10).ready
    assert not stub.ModelReady(pb.ModelReadyRequest(name="broken"), timeout=10).ready
    described = stub.ModelMetadata(pb.ModelMetadataRequest(name="ocr"), timeout=10)
    assert [tensor.name for tensor in described.inputs] == ["IMAGE", "PROMPT"]
    assert stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=10).name == "flow-reward"
    with pytest.raises(grpc.RpcError, match="did you mean 'deqa'"):
        stub.ModelReady(pb.ModelReadyRequest(name="deqaa"), timeout=10)


@pytest.mark.parametrize("is_raw", [True, False])
def test_grpc_infer(stub: Any, is_raw: bool) -> None:
    files = [jpeg(7), jpeg(99), jpeg(3)]
    image, prompt = (
        pb.ModelInferRequest.InferInputTensor(name=name, datatype="BYTES", shape=[3])
        for name in ("IMAGE", "PROMPT")
    )
    words = [b"a", b"raise", b"c"]
    request = pb.ModelInferRequest(model_name="sick", id="7")
    if is_raw:
        request.raw_input_contents.extend([elements(*files), elements(*words)])
    else:
        image.contents.bytes_contents.extend(files)
        prompt.contents.bytes_contents.extend(words)
    request.inputs.extend([image, prompt])
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request, timeout=30)
    assert caught.value.code() is grpc.StatusCode.INTERNAL  # pyright: ignore[reportAttributeAccessIssue]
    for name in ("SCORE", "STATUS"):
        request.outputs.add(name=name)
    answer = stub.ModelInfer(request, timeout=30)
    assert (answer.id, answer.model_name, answer.model_version) == ("7", "sick", "7")
    assert [(o.name, o.datatype, list(o.shape)) for o in answer.outputs] == [
        ("SCORE", "FP64", [3]),
        ("STATUS", "BYTES", [3]),
    ]
    if is_raw:
        scores = struct.unpack("<3d", answer.raw_output_contents[0])
    else:
        scores = tuple(answer.outputs[0].contents.fp64_contents)
        assert answer.outputs[1].contents.bytes_contents[1].startswith(b"INTERNAL: ")
    assert math.isnan(scores[1])
    assert scores[0] == pytest.approx(mean_of(files[0]))
    assert scores[2] == pytest.approx(mean_of(files[2]))


def test_grpc_raw_pixels_and_bad_requests(stub: Any) -> None:
    pixels = np.full((2, 3, 4, 3), 11, np.uint8)
    request = pb.ModelInferRequest(model_name="deqa", raw_input_contents=[pixels.tobytes()])
    request.inputs.add(name="IMAGE", datatype="UINT8", shape=pixels.shape)
    raw = stub.ModelInfer(request, timeout=30).raw_output_contents[0]
    assert struct.unpack("<2d", raw) == (11.0, 11.0)
    request.inputs[0].shape[0] = 3
    with pytest.raises(grpc.RpcError, match="does not fit"):
        stub.ModelInfer(request, timeout=30)
    cut = pb.ModelInferRequest(model_name="deqa", raw_input_contents=[b"\xff\xff\xff\xff1"])
    cut.inputs.add(name="IMAGE", datatype="BYTES", shape=[1])
    with pytest.raises(grpc.RpcError, match="element 0 is cut off"):
        stub.ModelInfer(cut, timeout=30)


def test_grpc_millions_of_empty_tensors_are_refused_before_they_are_built() -> None:
    bomb = b"\x2a\x00" * 1_000_000
    with pytest.raises(InvalidArgument, match="more than 400000 fields"):
        oip_grpc.parse(bomb, RequestLimits.model_construct())


def test_reflection_names_the_service(server: Server) -> None:
    with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        (listed,) = reflection.ServerReflectionInfo(iter([asked]), timeout=10)
    names = {service.name for service in listed.list_services_response.service}
    assert "inference.GRPCInferenceService" in names
