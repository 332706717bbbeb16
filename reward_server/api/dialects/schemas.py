"""Messages of the dialects as models, for `/openapi.json`; the bodies are parsed by hand."""

from __future__ import annotations

from typing import Any, Literal

from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field, create_model

from reward_server.api.schemas import ERRORS, NOT_ALLOWED, Responses, answers, json_body

# Messages of a field or two; the others follow.
HealthStatus = create_model("HealthStatus", status=(str, ...))
FlowFactoryRewards = create_model("FlowFactoryRewards", rewards=(list[float], ...))
FlowFactoryError = create_model("FlowFactoryError", error=(str, ...))
UniRLHealth = create_model("UniRLHealth", status=(str, ...), rewards=(dict[str, Any], ...))
UniRLRewards = create_model("UniRLRewards", rewards=(list[str], ...))
UniRLDetail = create_model("UniRLDetail", detail=(str, ...))
OipError = create_model("OipError", error=(str, ...))
OipLive = create_model("OipLive", live=(bool, ...))
OipReady = create_model("OipReady", ready=(bool, ...))
OipModelReady = create_model("OipModelReady", name=(str, ...), ready=(bool, ...))


class FlowFactoryRequest(BaseModel):
    prompt: list[str]
    image: list[str] = Field([], description="base64")
    video: list[list[str]] | None = None
    condition_images: list[list[str]] | None = None
    kwargs: dict[str, Any] = {}


class UniRLTurn(BaseModel):
    text: str
    image_b64: str


class UniRLEntry(BaseModel):
    history: list[UniRLTurn] = Field(min_length=1)
    required_rewards: set[str] = Field(min_length=1)
    metadata: dict[str, Any] = {}


class UniRLRequest(BaseModel):
    requests: list[UniRLEntry]


class UniRLResponse(BaseModel):
    results: list[dict[str, Any]]
    errors: list[dict[str, Any]]
    identities: list[dict[str, Any]] = []
    protocol_version: str = ""


class OipServer(BaseModel):
    name: str
    version: str
    extensions: list[str] = []


class OipTensor(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class OipModel(BaseModel):
    name: str
    versions: list[str] = []
    platform: str
    inputs: list[OipTensor]
    outputs: list[OipTensor]


class OipInput(BaseModel):
    name: Literal["IMAGE", "PROMPT", "METADATA"]
    datatype: Literal["BYTES", "UINT8"]
    shape: list[int]
    data: list[Any]


class OipOutput(BaseModel):
    name: str


class OipRequest(BaseModel):
    id: str = ""
    inputs: list[OipInput]
    outputs: list[OipOutput] = []


class OipResponse(BaseModel):
    model_name: str
    model_version: str = ""
    id: str = ""
    outputs: list[OipTensor]


def _route(
    tag: str, summary: str, ok: Any, errors: Responses, body: type[BaseModel] | None = None
) -> dict[str, Any]:
    return {
        "summary": summary,
        "tags": [tag],
        "response_class": JSONResponse,
        "responses": {200: answers(ok), **NOT_ALLOWED, **errors},
        "openapi_extra": json_body(body) if body else None,
    }


_FF, _UNIRL, _OIP = "Flow-Factory", "UniRL", "Open Inference Protocol v2"
_OIP_ERRORS: Responses = {
    **{status: answers(OipError, row["description"]) for status, row in ERRORS.items()},
    400: answers(OipError, "The request is wrong."),
    413: answers(OipError, "The body is over the limit."),
}
_OIP_NOT_FOUND: Responses = {404: _OIP_ERRORS[404], 422: _OIP_ERRORS[422]}

PICKLE: dict[str, Any] = {"include_in_schema": False, "response_class": Response}
FF_HEALTH = _route(
    _FF,
    "Is the scorer ready?",
    HealthStatus,
    {
        404: answers(HealthStatus, "No such scorer."),
        422: answers(HealthStatus, "Never."),
        503: answers(HealthStatus, "Not ready."),
    },
)
FF_COMPUTE = _route(
    _FF,
    "Score a batch; what will not get better is a 200 with `error`",
    FlowFactoryRewards | FlowFactoryError,
    ERRORS,
    FlowFactoryRequest,
)
UNIRL_HEALTH = _route(
    _UNIRL, "Can the server score?", UniRLHealth, {503: answers(UniRLHealth, "Not ready.")}
)
UNIRL_REWARDS = _route(_UNIRL, "The scorers", UniRLRewards, {})
UNIRL_SCORE = _route(
    _UNIRL,
    "Score a batch whose entries may want different rewards",
    UniRLResponse,
    {
        **ERRORS,
        400: answers(UniRLDetail, "The request as a whole is wrong."),
        413: answers(UniRLDetail, "The body is over the limit."),
    },
    UniRLRequest,
)
OIP_SERVER = _route(_OIP, "What this server is", OipServer, {})
OIP_LIVE = _route(_OIP, "Is the process alive?", OipLive, {})
OIP_READY = _route(_OIP, "Can the server score?", OipReady, {503: answers(OipReady, "Not ready.")})
OIP_MODEL = _route(_OIP, "What a scorer takes and gives", OipModel, _OIP_NOT_FOUND)
OIP_MODEL_READY = _route(
    _OIP,
    "Is a scorer ready?",
    OipModelReady,
    {**_OIP_NOT_FOUND, 503: answers(OipReady, "Not ready.")},
)
OIP_INFER = _route(_OIP, "Score a batch", OipResponse, _OIP_ERRORS, OipRequest)
BODIES = (FlowFactoryRequest, UniRLRequest, OipRequest)
