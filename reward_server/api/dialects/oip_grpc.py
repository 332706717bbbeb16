"""The Open Inference Protocol over gRPC: `inference.GRPCInferenceService`."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError, Message

from reward_client.errors import InvalidArgument, RewardError
from reward_client.types import Item, ScoreRequest, ScorerSelector
from reward_server._pb.inference.v2 import inference_pb2 as pb
from reward_server.api.dialects import oip
from reward_server.api.errors import as_reward_error, redacted_response
from reward_server.api.grpc_guard import caller_of, refuse_with, time_left_s
from reward_server.api.grpc_intake import Intake
from reward_server.limits import RequestLimits, check_message
from reward_server.observability.requests import RequestWatch, Seen
from reward_server.scheduling.arrival import Arrival
from reward_server.service import RewardService

SERVICE_NAME = "inference.GRPCInferenceService"


class OipGrpcApi:
    """Handlers for the gRPC server; parsing happens in threads, as in the native API."""

    def __init__(self, service: RewardService, intake: Intake, slow_request_s: float) -> None:
        self._service = service
        self._intake = intake
        self._watch = RequestWatch("oip_grpc", service.metrics, slow_request_s)

    def handlers(self) -> grpc.GenericRpcHandler:
        methods: dict[str, tuple[Callable[[Any, Any], Any], type[Message]]] = {
            "ServerLive": (self._live, pb.ServerLiveResponse),
            "ServerReady": (self._ready, pb.ServerReadyResponse),
            "ServerMetadata": (self._server, pb.ServerMetadataResponse),
            "ModelReady": (self._model_ready, pb.ModelReadyResponse),
            "ModelMetadata": (self._model, pb.ModelMetadataResponse),
            "ModelInfer": (self._infer, pb.ModelInferResponse),
        }
        return grpc.method_handlers_generic_handler(
            SERVICE_NAME,
            {
                name: (
                    grpc.stream_unary_rpc_method_handler
                    if name == "ModelInfer"
                    else grpc.unary_unary_rpc_method_handler
                )(handler, response_serializer=response.SerializeToString)
                for name, (handler, response) in methods.items()
            },
        )

    async def _live(self, body: bytes, context: Any) -> Message:
        return pb.ServerLiveResponse(live=True)

    async def _ready(self, body: bytes, context: Any) -> Message:
        return pb.ServerReadyResponse(ready=self._service.is_ready())

    async def _server(self, body: bytes, context: Any) -> Message:
        return pb.ServerMetadataResponse(name=oip.SERVER_NAME, version=oip.SERVER_VERSION)

    async def _model_ready(self, body: bytes, context: Any) -> Message:
        try:
            asked = _read(pb.ModelReadyRequest, body)
            info = oip.model_of(self._service.infos(), asked.name, asked.version)
        except RewardError as error:
            refuse_with(context, error)
            return pb.ModelReadyResponse()
        return pb.ModelReadyResponse(ready=info.state == "READY")

    async def _model(self, body: bytes, context: Any) -> Message:
        try:
            asked = _read(pb.ModelMetadataRequest, body)
            info = oip.model_of(self._service.infos(), asked.name, asked.version)
        except RewardError as error:
            refuse_with(context, error)
            return pb.ModelMetadataResponse()
        described = pb.ModelMetadataResponse.TensorMetadata
        return pb.ModelMetadataResponse(
            name=info.name,
            versions=[info.version] if info.version else [],
            platform=oip.PLATFORM,
            inputs=[described(name=n, datatype=d, shape=s) for n, d, s in oip.inputs_of(info)],
            outputs=[described(name=n, datatype=d, shape=s) for n, d, s in oip.outputs_of()],
        )

    async def _infer(self, _: AsyncIterator[bytes], context: Any) -> Message:
        headers = dict(context.invocation_metadata() or ())
        try:
            caller = caller_of(self._service.access, context)
        except RewardError as error:
            refuse_with(context, error)
            return pb.ModelInferResponse()
        with (
            self._watch.request(f"{SERVICE_NAME}/ModelInfer", caller.name, headers) as seen,
            self._service.arrival(caller) as arrival,
        ):
            try:
                with self._intake.entered("calls"):
                    body = await self._intake.read(context)
                    arrival.hold(len(body))
                    limits = self._service.limits
                    asked, items = await arrival.parse(lambda body=body: parse(body, limits))
                    del body
                    return await self._score(asked, items, context, arrival, seen)
            except Exception as error:  # the boundary: whatever it is, the caller gets a status
                seen.failure = as_reward_error(error)
        refuse_with(context, seen.failure)
        return pb.ModelInferResponse()

    async def _score(
        self,
        asked: pb.ModelInferRequest,
        items: tuple[Item, ...],
        context: Any,
        arrival: Arrival,
        seen: Seen,
    ) -> Message:
        name = asked.model_name
        oip.model_of(self._service.infos(), name, asked.model_version)
        seen.request = ScoreRequest("", (ScorerSelector(name, asked.model_version),), items)
        response = await self._service.score(
            seen.request,
            caller=arrival.caller,
            arrived_bytes=arrival.held_bytes,
            deadline_s=time_left_s(context),
        )
        response = redacted_response(response)
        result = response.results[name]
        outputs = oip.outputs_from(result, [output.name for output in asked.outputs])
        seen.response = response
        message = pb.ModelInferResponse(model_name=name, model_version=result.version, id=asked.id)
        _fill(message, outputs, is_raw=bool(asked.raw_input_contents))
        return message


def _tensors(asked: pb.ModelInferRequest) -> list[oip.Tensor]:
    raw = asked.raw_input_contents
    if raw and len(raw) != len(asked.inputs):
        raise InvalidArgument(f"raw_input_contents: {len(raw)} for {len(asked.inputs)} inputs")
    tensors = []
    for index, given in enumerate(asked.inputs):
        data: list[bytes] | bytes
        if raw and given.datatype == "BYTES":
            data = oip.split_bytes(raw[index], given.name)
        elif raw:
            data = raw[index]
        elif given.datatype == "BYTES":
            data = list(given.contents.bytes_contents)
        else:
            data = _small(given.contents.uint_contents, given.name)
        tensors.append(oip.tensor(given.name, given.datatype, list(given.shape), data))
    return tensors


def _small(values: Sequence[int], name: str) -> bytes:
    try:
        return bytes(values)
    except ValueError as error:
        raise InvalidArgument(f"{name!r:.60}: UINT8 holds 0 to 255") from error


def _fill(message: pb.ModelInferResponse, outputs: Sequence[oip.Output], *, is_raw: bool) -> None:
    for output in outputs:
        entry = message.outputs.add(
            name=output.name, datatype=output.datatype, shape=[len(output.values)]
        )
        if is_raw:
            message.raw_output_contents.append(oip.binary(output))
            continue
        for value in output.values:
            if isinstance(value, bytes):
                entry.contents.bytes_contents.append(value)
            else:
                entry.contents.fp64_contents.append(math.nan if value is None else value)


def parse(body: bytes, limits: RequestLimits) -> tuple[pb.ModelInferRequest, tuple[Item, ...]]:
    """The request without its pixels, and its items; raises InvalidArgument."""
    check_message(body, limits, pb.ModelInferRequest.DESCRIPTOR)
    asked = _read(pb.ModelInferRequest, body)
    items = oip.items_from(_tensors(asked))
    is_raw = bool(asked.raw_input_contents)
    asked.ClearField("inputs")
    asked.ClearField("raw_input_contents")
    if is_raw:
        asked.raw_input_contents.append(b"")  # the form in which outputs are wanted
    return asked, items


def _read(kind: Any, body: bytes) -> Any:
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise InvalidArgument(f"the message is not an inference.{kind.DESCRIPTOR.name}") from error
