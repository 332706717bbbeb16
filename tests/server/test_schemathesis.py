"""The OpenAPI description is true: generated requests, valid and not, against a running server.

Every answer must have a documented status, the documented content type and schema; no answer may be
a 5xx that is not documented. `SCHEMATHESIS_EXAMPLES=500 make test-all` looks longer.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks
from server_process import HEADER, Server, running

from reward_client import Encoding, codec

pytestmark = pytest.mark.exhaustive
EXAMPLES = int(os.environ.get("SCHEMATHESIS_EXAMPLES", "12"))
TOML = f"""{HEADER}legacy = true
legacy_ports = {{}}
[scorers.jpeg]
[scorers.geneval]
options = {{ detector = "shapes" }}
"""
CHECKS = (
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
)
PATHS = (
    *("/v1/score", "/v1/scorers", "/livez", "/readyz", "/metrics"),
    *("/compat/flow-factory/{scorer}/health", "/compat/flow-factory/{scorer}/compute"),
    *("/health", "/rewards", "/score", "/v2", "/v2/health/live", "/v2/health/ready"),
    *("/v2/models/{name}", "/v2/models/{name}/ready", "/v2/models/{name}/infer"),
    *("/v2/models/{name}/versions/{version}", "/v2/models/{name}/versions/{version}/ready"),
    "/v2/models/{name}/versions/{version}/infer",
)


POSTED = ("/v1/score", "/compat/flow-factory/{scorer}/compute", "/score", "/v2/models/{name}/infer")
PNG = base64.b64encode(codec.encode(np.full((16, 16, 3), 9, np.uint8), Encoding.PNG).data).decode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("schema"), TOML, wait_for=("jpeg", "geneval")) as server:
        yield server


@pytest.fixture(scope="module")
def schema(server: Server) -> Any:
    return schemathesis.openapi.from_url(f"{server.http_url}/openapi.json")


def test_every_operation_is_tried(schema: Any) -> None:
    assert set(schema) == set(PATHS)


def try_out(operation: Any, mode: Any) -> list[int]:
    """Send generated requests; returns the statuses."""
    allowed = set(operation.definition.raw["responses"])
    statuses: list[int] = []

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=EXAMPLES < 100,
        phases=[Phase.generate],
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.filter_too_much,
            HealthCheck.data_too_large,
            HealthCheck.large_base_example,
        ],
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def answers_as_documented(case: Any) -> None:
        response = case.call(timeout=30)
        statuses.append(response.status_code)
        assert str(response.status_code) in allowed, f"{response.status_code}: {response.text}"
        assert response.status_code != 500, response.text
        case.validate_response(response, checks=list(CHECKS))

    answers_as_documented()
    return statuses


@pytest.mark.parametrize("path", PATHS)
def test_answers_are_as_documented(schema: Any, path: str) -> None:
    for operation in schema[path].values():
        assert try_out(operation, GenerationMode.POSITIVE)


@pytest.mark.parametrize("path", POSTED)
def test_wrong_requests_are_answered_as_documented(schema: Any, path: str) -> None:
    statuses = try_out(schema[path]["POST"], GenerationMode.NEGATIVE)
    assert any(400 <= status < 500 or "flow-factory" in path for status in statuses)


ITEM = {"id": "a", "images": [{"data": PNG, "encoding": "PNG"}]}
ASKED = {"history": [{"text": "p", "image_b64": PNG}], "required_rewards": ["jpeg"]}
IMAGE = {"name": "IMAGE", "datatype": "BYTES", "shape": [1], "data": [PNG]}
GOOD: dict[str, tuple[str, Any]] = {
    "/v1/score": ("/v1/score", {"scorers": [{"name": "jpeg"}], "items": [ITEM]}),
    "/score": ("/score", {"requests": [ASKED]}),
    "/compat/flow-factory/{scorer}/compute": (
        "/compat/flow-factory/jpeg/compute",
        {"prompt": ["p"], "image": [PNG]},
    ),
    "/v2/models/{name}/infer": ("/v2/models/jpeg/infer", {"inputs": [IMAGE]}),
}


@pytest.mark.parametrize("path", GOOD)
def test_scores_are_as_documented(schema: Any, server: Server, path: str) -> None:
    # Generated pictures are none, so the answers above are refusals; these are scores.
    actual, body = GOOD[path]
    response = requests.post(server.http_url + actual, json=body, timeout=30)
    assert response.status_code == 200, response.text
    assert "error" not in response.json()
    assert schema[path]["POST"].is_valid_response(response)
