"""The floor: a bare grpc.aio server that takes the bytes of a request and answers with one.

Run: python -m benchmarks.wire.echo PORT_FILE
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

METHOD = "/benchmark.Echo/Take"
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


async def serve(port_file: Path) -> None:
    async def take(body: bytes, _: Any) -> bytes:
        return body[:1]

    handlers = {"Take": grpc.unary_unary_rpc_method_handler(take)}
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("benchmark.Echo", handlers),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    port_file.write_text(str(port))
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
