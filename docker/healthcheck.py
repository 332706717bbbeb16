#!/usr/bin/env python3
"""The containers' health check: asks the server's own readiness probe, prints its reason.

Standard library only, and few imports: it runs every few seconds in every container.
"""

import http.client
import json
import os
import ssl
import sys

TIMEOUT_S = 4.0
PREFIX = "REWARD_SERVER__SERVER__"


def main() -> int:
    """0 if the server can score, else 1; prints which scorers are not ready, and why."""
    port = int(os.environ.get(PREFIX + "HTTP", "0.0.0.0:8000").rpartition(":")[2])
    try:
        connection = _connection(port)
        connection.request("GET", "/readyz")
        response = connection.getresponse()
        probe = json.load(response)
    except (OSError, ValueError, http.client.HTTPException) as error:
        print(f"no answer on port {port}: {error}")
        return 1
    # Reasons are only for callers with a key.
    errors = probe.get("errors", {})
    rows = [
        f"{n} is {s}: {errors.get(n, 'see /v1/scorers or the log')}"
        for n, s in probe["scorers"].items()
        if s != "READY"
    ]
    print("; ".join(["ready", *rows] if probe["ready"] else rows))
    return 0 if probe["ready"] else 1


def _connection(port: int) -> http.client.HTTPConnection:
    certificate = os.environ.get(PREFIX + "TLS_CERT_FILE")
    if not certificate:
        return http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    # The certificate names the service as others reach it, not this loopback connection.
    context = ssl._create_unverified_context()
    if os.environ.get(PREFIX + "TLS_CLIENT_CA_FILE"):
        # With mTLS the server asks everybody for a certificate; its own has to be of that CA.
        context.load_cert_chain(certificate, os.environ[PREFIX + "TLS_KEY_FILE"])
    return http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_S, context=context)


if __name__ == "__main__":
    sys.exit(main())
