"""The server's configuration: one typed TOML file, environment variables over it, no surprises.

An environment variable overrides one key: `REWARD_SERVER__SERVER__HTTP=127.0.0.1:9000`,
`REWARD_SERVER__SCORERS__JPEG__REPLICAS=2`. Values are read as TOML, or as text where they are none.
Every mistake is one line that names the key and, where there is one, the nearest valid name.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from reward_server.limits import RequestLimits
from reward_server.scorers import SCORERS
from reward_server.upstream.settings import (
    UpstreamConfigError,
    UpstreamKeys,
    check_keys,
    read_settings,
)
from reward_server.weights.catalog import CATALOG

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

ENV_PREFIX = "REWARD_SERVER__"
DEFAULT_FILE = Path(__file__).with_name("config_default.toml")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_DEVICE = re.compile(r"cpu|cuda(:\d+)?")
# What scorers of one worker have in common; a table with `worker_of` may leave it out.
_WORKER_KEYS = ("device", "replicas", "python", "threads", "memory_limit_bytes")
# Options that decide the network they share, with their defaults.
_NETWORK_OPTIONS = {"weights": "", "dtype": "float32", "compile": False}


class ConfigError(Exception):
    """The configuration cannot be used; the message is one line that says what to change."""


def _address(value: str) -> str:
    if value == "off":
        return value
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ValueError(f"{value!r} is not HOST:PORT (port 0 picks a free one) or 'off'")
    return value


def _device(value: str) -> str:
    if not _DEVICE.fullmatch(value):
        raise ValueError(f"device {value!r} is not 'cpu', 'cuda' or 'cuda:N'")
    return value


CachePolicy: TypeAlias = Literal["never", "eval", "always"]
Address = Annotated[str, AfterValidator(_address)]
Device = Annotated[str, AfterValidator(_device)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerConfig(RequestLimits):
    """The `[server]` table."""

    http: Address = Field("127.0.0.1:8000", description="HOST:PORT of the HTTP API, or 'off'")
    grpc: Address = Field("127.0.0.1:50051", description="HOST:PORT of the gRPC API, or 'off'")
    allow_unauthenticated: bool = Field(
        False, description="listen beyond loopback without authentication"
    )
    keys_file: str = Field("", description="file of API keys; then every request needs one")
    tls_cert_file: str = Field("", description="certificate chain (PEM): both APIs speak TLS")
    tls_key_file: str = Field("", description="private key of tls_cert_file (PEM)")
    tls_client_ca_file: str = Field(
        "", description="CA (PEM): callers must show a certificate that it signed (mTLS)"
    )
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "console", "json"] = Field(
        "auto", description="auto: console on a terminal, JSON lines otherwise"
    )
    max_queue_items: int = Field(4096, ge=1, description="items held at once, per scorer")
    max_queue_bytes: int = Field(2 << 30, ge=1 << 16, description="decoded pixels held, in bytes")
    max_image_bytes: int = Field(64 << 20, ge=1, description="bytes of one encoded image")
    max_image_pixels: int = Field(4096 * 4096, ge=1, description="pixels of one image")
    max_image_side_px: int = Field(16384, ge=1, description="width and height of one image")
    default_deadline_s: float = Field(
        300.0, gt=0, description="for requests that come without a deadline"
    )
    drain_timeout_s: float = Field(30.0, ge=0, description="to finish what is in flight on SIGTERM")
    client_timeout_s: float = Field(
        60.0, gt=0, description="for a client to send its request, or to take its answer"
    )
    max_connections: int = Field(
        1024, ge=1, description="HTTP connections at once, and likewise gRPC calls"
    )
    max_streams: int = Field(
        64, ge=1, description="gRPC streams at once; each may have 64 requests in flight"
    )
    shared_memory_folder: str = Field(
        "", description="volume shared with clients in other containers, for pixels without copies"
    )
    slow_request_s: float = Field(
        30.0, gt=0, description="answers that take longer are logged as warnings"
    )
    otlp_endpoint: str = Field(
        "", description="OTLP/HTTP collector of traces; default: the OTEL_* variables, or off"
    )
    cache_bytes: int = Field(0, ge=0, description="bytes of scores kept for repeated items; 0: off")
    decode_threads: int = Field(2, ge=1, description="threads that decode images")
    legacy: bool = Field(False, description="also speak the dialects of existing clients")
    legacy_ports: dict[str, Address] = Field(
        default_factory=lambda: {"geneval": "127.0.0.1:18085", "deqa": "127.0.0.1:18086"},
        description="with legacy: scorer -> HOST:PORT for clients that send pickles to a port",
    )
    legacy_transforms: dict[str, str] = Field(
        default_factory=dict,
        description="with legacy: scorer -> transform for pickle clients; default: flowgrpo",
    )


class ScorerConfig(UpstreamKeys, _Section):
    """One `[scorers.NAME]` table."""

    scorer: str = Field("", description="a built-in scorer or 'module:Class'; default: NAME")
    device: Device | list[Device] = Field("cpu", description="'cpu', 'cuda:N', or a list of them")
    replicas: int = Field(1, ge=1, le=64, description="worker processes per device")
    python: str = Field("", description="interpreter of the workers; default: the server's own")
    options: dict[str, Any] = Field(default_factory=dict, description="passed to the scorer")
    worker_of: str = Field(
        "", description="scorer whose workers and network it shares; default: its own"
    )
    env: list[str] = Field(
        default_factory=list, description="names of more environment variables for the workers"
    )
    threads: int = Field(0, ge=0, description="CPU threads per worker; 0: 1 on cpu, 4 on cuda")
    max_batch_pixels: int = Field(16 << 20, ge=1, description="pixels per batch")
    max_wait_ms: float = Field(5.0, ge=0, description="longest wait of an item for a fuller batch")
    timeout_s: float = Field(
        60.0, gt=0, description="of a batch, beyond three times what its items have been taking"
    )
    start_timeout_s: float = Field(600.0, gt=0, description="to load, warm up and self-test")
    memory_limit_bytes: int = Field(
        0, ge=0, description="resident memory of a worker beyond which it is replaced; 0: none"
    )
    cache: CachePolicy = Field(
        "eval", description="use of [server] cache_bytes: 'never', 'eval' (not for TRAIN), 'always'"
    )
    cool_down_s: float = Field(
        60.0, gt=0, description="after five lost workers in a row, until the next one is tried"
    )

    @property
    def devices(self) -> tuple[str, ...]:
        """One entry per worker process."""
        devices = [self.device] if isinstance(self.device, str) else self.device
        return tuple(device for device in devices for _ in range(self.replicas))


class Config(_Section):
    """Everything."""

    server: ServerConfig = Field(default_factory=lambda: ServerConfig.model_validate({}))
    defaults: ScorerConfig = Field(default_factory=lambda: ScorerConfig.model_validate({}))
    scorers: dict[str, ScorerConfig] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _put_defaults_under(cls, tables: Any) -> Any:
        """Fill what a scorer's table leaves out from [defaults]; upstream ones run elsewhere.

        What concerns the worker comes from the table of the scorer whose worker it is.
        """
        defaults, scorers = tables.get("defaults", {}), tables.get("scorers")
        if not isinstance(defaults, dict) or not isinstance(scorers, dict):
            return tables
        filled = {}
        for name, table in scorers.items():
            filled[name] = table
            if isinstance(table, dict) and "upstream" not in table:
                host = scorers.get(str(table.get("worker_of")))
                of_worker = {
                    k: host[k] for k in _WORKER_KEYS if isinstance(host, dict) and k in host
                }
                filled[name] = {**defaults, **of_worker, **table}
        return {**tables, "scorers": filled}

    @model_validator(mode="after")
    def _check_scorers(self) -> Config:
        if not self.scorers:
            raise ValueError("no scorer configured: add a table such as [scorers.jpeg]")
        for name, section in self.scorers.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"scorer name {name!r}: use letters, digits, '_', '-' and '.'")
            check_keys(name, section)
            if section.targets:
                continue
            path = section.scorer or name
            if ":" not in path and path not in SCORERS:
                raise ValueError(
                    f"scorers.{name}: no scorer called {path!r}{_nearest(path, SCORERS)}"
                    f" (built in: {', '.join(SCORERS)}; your own: scorer = 'module:Class')"
                )
            if not section.devices:
                raise ValueError(f"scorers.{name}.device: the list is empty")
            if section.worker_of:
                _check_worker_of(name, section, self.scorers)
        return self

    @model_validator(mode="after")
    def _check_legacy(self) -> Config:
        for key in ("legacy_ports", "legacy_transforms"):
            # The defaults name scorers that need not be there.
            given = getattr(self.server, key) if key in self.server.model_fields_set else {}
            for name in given:
                if name not in self.scorers:
                    raise ValueError(
                        f"server.{key}: no scorer called {name!r}{_nearest(name, self.scorers)}"
                        f" (configured: {_listed(list(self.scorers))})"
                    )
        return self


def _check_worker_of(name: str, section: ScorerConfig, scorers: Mapping[str, ScorerConfig]) -> None:
    """Raise ValueError unless a scorer can live in the workers of the one it names."""
    where, host_name = f"scorers.{name}.worker_of", section.worker_of
    host = scorers.get(host_name)
    if host is None:
        raise ValueError(
            f"{where}: no scorer called {host_name!r}{_nearest(host_name, scorers)}"
            f" (configured: {_listed(list(scorers))})"
        )
    if host_name == name:
        raise ValueError(f"{where}: names the scorer itself; leave it out")
    if host.targets:
        raise ValueError(f"{where}: {host_name!r} runs on another server; leave it out")
    if host.worker_of:
        raise ValueError(
            f"{where}: {host_name!r} has no worker of its own; name {host.worker_of!r}"
        )
    paths = section.scorer or name, host.scorer or host_name
    if all(path in SCORERS for path in paths) and not _networks(paths[0]) & _networks(paths[1]):
        raise ValueError(
            f"{where}: {paths[0]!r} and {paths[1]!r} have no network in common; leave it out"
        )
    pairs = {key: (getattr(section, key), getattr(host, key)) for key in _WORKER_KEYS}
    pairs |= {
        f"options.{key}": (section.options.get(key, default), host.options.get(key, default))
        for key, default in _NETWORK_OPTIONS.items()
    }
    for key, (own, of_host) in pairs.items():
        if own != of_host:
            raise ValueError(
                f"scorers.{name}.{key} is {own!r}, but {host_name!r}, whose worker it shares, has"
                f" {of_host!r}: make them equal, or leave out worker_of"
            )


def _networks(scorer: str) -> set[str]:
    """The weight sets of a built-in scorer."""
    return {name for name, weights in CATALOG.items() if scorer in weights.scorers}


def worker_groups(scorers: Mapping[str, ScorerConfig]) -> dict[str, dict[str, ScorerConfig]]:
    """By scorer, the tables of all that share its workers, the one whose workers they are first."""
    groups: dict[str, dict[str, ScorerConfig]] = {}
    hosts = {name: section.worker_of or name for name, section in scorers.items()}
    for name, host in sorted(hosts.items(), key=lambda pair: pair[0] != pair[1]):
        groups.setdefault(host, {})[name] = scorers[name]
    return {name: groups[host] for name, host in hosts.items()}


def load(path: Path | None = None, env: Mapping[str, str] | None = None) -> Config:
    """Read a config file, or the built-in one, and put the environment over it; raises ConfigError.

    Args:
        path: a TOML file; None for the built-in configuration.
        env: environment variables; only those that start with `REWARD_SERVER__` matter.
    """
    source = path or DEFAULT_FILE
    try:
        tables = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise ConfigError(f"cannot read the config file {source}: {reason}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not valid TOML: {error}") from error
    for variable, text in sorted((env or {}).items()):
        if variable.startswith(ENV_PREFIX):
            _override(tables, variable, text)
    where = str(path) if path else "the built-in config"
    try:
        config = Config.model_validate(tables)
        for name, section in config.scorers.items():
            if section.targets:
                read_settings(name, section, env or {})
    except ValidationError as error:
        raise ConfigError(f"{where}: {_one_line(error)}") from error
    except UpstreamConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return config


def select(config: Config, names: list[str]) -> Config:
    """Keep only the named scorers; a built-in scorer without a table gets [defaults].

    Built-in scorers without tables share a worker where they use the same network. Scorers whose
    tables say that they live with one that is left out share the worker of the first of them.
    Raises ConfigError.
    """
    chosen = {}
    for name in names:
        if name in config.scorers:
            chosen[name] = config.scorers[name]
        elif name in SCORERS:
            chosen[name] = config.defaults
        else:
            known = sorted({*config.scorers, *SCORERS})
            raise ConfigError(
                f"--scorers: no scorer called {name!r}{_nearest(name, known)}"
                f" (known: {', '.join(known)})"
            )
    if not chosen:
        raise ConfigError("--scorers: name at least one scorer, separated by commas")
    hosts: dict[str, str] = {}
    for name, section in chosen.items():
        shared = section.worker_of
        if name not in config.scorers:
            shared = next((key for key in _networks(name) if len(CATALOG[key].scorers) > 1), "")
        if shared and shared not in chosen:
            host = hosts.setdefault(shared, name)
            worker_of = "" if host == name else host
            chosen[name] = section.model_copy(update={"worker_of": worker_of})
    return config.model_copy(update={"scorers": chosen})


def on_device(config: Config, device: str) -> Config:
    """Run all scorers of this host on one device, whatever their tables say; raises ConfigError."""
    try:
        checked = ScorerConfig.model_validate({"device": device}).device
    except ValidationError as error:
        raise ConfigError(f"--device: {_one_line(error).partition(': ')[2]}") from error
    moved = {
        name: section if section.targets else section.model_copy(update={"device": checked})
        for name, section in config.scorers.items()
    }
    return config.model_copy(update={"scorers": moved})


def _override(tables: dict[str, Any], variable: str, text: str) -> None:
    keys = variable.removeprefix(ENV_PREFIX).lower().split("__")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    table = tables
    for key in keys[:-1]:
        table = table.setdefault(key, {})
        if not isinstance(table, dict):
            raise ConfigError(f"environment variable {variable}: {key!r} is not a table")
    table[keys[-1]] = value


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if part not in ("str", "list[str]"))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        known = _fields_at(first["loc"][:-1])
        near = _nearest(str(first["loc"][-1]), known)
        return f"unknown key {key!r}{near or f' (known here: {_listed(known)})'}{more}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{key}: {message}{more}" if key else f"{message}{more}"


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    if not location:
        return list(Config.model_fields)
    model = ServerConfig if location[0] == "server" else ScorerConfig
    return list(model.model_fields)


def _listed(names: list[str]) -> str:
    return ", ".join(names)


def _nearest(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f": did you mean {near[0]!r}?" if near else ""
