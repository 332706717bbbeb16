"""Turns traces on for this process, where the config or the standard OTEL_* environment asks."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

from reward_server.observability.build_info import BuildInfo

SERVICE_NAME = "reward-server"
# Newer versions of FastAPI make spans and metrics too; ours know batches and scorers.
NO_TELEMETRY: Any = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
_STOP_TIMEOUT_S = 2.0
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class TelemetryError(Exception):
    """Traces were asked for and cannot be had; one line that says what to do."""


def start(
    otlp_endpoint: str, build: BuildInfo, environment: Mapping[str, str] = os.environ
) -> Callable[[], None]:
    """Export spans over OTLP/HTTP, if that is asked for; returns what to call at the end.

    Sampling, headers, time-outs and resource attributes follow the standard variables.
    Raises TelemetryError.

    Args:
        otlp_endpoint: base URL of a collector, such as http://collector:4318; "" leaves the choice
            to the environment.
        build: reported to the collector.
        environment: of the process.
    """
    if not _is_wanted(otlp_endpoint, environment):
        return lambda: None
    protocol = environment.get("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    if protocol != "http/protobuf":
        raise TelemetryError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not supported: set http/protobuf and the"
            " collector's HTTP port (4318 by default)"
        )
    try:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TelemetryError(
            f"traces need the package {error.name}: pip install 'flow-reward[otel]', or unset"
            " otlp_endpoint and OTEL_EXPORTER_OTLP_ENDPOINT"
        ) from error
    name = environment.get("OTEL_SERVICE_NAME") or SERVICE_NAME
    resource = Resource.create({"service.name": name, "service.version": build.version})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    url = f"{otlp_endpoint.rstrip('/')}/v1/traces" if otlp_endpoint else None
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    trace.set_tracer_provider(provider)

    def stop() -> None:
        # A collector that is away must not hold up the end of the server.
        ending = threading.Thread(target=provider.shutdown, daemon=True)
        ending.start()
        ending.join(_STOP_TIMEOUT_S)

    return stop


def _is_wanted(otlp_endpoint: str, environment: Mapping[str, str]) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "otlp") == "none":
        return False
    return bool(otlp_endpoint) or any(environment.get(name) for name in _ENDPOINTS)
