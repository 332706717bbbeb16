"""What `/docs` says about `POST /v1/score`, whose bodies are parsed by hand."""

from __future__ import annotations

from typing import Any

from reward_client._transports.base import PROTOBUF_TYPE
from reward_client.errors import STATUS, Code
from reward_client.images import Encoding
from reward_client.types import Priority

DESCRIPTION = (
    "Rewards for generated images. A failure is a status, never a number: where `status` names an"
    " item, its numbers are null. The same messages are spoken over gRPC (`reward.v1`)."
)

_MEDIA = {
    "type": "object",
    "required": ["data", "encoding"],
    "properties": {
        "data": {"type": "string", "format": "byte", "description": "base64"},
        "encoding": {"type": "string", "enum": [e.value for e in Encoding]},
        "width": {"type": "integer", "description": "px; required for the raw encodings"},
        "height": {"type": "integer", "description": "px; required for the raw encodings"},
    },
}
_ITEM = {
    "type": "object",
    "required": ["id", "images"],
    "properties": {
        "id": {"type": "string", "description": "unique within the request"},
        "prompt": {"type": "string"},
        "images": {"type": "array", "items": _MEDIA},
        "references": {"type": "array", "items": _MEDIA},
        "geneval": {
            "type": "object",
            "description": "a row of GenEval's metadata",
            "example": {
                "tag": "colors",
                "include": [{"class": "star", "count": 1, "color": "red"}],
            },
        },
        "ocr": {"type": "object", "properties": {"target": {"type": "string"}}},
        "metadata": {"type": "object"},
    },
}
_REQUEST = {
    "type": "object",
    "required": ["scorers", "items"],
    "properties": {
        "request_id": {"type": "string", "description": "repeat it on a retry"},
        "scorers": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"type": "string"},
                    "version": {"type": "string"},
                    "transform": {"type": "string"},
                },
            },
        },
        "items": {"type": "array", "minItems": 1, "items": _ITEM},
        "priority": {"type": "string", "enum": [p.value for p in Priority], "default": "EVAL"},
        "include_details": {"type": "boolean"},
        "timeout_ms": {"type": "number", "description": "how long the caller waits"},
    },
}
_FORM = {
    "type": "object",
    "required": ["images", "scorers"],
    "properties": {
        "images": {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "description": "PNG, JPEG, WebP or QOI files; one item each",
        },
        "scorers": {"type": "string", "description": "names, separated by commas"},
        "prompt": {"type": "string"},
        "spec": {"type": "string", "description": 'JSON: {"geneval": {...}} or {"ocr": {...}}'},
        "include_details": {"type": "boolean"},
    },
}

SCORE: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": _REQUEST},
            "multipart/form-data": {"schema": _FORM},
            PROTOBUF_TYPE: {"schema": {"type": "string", "format": "binary"}},
        },
    }
}

_MEANING = {
    Code.UNAUTHENTICATED: "The API key is missing or wrong.",
    Code.PERMISSION_DENIED: "The API key does not allow this.",
    Code.INVALID_ARGUMENT: "The request is wrong; `items` names the items at fault.",
    Code.NOT_FOUND: "No such scorer, version or transform; the nearest name is told.",
    Code.RESOURCE_EXHAUSTED: "The server is full: come back after `Retry-After` seconds.",
    Code.UNAVAILABLE: "Starting, failed or shutting down.",
    Code.DEADLINE_EXCEEDED: "Not finished within `x-reward-deadline-ms`.",
    Code.INTERNAL: "A bug of the server.",
}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "code": {"type": "string", "enum": [code.value for code in _MEANING]},
                "message": {"type": "string"},
                "retryable": {"type": "boolean"},
                "items": {"type": "array", "items": {"type": "object"}},
            },
        }
    },
}

ERRORS: dict[int | str, dict[str, Any]] = {
    STATUS[code].http: {
        "description": meaning,
        "content": {"application/json": {"schema": _ERROR}},
    }
    for code, meaning in _MEANING.items()
}
# Of what needs a key but nothing else.
NOT_ALLOWED: dict[int | str, dict[str, Any]] = {
    status: ERRORS[status]
    for status in (STATUS[Code.UNAUTHENTICATED].http, STATUS[Code.PERMISSION_DENIED].http)
}
