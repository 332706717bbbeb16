"""The pages for people: the playground and Swagger UI; neither loads anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response

_PLAYGROUND = Path(__file__).with_name("page.html")
_DOCS = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>flow-reward: HTTP API</title>
<link rel="stylesheet" href="docs/swagger-ui.css"></head>
<body><div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({ url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true });</script>
</body>
</html>
"""
_ASSETS = {"swagger-ui.css": "text/css", "swagger-ui-bundle.js": "text/javascript"}
_A_DAY = {"Cache-Control": "max-age=86400"}
PATHS = frozenset({"/", "/docs", "/openapi.json", *(f"/docs/{name}" for name in _ASSETS)})


def add_pages(app: FastAPI) -> None:
    """Serve the pages, each with a policy that lets it load only what it came with."""
    playground = _PLAYGROUND.read_text(encoding="utf-8")
    _add(app, "/", playground, f"style-src {_hashes('style', playground)}; img-src blob:")
    # Swagger UI sets styles of single elements.
    _add(app, "/docs", _DOCS, "style-src 'self' 'unsafe-inline'; img-src 'self' data:")
    for name, kind in _ASSETS.items():
        content = (resources.files("fastapi_swagger") / "resources" / name).read_bytes()
        app.add_api_route(f"/docs/{name}", _asset(content, kind), include_in_schema=False)


def _asset(content: bytes, kind: str) -> Callable[[], Awaitable[Response]]:
    async def asset() -> Response:
        return Response(content, media_type=kind, headers=_A_DAY)

    return asset


def _add(app: FastAPI, path: str, html: str, policy: str) -> None:
    scripts = _hashes("script", html)
    whole = (
        f"default-src 'none'; script-src 'self' {scripts}; connect-src 'self'; {policy};"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers={"Content-Security-Policy": whole})

    app.add_api_route(path, page, include_in_schema=False)


def _hashes(tag: str, html: str) -> str:
    """The inline scripts or styles of a page, as a policy names them."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    digests = (hashlib.sha256(text.encode()).digest() for text in found)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
