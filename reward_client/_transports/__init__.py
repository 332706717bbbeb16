"""How a request reaches a server: gRPC, HTTP, or a function in this process."""

from __future__ import annotations

from reward_client._tls import TlsFiles
from reward_client._transports.base import AsyncTransport, Endpoint, Transport, parse_url
from reward_client._transports.fake import AsyncFakeTransport, FakeTransport
from reward_client.errors import InvalidArgument

__all__ = [
    "AsyncFakeTransport",
    "AsyncTransport",
    "Endpoint",
    "FakeTransport",
    "Transport",
    "open_async_transport",
    "open_transport",
    "parse_url",
]

_NO_GRPC = (
    "grpc:// needs the package grpcio: pip install flow-reward[grpc], or use the server's http://"
    " address"
)


def open_transport(
    url: str, api_key: str | None, max_message_bytes: int, tls: TlsFiles | None = None
) -> Transport:
    """Prepare a transport for `url`; nothing is sent yet.

    Raises:
        InvalidArgument: the url has no known scheme or no host, or a TLS file cannot be used.
        ImportError: the url says grpc and grpcio is not installed.
    """
    endpoint = _endpoint(url, tls)
    if endpoint.is_grpc:
        try:
            from reward_client._transports.grpc_sync import GrpcTransport
        except ModuleNotFoundError as error:
            raise _missing(error) from error
        return GrpcTransport(endpoint, api_key, max_message_bytes, tls)
    from reward_client._transports.http import HttpTransport

    return HttpTransport(endpoint, api_key, tls)


def open_async_transport(
    url: str, api_key: str | None, max_message_bytes: int, tls: TlsFiles | None = None
) -> AsyncTransport:
    """As `open_transport`, for asyncio; connects on first use, in the loop that uses it."""
    endpoint = _endpoint(url, tls)
    if endpoint.is_grpc:
        try:
            from reward_client._transports.grpc_aio import AsyncGrpcTransport
        except ModuleNotFoundError as error:
            raise _missing(error) from error
        return AsyncGrpcTransport(endpoint, api_key, max_message_bytes, tls)
    from reward_client._transports.http import AsyncHttpTransport

    return AsyncHttpTransport(endpoint, api_key, tls)


def _endpoint(url: str, tls: TlsFiles | None) -> Endpoint:
    endpoint = parse_url(url)
    if tls is not None and not endpoint.is_tls:
        raise InvalidArgument(
            f"url {url!r} is not encrypted, so TLS files are of no use:"
            f" write {endpoint.scheme}s:// instead"
        )
    return endpoint


def _missing(error: ModuleNotFoundError) -> ModuleNotFoundError:
    if error.name is None or error.name.split(".")[0] != "grpc":
        return error
    return ModuleNotFoundError(_NO_GRPC, name=error.name)
