"""The pages for people: the playground and Swagger UI; neither loads anything from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
from importlib import resources
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import HTMLResponse, Response

_PLAYGROUND = Path(__file__).with_name("playground")
_KINDS = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_PLAYGROUND_FILES = {
    f"/playground/{file.name}": file
    for file in sorted(_PLAYGROUND.iterdir())
    if file.suffix in _KINDS
}
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
_ASSETS = ("swagger-ui.css", "swagger-ui-bundle.js")
# Files of another package change with its version; ours with any commit.
_A_DAY, _ASK_AGAIN = "max-age=86400", "no-cache"
PATHS = frozenset(
    {"/", "/docs", "/openapi.json", *(f"/docs/{name}" for name in _ASSETS), *_PLAYGROUND_FILES}
)


def add_pages(app: FastAPI) -> None:
    """Serve the pages, each with a policy that lets it load only what it came with."""
    playground = (_PLAYGROUND / "index.html").read_text(encoding="utf-8")
    _add(app, "/", playground, "style-src 'self'; img-src 'self' blob:")
    for path, file in _PLAYGROUND_FILES.items():
        _add_asset(app, path, file.read_bytes(), _ASK_AGAIN)
    # Swagger UI sets styles of single elements.
    _add(app, "/docs", _DOCS, "style-src 'self' 'unsafe-inline'; img-src 'self' data:")
    for name in _ASSETS:
        content = (resources.files("fastapi_swagger") / "resources" / name).read_bytes()
        _add_asset(app, f"/docs/{name}", content, _A_DAY)


def _add_asset(app: FastAPI, path: str, content: bytes, caching: str) -> None:
    headers = {"Cache-Control": caching, "X-Content-Type-Options": "nosniff"}
    kind = _KINDS[Path(path).suffix]

    async def asset() -> Response:
        return Response(content, media_type=kind, headers=headers)

    app.add_api_route(path, asset, include_in_schema=False)


def _add(app: FastAPI, path: str, html: str, policy: str) -> None:
    # An inline script is named by its digest.
    inline = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in inline)
    scripts = " ".join(["'self'", *(f"'sha256-{digest}'" for digest in digests)])
    whole = (
        f"default-src 'none'; script-src {scripts}; connect-src 'self'; {policy};"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

    async def page() -> HTMLResponse:
        return HTMLResponse(html, headers={"Content-Security-Policy": whole})

    app.add_api_route(path, page, include_in_schema=False)
