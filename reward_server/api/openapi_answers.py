"""What the answers of the HTTP API look like, for `/openapi.json`; a test holds them to it."""

from __future__ import annotations

from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST

from reward_client.errors import Code
from reward_server.api import openapi

_TEXT = {"type": "string"}
_TEXTS = {"type": "array", "items": _TEXT}
_COLUMN = {"type": "array", "items": {"type": ["number", "null"]}}
_BOUND = {"anyOf": [{"type": "number"}, {"type": "string", "enum": ["Infinity", "-Infinity"]}]}
_STATES = {"type": "string", "enum": ["STARTING", "READY", "FAILED", "DRAINING", "UNKNOWN"]}


def _object(required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


def _json(schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


_STATUS = _object(
    ("index", "code", "message", "retryable"),
    index={"type": "integer"},
    code={"type": "string", "enum": [code.value for code in Code if code is not Code.OK]},
    message=_TEXT,
    retryable={"type": "boolean"},
)
_RESULT = _object(
    ("name", "version", "fingerprint", "scores", "raw", "components", "status"),
    name=_TEXT,
    version=_TEXT,
    fingerprint=_TEXT,
    scores=_COLUMN,
    raw=_COLUMN,
    components={
        "type": "object",
        "additionalProperties": _object(("values",), values=_COLUMN),
    },
    status={"type": "array", "items": _STATUS},
    details={"type": "array", "items": {"type": "object"}},
    lossy_input={"type": "array", "items": {"type": "boolean"}},
    queue_ms={"type": "number"},
    compute_ms={"type": "number"},
)
_SCORER = _object(
    ("name", "version", "fingerprint", "inputs", "transforms", "default_transform", "state"),
    name=_TEXT,
    version=_TEXT,
    fingerprint=_TEXT,
    inputs=_TEXTS,
    transforms=_TEXTS,
    default_transform=_TEXT,
    output_low=_BOUND,
    output_high=_BOUND,
    state=_STATES,
    last_error=_TEXT,
)
_READY = _object(
    ("ready", "scorers"),
    ready={"type": "boolean"},
    scorers={"type": "object", "additionalProperties": _STATES},
    errors={"type": "object", "additionalProperties": _TEXT},
)

# As FastAPI's `responses=`.
SCORE: dict[int | str, dict[str, Any]] = {
    200: _json(
        _object(
            ("request_id", "results"),
            request_id=_TEXT,
            results={"type": "array", "items": _RESULT},
        ),
        "Columns of numbers per scorer; null where `status` says why.",
    ),
    **openapi.ERRORS,
}
SCORERS: dict[int | str, dict[str, Any]] = {
    200: _json(_object(("scorers",), scorers={"type": "array", "items": _SCORER}), "All scorers."),
    **openapi.NOT_ALLOWED,
}
LIVEZ: dict[int | str, dict[str, Any]] = {
    200: _json(_object(("status",), status=_TEXT), "The process is alive.")
}
READYZ: dict[int | str, dict[str, Any]] = {
    200: _json(_READY, "All scorers, or the one asked for, are ready."),
    503: _json(_READY, "Not all are; `errors` says why."),
}
METRICS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "Prometheus' text format.",
        "content": {CONTENT_TYPE_LATEST.partition(";")[0]: {"schema": _TEXT}},
    },
    **openapi.NOT_ALLOWED,
}
