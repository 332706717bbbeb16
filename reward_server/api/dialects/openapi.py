"""What `/docs` says about the dialects; their bodies are parsed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse, Response

from reward_server.api import openapi

_STRINGS = {"type": "array", "items": {"type": "string"}}
_NUMBERS = {"type": "array", "items": {"type": "number"}}
_TEXT = {"type": "string"}
_FLAG = {"type": "boolean"}
_RETRY = "Come back after `Retry-After` seconds."


def _object(*required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


def _answers(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _route(
    tag: str,
    summary: str,
    ok: dict[str, Any],
    errors: Mapping[int | str, dict[str, Any]],
    body: dict[str, Any] | None = None,
) -> dict[str, Any]:
    extra = {"requestBody": {"required": True, "content": {"application/json": {"schema": body}}}}
    return {
        "summary": summary,
        "tags": [tag],
        "response_class": JSONResponse,
        "responses": {200: _answers(ok, "OK"), **openapi.NOT_ALLOWED, **errors},
        "openapi_extra": extra if body else None,
    }


PICKLE: dict[str, Any] = {"include_in_schema": False, "response_class": Response}

_FF, _UNIRL, _OIP = "Flow-Factory", "UniRL", "Open Inference Protocol v2"
_B64_LISTS = {"type": ["array", "null"], "items": _STRINGS}
FF_HEALTH = _route(
    _FF,
    "Is the scorer ready?",
    _object("status", status=_TEXT),
    {
        404: _answers(_object("status", status=_TEXT), "No such scorer."),
        422: _answers(_object(), "Never."),
        503: _answers(_object("status", status=_TEXT), "Not ready."),
    },
)
FF_COMPUTE = _route(
    _FF,
    "Score a batch; what will not get better is a 200 with `error`",
    {"anyOf": [_object("rewards", rewards=_NUMBERS), _object("error", error=_TEXT)]},
    openapi.ERRORS,
    _object(
        "prompt",
        prompt=_STRINGS,
        image={"type": "array", "items": {"type": "string", "format": "byte"}},
        video=_B64_LISTS,
        condition_images=_B64_LISTS,
        kwargs={"type": "object"},
    ),
)

UNIRL_HEALTH = _route(
    _UNIRL,
    "Are all scorers ready?",
    _object("status", "rewards", status=_TEXT, rewards={"type": "object"}),
    {503: _answers(_object("status", status=_TEXT), "Not all are ready.")},
)
UNIRL_REWARDS = _route(_UNIRL, "The scorers", _object("rewards", rewards=_STRINGS), {})
_TURN = _object("text", "image_b64", text=_TEXT, image_b64={"type": "string", "format": "byte"})
_UNIRL_REQUEST = _object(
    "history",
    "required_rewards",
    history={"type": "array", "minItems": 1, "items": _TURN},
    required_rewards={**_STRINGS, "minItems": 1, "uniqueItems": True},
    metadata={"type": "object"},
)
_UNIRL_ANSWER = _object(
    "results",
    "errors",
    results={"type": "array", "items": {"type": "object"}},
    errors={"type": "array", "items": {"type": "object"}},
    identities={"type": "array", "items": {"type": "object"}},
    protocol_version=_TEXT,
)
UNIRL_SCORE = _route(
    _UNIRL,
    "Score a batch whose entries may want different rewards",
    _UNIRL_ANSWER,
    {
        **openapi.ERRORS,
        400: _answers(_object("detail", detail=_TEXT), "The request as a whole is wrong."),
    },
    _object("requests", requests={"type": "array", "items": _UNIRL_REQUEST}),
)

_OIP_ERROR = _object("error", error=_TEXT)
_OIP_ERRORS: dict[int | str, dict[str, Any]] = {
    **{
        status: _answers(_OIP_ERROR, str(row["description"]))
        for status, row in openapi.ERRORS.items()
    },
    400: _answers(_OIP_ERROR, "The request is wrong."),
}
_TENSOR = _object("name", "datatype", "shape", name=_TEXT, datatype=_TEXT, shape=_NUMBERS)
_OIP_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: _OIP_ERRORS[404], 422: _OIP_ERRORS[422]}
OIP_SERVER = _route(
    _OIP,
    "What this server is",
    _object("name", "version", name=_TEXT, version=_TEXT, extensions=_STRINGS),
    {},
)
OIP_LIVE = _route(_OIP, "Is the process alive?", _object("live", live=_FLAG), {})
OIP_READY = _route(
    _OIP,
    "Are all scorers ready?",
    _object("ready", ready=_FLAG),
    {503: _answers(_object("ready", ready=_FLAG), "Not all are ready.")},
)
OIP_MODEL = _route(
    _OIP,
    "What a scorer takes and gives",
    _object(
        "name",
        "platform",
        "inputs",
        "outputs",
        name=_TEXT,
        versions=_STRINGS,
        platform=_TEXT,
        inputs={"type": "array", "items": _TENSOR},
        outputs={"type": "array", "items": _TENSOR},
    ),
    _OIP_NOT_FOUND,
)
OIP_MODEL_READY = _route(
    _OIP,
    "Is a scorer ready?",
    _object("name", "ready", name=_TEXT, ready=_FLAG),
    {**_OIP_NOT_FOUND, 503: _answers(_object("ready", ready=_FLAG), "Not ready.")},
)
OIP_INFER = _route(
    _OIP,
    "Score a batch",
    _object(
        "model_name",
        "outputs",
        model_name=_TEXT,
        model_version=_TEXT,
        id=_TEXT,
        outputs={"type": "array", "items": _TENSOR},
    ),
    _OIP_ERRORS,
    _object(
        "inputs",
        id=_TEXT,
        inputs={
            "type": "array",
            "items": _object(
                "name",
                "datatype",
                "shape",
                "data",
                name={"type": "string", "enum": ["IMAGE", "PROMPT", "METADATA"]},
                datatype={"type": "string", "enum": ["BYTES", "UINT8"]},
                shape={"type": "array", "items": {"type": "integer"}},
                data={"type": "array"},
            ),
        },
        outputs={"type": "array", "items": _object("name", name=_TEXT)},
    ),
)
