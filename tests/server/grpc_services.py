"""Stubs and servers of gRPC services by their descriptors: generated code has messages only."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message_factory import GetMessageClass


def service_stub(channel: grpc.Channel, service: ServiceDescriptor) -> Any:
    """An object with one callable for each method."""
    methods = {}
    for method in service.methods:
        kind = "stream_stream" if method.server_streaming else "unary_unary"
        methods[method.name] = getattr(channel, kind)(
            f"/{service.full_name}/{method.name}",
            request_serializer=GetMessageClass(method.input_type).SerializeToString,
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
    return SimpleNamespace(**methods)


def add_servicer(server: grpc.Server, service: ServiceDescriptor, servicer: object) -> None:
    """Serve the methods of an object."""
    handlers = {}
    for method in service.methods:
        kind = "stream_stream" if method.server_streaming else "unary_unary"
        handlers[method.name] = getattr(grpc, f"{kind}_rpc_method_handler")(
            getattr(servicer, method.name),
            request_deserializer=GetMessageClass(method.input_type).FromString,
            response_serializer=GetMessageClass(method.output_type).SerializeToString,
        )
    generic = grpc.method_handlers_generic_handler(service.full_name, handlers)
    server.add_generic_rpc_handlers((generic,))
