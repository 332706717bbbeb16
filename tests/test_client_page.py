"""docs/guides/client.md, executed block by block, as one program, against a real server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.server.server_process import run_python, running

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/guides/client.md").read_text(encoding="utf-8")
TOML = '[scorers.geneval]\noptions = { detector = "shapes" }\n[scorers.jpeg]\n'


def test_every_block_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 7
    with running(tmp_path, TOML, wait_for=("geneval", "jpeg")) as server:
        program = "\n".join(blocks).replace("grpc://127.0.0.1:50051", server.grpc_url)
        program = program.replace("http://127.0.0.1:8000", server.http_url)
        done = run_python(server, "-W", "error", "-c", program)
    assert "INVALID_ARGUMENT" in done.stdout
    assert done.stdout.count(f"{server.grpc_url}") == 2


@pytest.mark.parametrize("name", ["flow_grpo", "trl", "verl", "flow_factory"])
def test_an_integration_is_short(name: str) -> None:
    import ast

    tree = ast.parse((ROOT / f"reward_client/integrations/{name}.py").read_text())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            constant = body[0].value
            if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                body[0] = ast.Expr(ast.Constant(...))
    code = [line for line in ast.unparse(tree).splitlines() if line.strip() not in ("", "...")]
    code = [line for line in code if not line.startswith(("import", "from"))]
    assert len(code) <= 60
