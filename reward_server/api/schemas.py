"""Messages of the HTTP API as models, for `/openapi.json`; the bodies are parsed by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fastapi import FastAPI
from pydantic import BaseModel, Field, create_model
from pydantic.json_schema import models_json_schema

from reward_client._transports.base import PROTOBUF_TYPE
from reward_client.errors import STATUS, Code
from reward_client.images import Encoding
from reward_client.types import Priority

DESCRIPTION = (
    "Rewards for generated images. A failure is a status, never a number: where `status` names an"
    " item, its numbers are null. The same messages are spoken over gRPC (`reward.v1`)."
)
Responses = dict[int | str, dict[str, Any]]
Column = list[float | None]
Bound = float | Literal["Infinity", "-Infinity"]
State = Literal["STARTING", "READY", "FAILED", "DRAINING", "UNKNOWN"]
_REF = "#/components/schemas/{model}"


class Media(BaseModel):
    data: str = Field(description="base64")
    encoding: Encoding
    width: int = Field(0, description="px; required for the raw encodings")
    height: int = Field(0, description="px; required for the raw encodings")


class OcrSpec(BaseModel):
    target: str


class Item(BaseModel):
    id: str = Field(description="unique within the request")
    prompt: str = Field("", description="the text the images were made from")
    images: list[Media] = Field(description="what is scored: one image, or the frames of a video")
    references: list[Media] = Field([], description="images to compare with")
    geneval: dict[str, Any] = Field(
        {},
        description="a row of GenEval's metadata",
        examples=[{"tag": "colors", "include": [{"class": "star", "count": 1, "color": "red"}]}],
    )
    ocr: OcrSpec = Field(OcrSpec(target=""), description="the text to read")
    metadata: dict[str, Any] = Field({}, description="anything else that a scorer reads")


class Selector(BaseModel):
    name: str
    version: str = Field("", description="empty: the one that is served")
    transform: str = Field("", description="empty: the scorer's default")


class ScoreRequest(BaseModel):
    request_id: str = Field("", description="repeat it on a retry")
    scorers: list[Selector] = Field(min_length=1, description="each name once")
    items: list[Item] = Field(min_length=1, description="each id once")
    priority: Priority = Priority.EVAL
    include_details: bool = Field(False, description="also boxes, recognised text, judge's words")


class ScoreForm(BaseModel):
    images: list[bytes] = Field(description="PNG, JPEG, WebP or QOI files; one item each")
    scorers: str = Field(description="names, separated by commas")
    prompt: str = ""
    spec: str = Field("", description='JSON: {"geneval": {...}} or {"ocr": {...}}')
    priority: Priority = Priority.EVAL
    include_details: bool = False


class Status(BaseModel):
    index: int = Field(description="into the items of the request")
    code: Code
    message: str
    retryable: bool = Field(description="whether the same item may succeed later")


class Values(BaseModel):
    values: Column


class Result(BaseModel):
    name: str
    version: str
    fingerprint: str = Field(description="digest of weights, preprocessing, code and dtype")
    scores: Column = Field(description="transformed, one for each item")
    raw: Column = Field(description="before the transform, one for each item")
    components: dict[str, Values] = Field(description="further outputs by name")
    status: list[Status] = Field(description="failed items only")
    details: list[dict[str, Any]] = Field([], description="if asked for: index and details")
    lossy_input: list[bool] = Field([], description="whether an item's image came lossily encoded")
    queue_ms: float = Field(0.0, description="longest wait for a batch")
    compute_ms: float = Field(0.0, description="time in the scorer")


class ScoreResponse(BaseModel):
    """Columns of numbers per scorer; null where `status` says why."""

    request_id: str
    results: list[Result] = Field(description="one for each scorer, in the order of the request")


class Scorer(BaseModel):
    name: str
    version: str
    fingerprint: str
    inputs: list[str] = Field(description="what an item must carry")
    transforms: list[str] = Field(description="ways to report the raw score")
    default_transform: str
    state: State
    output_low: Bound = Field(0.0, description="of the default transform")
    output_high: Bound = Field(0.0, description="of the default transform")
    last_error: str = Field("", description="why it does not serve, or what is in trouble")


class Scorers(BaseModel):
    scorers: list[Scorer]


Alive = create_model("Alive", status=(str, ...))


class Ready(BaseModel):
    """Whether the server, or the scorer asked for, can score; `errors` says why not."""

    ready: bool
    scorers: dict[str, State]
    errors: dict[str, str] = {}


class ErrorBody(BaseModel):
    code: Code
    message: str
    retryable: bool
    items: list[dict[str, Any]] = Field(description="the items at fault, where known")


class Error(BaseModel):
    error: ErrorBody


def answers(model: type[BaseModel], description: str = "OK") -> dict[str, Any]:
    """One row of FastAPI's `responses`."""
    return {"model": model, "description": description}


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """A body that is parsed by hand, as `openapi_extra`; see `describe_bodies`."""
    schema = {"$ref": _REF.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def describe_bodies(app: FastAPI, models: Sequence[type[BaseModel]]) -> None:
    """Add the models of bodies to the schemas of an app: FastAPI knows those that it parses."""
    generate = app.openapi
    _, found = models_json_schema([(m, "validation") for m in models], ref_template=_REF)

    def openapi() -> dict[str, Any]:
        document = generate()
        document.setdefault("components", {}).setdefault("schemas", {}).update(found["$defs"])
        return document

    app.openapi = openapi


ERRORS: Responses = {
    STATUS[code].http: answers(Error, meaning)
    for code, meaning in {
        Code.UNAUTHENTICATED: "The API key is missing or wrong.",
        Code.PERMISSION_DENIED: "The API key does not allow this.",
        Code.INVALID_ARGUMENT: "The request is wrong; `items` names the items at fault.",
        Code.NOT_FOUND: "No such scorer, version or transform; the nearest name is in the message.",
        Code.RESOURCE_EXHAUSTED: "The server is full: come back after `Retry-After` seconds.",
        Code.UNAVAILABLE: "Starting, failed or shutting down.",
        Code.DEADLINE_EXCEEDED: "Not finished within `x-reward-deadline-ms`.",
        Code.INTERNAL: "A bug of the server.",
    }.items()
}
ERRORS[413] = answers(Error, "The body is over the limit: split it.")
# Of what needs a key but nothing else.
NOT_ALLOWED: Responses = {
    status: ERRORS[status]
    for status in (STATUS[Code.UNAUTHENTICATED].http, STATUS[Code.PERMISSION_DENIED].http)
}
SCORE: Responses = {200: answers(ScoreResponse), **ERRORS}
SCORERS: Responses = {200: answers(Scorers), **NOT_ALLOWED}
LIVEZ: Responses = {200: answers(Alive)}
READYZ: Responses = {200: answers(Ready), 503: answers(Ready, "Not ready.")}
METRICS: Responses = {200: {"description": "Prometheus' text format."}, **NOT_ALLOWED}

SCORE_BODY = json_body(ScoreRequest)
SCORE_BODY["requestBody"]["content"] |= {
    "multipart/form-data": {"schema": {"$ref": _REF.format(model="ScoreForm")}},
    PROTOBUF_TYPE: {"schema": {"type": "string", "format": "binary"}},
}
BODIES = (ScoreRequest, ScoreForm)
