"""Hooks of mkdocs: reference pages made from the code, and links to files that are no pages.

A generated page is written nowhere but into the site, so it cannot differ from the code.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer.main
from pydantic import BaseModel
from pydantic.fields import FieldInfo

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
HEAD = "| name | default | meaning |\n|---|---|---|"
GENERATED = "Generated from the code when this site is built.\n"


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for name, page in pages().items():
        files.append(File.generated(config, name, content=page))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Turn links to files outside of the documentation into their text."""
    folder = Path(config["docs_dir"]) / Path(page.file.src_path).parent

    def replaced(match: re.Match[str]) -> str:
        target = (folder / match[2].partition("#")[0]).resolve()
        outside = "://" not in match[2] and not target.is_relative_to(config["docs_dir"])
        return match[1] if outside and target.exists() else match[0]

    return re.sub(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)#\s][^)\s]*)\)", replaced, markdown)


def pages() -> dict[str, str]:
    """Every generated page by its place in the documentation."""
    return {
        "guides/examples.md": examples_page(),
        "reference/cli.md": cli_page(),
        "reference/settings.md": settings_page(),
        "reference/server_config.md": server_page(),
        "reference/api.md": api_page(),
        "reference/http_api.md": http_page(),
        "reference/proto.md": proto_page(),
    }


def examples_page() -> str:
    """Every file of examples/: what it shows, and its source behind a click."""
    parts = [
        f"# Examples\n{GENERATED}\nEach is one file, run by a test. To begin with, as a notebook:"
        " `examples/quickstart.ipynb` starts a server, scores images and computes advantages.\n"
    ]
    for file in sorted((ROOT / "examples").glob("*.py")):
        source = file.read_text(encoding="utf-8").strip()
        title = (ast.get_docstring(ast.parse(source)) or file.stem).partition("\n")[0]
        lines = [f"    {line}" if line else "" for line in source.splitlines()]
        block = "\n".join(["    ```python", *lines, "    ```"])
        name, count = file.relative_to(ROOT), len(lines)
        parts.append(f'## `{name}`\n\n{title}\n\n??? example "{count} lines"\n\n{block}\n')
    return "\n".join(parts)


def cli_page() -> str:
    """Commands with arguments and options, as `--help` has them."""
    from reward_server.cli import app as server
    from trainer.cli import app as train

    parts = [f"# Command line\n{GENERATED}\n{_COMPLETION}"]
    for name, app in (("reward-server", server), ("flow-train", train)):
        for path, command in _commands(name, typer.main.get_command(app)):
            parts.append(f"## `{path}`\n\n{_help(command.help)}\n")
            rows = [_parameter(one) for one in command.params if one.name != "help"]
            if rows and not hasattr(command, "commands"):
                parts.append("\n".join([HEAD, *rows]) + "\n")
            if lines := (command.epilog or "").split("\n\n")[1:]:
                parts.append("\n".join(["```bash", *lines, "```\n"]))
    return "\n".join(parts)


_COMPLETION = """
`COMMAND --help` says the same in a terminal, with examples.

## Shell completion

```bash
reward-server --install-completion
flow-train --install-completion
```

adds completion of commands, options, scorers and presets to your shell (bash, zsh, fish or
PowerShell), for terminals opened from then on. `--show-completion` prints the script instead.
"""


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from _commands(f"{path} {name}", inner)


def _help(text: str | None) -> str:
    return inspect.cleandoc(text or "").replace("\b", "").replace("\f", "")


def _parameter(one: Any) -> str:
    is_option = one.param_type_name == "option"
    name = ", ".join(one.opts) if is_option else one.metavar or one.name.upper()
    value = one.default if is_option and one.default not in (None, "", False, ()) else ""
    value = getattr(value, "value", value)
    text = getattr(one, "help", "") or ""
    return f"| {_code(name)} | {_code(value)} | {_cell(text)} |"


def settings_page() -> str:
    """The settings of a run, section by section."""
    from trainer.config.loss_settings import LOSS_SETTINGS
    from trainer.config.settings import RewardTerm, Settings

    parts = [
        f"# Settings of a run\n{GENERATED}\nHow they are used: [training](../guides/training.md)."
    ]
    for name, section in Settings():
        parts.append(f"## `[{name}]`\n\n{_help(type(section).__doc__)}\n")
        if name != "loss":
            parts.append(_table(type(section).model_fields))
            continue
        for algorithm, model in LOSS_SETTINGS.items():
            parts.append(f'### `algorithm = "{algorithm}"`\n\n{_help(model.__doc__)}\n')
            parts.append(_table({k: v for k, v in model.model_fields.items() if k != "algorithm"}))
    parts.append("## A reward\n\nOne entry of `rewards.train` and `rewards.watch`.\n")
    parts.append(_table(RewardTerm.model_fields))
    return "\n".join(parts)


def server_page() -> str:
    """The config of the server, table by table."""
    from reward_server.config import ScorerConfig, ServerConfig

    parts = [
        f"# Config of the server\n{GENERATED}\n"
        "How it is used: [the server](../operate/server.md#configuration). `reward-server config"
        " show` prints the result of file, environment and defaults.\n"
    ]
    for title, model in (("[server]", ServerConfig), ("[scorers.NAME]", ScorerConfig)):
        parts.append(f"## `{title}`\n\n{_table(model.model_fields)}")
    return "\n".join(parts)


def _table(fields: dict[str, FieldInfo]) -> str:
    rows = [HEAD]
    for name, field in fields.items():
        default = field.get_default(call_default_factory=True)
        default = "required" if field.is_required() else _default(default)
        options = _options(field.annotation)
        text = _cell(field.description or "")
        rows.append(f"| `{name}` | {_code(default)} | {text}{options} |")
    return "\n".join(rows) + "\n"


def _default(value: Any) -> str:
    if isinstance(value, BaseModel):
        return value.model_dump_json(exclude_defaults=True)
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(_default(entry) for entry in value) + "]"
    if isinstance(value, str):
        return f'"{value}"'
    return str(value).lower() if isinstance(value, bool) else str(value)


def _options(annotation: Any) -> str:
    values = get_args(annotation) if get_origin(annotation) is Literal else ()
    return f" One of {', '.join(_code(value) for value in values)}." if values else ""


def _code(value: Any) -> str:
    return f"`{_cell(str(value))}`" if str(value) else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def api_page() -> str:
    """The public names of the client with their docstrings."""
    import reward_client

    parts = [f"# Python client\n{GENERATED}\nBy example: [the client](../guides/client.md).\n"]
    for name in reward_client.__all__:
        value = getattr(reward_client, name)
        if not (inspect.isclass(value) or inspect.isfunction(value)):
            continue
        parts.append(f"## `{name}`\n\n{_docstring(value)}\n")
        if not inspect.isclass(value) or issubclass(value, Exception):
            continue
        for method, found in vars(value).items():
            if inspect.isfunction(found) and not method.startswith("_") and found.__doc__:
                signature = str(inspect.signature(found)).replace("'", "")
                call = f"```text\n{method}{signature}\n```"
                parts.append(f"### `{name}.{method}`\n\n{call}\n\n{_docstring(found)}\n")
    return "\n".join(parts)


def _docstring(value: Any) -> str:
    """Google's sections as headings in bold and lists; prose as it stands."""
    lines, section = [], ""
    for line in inspect.cleandoc(value.__doc__ or "").splitlines():
        if re.fullmatch(r"[A-Z][a-z]+:", line):
            section = line
            lines += ["", f"**{line[:-1]}**", ""]
        elif section and (entry := re.match(r"    (\**\w+): (.*)", line)):
            lines.append(f"- `{entry[1]}`: {entry[2]}")
        else:
            lines.append(line.strip() if section else line)
    return "\n".join(lines)


def proto_page() -> str:
    """The contract itself."""
    source = (ROOT / "protos/reward/v1/reward.proto").read_text(encoding="utf-8")
    http = "Over HTTP the same messages are JSON: [HTTP API](http_api.md)."
    return f"# gRPC contract\n{GENERATED}\n{http}\n\n```proto\n{source}```\n"


def http_page() -> str:
    """The HTTP API: paths, bodies, statuses and messages of its OpenAPI description."""
    from reward_client.errors import STATUS
    from reward_server import config
    from reward_server.api.dialects.routes import add_routes
    from reward_server.api.http_api import create_app
    from reward_server.observability.metrics import Metrics
    from reward_server.service import RewardService

    service = RewardService(config.load(None, {}), Metrics())
    app = create_app(service)
    own = list(app.openapi()["paths"])
    app.openapi_schema = None
    add_routes(app, service)
    document = app.openapi()
    paths: dict[str, Any] = document["paths"]
    dialects = {path: found for path, found in paths.items() if path not in own}
    meanings = {
        int(status): answer["description"]
        for status, answer in paths["/v1/score"]["post"]["responses"].items()
    }
    codes = {status.http: f"`{code.value}`" for code, status in STATUS.items()}
    statuses = [
        f"| {status} | {codes.get(status, '')} | {_cell(meaning)} |"
        for status, meaning in sorted(meanings.items())
    ]
    parts = [
        f"# HTTP API\n{GENERATED}\n{app.description}\n",
        "On a running server: `/docs` to try it, `/openapi.json` for code generators. The deadline"
        " of a request is the header `x-reward-deadline-ms`; an API key goes into"
        " `authorization: Bearer KEY`. The same over gRPC: [gRPC contract](proto.md).\n",
        "## Paths\n\n" + _paths({path: paths[path] for path in own}),
        "## Statuses\n\nFailures of `/v1` carry an [Error](#error).\n",
        "\n".join(["| HTTP | code | meaning |\n|---|---|---|", *statuses]) + "\n",
        "## Paths of the dialects\n\nWith `--legacy`:"
        " [existing clients](../guides/legacy.md).\n\n" + _paths(dialects),
        "## Messages\n",
    ]
    messages: dict[str, Any] = document["components"]["schemas"]
    parts += [_message(name, messages[name]) for name in _reached(paths, messages)]
    return "\n".join(parts)


def _reached(paths: dict[str, Any], messages: dict[str, Any]) -> list[str]:
    """Names of messages in the order in which a reader of the paths meets them."""
    found: dict[str, None] = {}

    def read(schema: Any) -> None:
        for name in re.findall(r"#/components/schemas/(\w+)", json.dumps(schema)):
            if name not in found and name not in _UNUSED:
                found[name] = None
                read(messages[name])

    for methods in paths.values():
        for one in methods.values():
            read(one.get("requestBody"))
            read(one["responses"])
    return list(found)


# FastAPI's own answer to arguments that it cannot convert; all of ours are texts.
_UNUSED = ("HTTPValidationError", "ValidationError")


def _paths(found: dict[str, Any]) -> str:
    rows = ["| path | body | answer | other statuses |\n|---|---|---|---|"]
    for path, methods in found.items():
        for method, one in methods.items():
            query = [p["name"] for p in one.get("parameters", ()) if p["in"] == "query"]
            shown = path + ("?" + "&".join(f"{name}=" for name in query) if query else "")
            content = one.get("requestBody", {}).get("content", {})
            body = "<br>".join(
                f"`{kind}`: {_type(what['schema'])}" for kind, what in content.items()
            )
            answers = {
                status: answer.get("content", {}).get("application/json", {}).get("schema", {})
                for status, answer in one["responses"].items()
                if not any(name in str(answer) for name in _UNUSED)
            }
            others = ", ".join(sorted(status for status in answers if status != "200"))
            path_cell = f"`{method.upper()} {shown}`<br>{_cell(one['summary'])}"
            cells = (path_cell, body, _type(answers["200"]), others)
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) + "\n"


def _message(name: str, schema: dict[str, Any]) -> str:
    text = _help(schema.get("description"))
    head = f"### {name}\n\n{text}\n" if text else f"### {name}\n"
    if "properties" not in schema:
        return f"{head}\n{_type(schema)}\n"
    rows = ["| field | type | default | meaning |\n|---|---|---|---|"]
    for field, found in schema["properties"].items():
        required = field in schema.get("required", ())
        default = "required" if required else f"`{json.dumps(found.get('default'))}`"
        row = (f"`{field}`", _type(found), default, _cell(found.get("description", "")))
        rows.append(f"| {' | '.join(row)} |")
    return head + "\n" + "\n".join(rows) + "\n"


def _type(schema: dict[str, Any]) -> str:
    """A type of JSON schema in words, with links to messages of this page."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(_type(one) for one in schema["anyOf"])
    kind = schema.get("type", "")
    if kind == "array":
        return f"list of {_type(schema.get('items', {})) or 'anything'}"
    if kind == "object" and isinstance(values := schema.get("additionalProperties"), dict):
        return f"object of {_type(values)}"
    return "bytes" if schema.get("format") == "binary" else kind
