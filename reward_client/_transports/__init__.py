"""How a request reaches a server: gRPC, HTTP, or a function in this process."""

from __future__ import annotations

from reward_client._addresses import Address
from reward_client._tls import TlsFiles
from reward_client._transports.base import Transport
from reward_client.errors import InvalidArgument

_NO_GRPC = (
    "grpc:// needs the package grpcio: pip install flow-reward[grpc], or use the server's http://"
    " address"
)


def check_transport(address: Address, tls: TlsFiles | None) -> None:
    """Raise what `open_transport` would, without opening anything.

    Raises:
        InvalidArgument: TLS files for an address that is not encrypted, or that cannot be used.
        ImportError: the url says grpc and grpcio is not installed.
    """
    if tls is not None:
        if not address.is_tls:
            raise InvalidArgument(
                f"url {address.url!r} is not encrypted, so TLS files are of no use:"
                f" write {address.scheme}s:// instead"
            )
        tls.context()
    if address.is_grpc:
        try:
            import grpc.aio  # noqa: F401
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] != "grpc":
                raise
            raise ModuleNotFoundError(_NO_GRPC, name=error.name) from error


def open_transport(
    address: Address,
    api_key: str | None,
    tls: TlsFiles | None,
    *,
    trust_env: bool,
    shared_memory: bool,
) -> Transport:
    """Open a transport in the running event loop; it connects on first use.

    The arguments are those of `RewardClient`; raises as `check_transport`.
    """
    check_transport(address, tls)
    if address.is_grpc:
        from reward_client._transports.grpc import GrpcTransport

        return GrpcTransport(
            address, api_key, tls, trust_env=trust_env, shared_memory=shared_memory
        )
    from reward_client._transports.http import HttpTransport

    return HttpTransport(address, api_key, tls, trust_env=trust_env)
