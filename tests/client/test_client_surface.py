"""What other projects rely on: names, light imports, generated code, early and clear refusals."""

from __future__ import annotations

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from client_servers import grey, grey_items

import reward_client
from reward_client import (
    STATUS,
    Code,
    FakeTransport,
    Image,
    InvalidArgument,
    Item,
    ItemError,
    RewardClient,
    RewardError,
    ScorerSelector,
    error_for,
)
from reward_client._addresses import parse_url
from reward_client.errors import code_from_grpc, code_from_http
from reward_client.images import Encoding

ROOT = Path(__file__).resolve().parents[2]


def test_public_names() -> None:
    assert reward_client.__all__ == [
        "STATUS",
        "AsyncRewardClient",
        "Cancelled",
        "Code",
        "DeadlineExceeded",
        "Encoding",
        "EndpointState",
        "FakeTransport",
        "GenEvalObject",
        "GenEvalSpec",
        "Hedge",
        "Image",
        "Internal",
        "InvalidArgument",
        "Item",
        "ItemError",
        "ItemScores",
        "NotFound",
        "OcrTarget",
        "PermissionDenied",
        "Priority",
        "ReplicaInfo",
        "ResourceExhausted",
        "RewardClient",
        "RewardError",
        "ScoreRequest",
        "ScoreResponse",
        "ScorerInfo",
        "ScorerResult",
        "ScorerSelector",
        "ServerLimits",
        "TlsFiles",
        "Unauthenticated",
        "Unavailable",
        "error_for",
        "make_items",
        "score",
    ]
    assert all(hasattr(reward_client, name) for name in reward_client.__all__)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_importing_and_http_need_neither_torch_nor_grpc() -> None:
    done = run_python(
        "import sys, reward_client, reward_client._wire.convert\n"
        "import reward_client.integrations.flow_grpo\n"
        "reward_client.RewardClient('http://127.0.0.1:1').close()\n"
        "heavy = {'torch', 'grpc', 'diffusers', 'transformers', 'reward_server', 'trainer'}\n"
        "sys.exit(repr(heavy & sys.modules.keys()) if heavy & sys.modules.keys() else 0)\n"
    )
    assert done.returncode == 0, done.stderr


def test_grpc_urls_without_grpcio_say_what_to_install() -> None:
    for client in ("RewardClient", "AsyncRewardClient"):
        done = run_python(
            "import sys\nsys.modules['grpc'] = None\n"
            f"from reward_client import {client}\n{client}('grpc://127.0.0.1:1')\n"
        )
        assert done.returncode == 1
        assert "ModuleNotFoundError" in done.stderr
        assert "pip install flow-reward[grpc]" in done.stderr


def test_codecs_without_their_package_say_what_to_install() -> None:
    for name, encoding in (("qoi", "QOI"), ("zstandard", "RAW_U8_RGB_HWC_ZSTD")):
        done = run_python(
            f"import sys\nsys.modules['{name}'] = None\nimport numpy as np\n"
            "from reward_client import Encoding, codec\n"
            f"codec.encode(np.zeros((2, 2, 3), np.uint8), Encoding.{encoding})\n"
        )
        assert "InvalidArgument" in done.stderr
        assert "pip install flow-reward[codecs]" in done.stderr


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_protos", ROOT / "scripts/gen_protos.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("folder", ["reward", "inference"])
def test_generated_code_belongs_to_the_protos(folder: str) -> None:
    generator = load_generator()
    package = importlib.import_module(generator.PACKAGES[folder])
    assert generator.protos_sha256(folder) == package.PROTOS_SHA256, "run `make protos`"


def test_every_proto_has_a_package() -> None:
    generator = load_generator()
    assert {path.name for path in generator.PROTOS.iterdir()} == set(generator.PACKAGES)


@pytest.mark.parametrize("folder", ["reward", "inference"])
def test_regenerating_changes_nothing(folder: str) -> None:
    generator = load_generator()
    if generator.generator_version() != generator.GENERATOR:
        pytest.skip(f"needs grpcio-tools=={generator.GENERATOR}; the digest was compared")
    assert generator.differences(folder, generator.generate(folder)) == []


def test_every_code_has_one_class_and_distinct_statuses() -> None:
    assert set(STATUS) == set(Code)
    for code in Code:
        assert code_from_http(STATUS[code].http) is code
        assert code_from_grpc(STATUS[code].grpc) is code
        if code is not Code.OK:
            assert type(error_for(code, "x")).code is code
    assert isinstance(error_for(Code.OK, "x"), reward_client.Internal)
    assert code_from_http(400) is code_from_http(415) is Code.INVALID_ARGUMENT
    assert code_from_http(502) is Code.UNAVAILABLE
    assert code_from_http(418) is Code.INVALID_ARGUMENT
    assert code_from_grpc("UNKNOWN") is code_from_grpc("DATA_LOSS") is Code.INTERNAL


@pytest.mark.parametrize("code", [code for code in Code if code is not Code.OK])
def test_errors_survive_pickle(code: Code) -> None:
    error = error_for(code, "why", True, 1.5, {2: ItemError(code, "that one")})
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert isinstance(copy, RewardError)
    assert vars(copy) == vars(error)
    assert str(copy) == "why"


ONE = Item("a", "", (grey(1),))


@pytest.mark.parametrize(
    ("items", "scorers", "says"),
    [
        ([], ["fake"], "batch is empty"),
        ([ONE], [], "no scorer named"),
        ([ONE], "fake", r"write \['fake'\]"),
        ([ONE], [3], "a name or a ScorerSelector, got int"),
        ([ONE], [""], "empty name"),
        ([ONE], ["fake", ScorerSelector("fake", transform="x")], "named twice"),
        ([ONE, ONE], ["fake"], "items 0 and 1 have the same id 'a'"),
        ([Item("", "", ())], ["fake"], "non-empty string"),
        ([Item("a", None, ())], ["fake"], "prompt must be a str"),  # type: ignore[arg-type]  # wrong on purpose
        ([ONE, object()], ["fake"], "must be reward_client.Item, got object"),
        ([object()], ["fake"], r"write score\(images, prompts, scorers="),
        ([Item("a", "", (b"png",))], ["fake"], r"images\[0\]: .*Image.from_array"),  # type: ignore[arg-type]  # wrong on purpose
        ([Item("a", "", grey(1))], ["fake"], "expected a tuple of Image"),  # type: ignore[arg-type]  # wrong on purpose
        (
            [Item("a", "", (), (Image(b"", Encoding.PNG),))],
            ["fake"],
            r"references\[0\]: data must be .* got nothing",
        ),
        (
            [Item("a", "", (Image(b"abc", Encoding.RAW_U8_RGB_HWC, 2, 2),))],
            ["fake"],
            r"item 'a', images\[0\]: raw RGB of 2x2 px has 12 bytes, got 3",
        ),
        ([Item("a", "", (Image(b"abc", Encoding.PNG, -1, 2),))], ["fake"], "not be negative"),
        ([Item("a", "", (), spec={})], ["fake"], "must be one of .*geneval"),
        ([Item("a", "", (), spec_kind="ocr")], ["fake"], "without spec"),
        ([Item("a", "\ud800", ())], ["fake"], "cannot be sent"),
        ([Item("a", "", (Image(b"x", Encoding.PNG, 2**40, 1),))], ["fake"], "cannot be sent"),
    ],
)
def test_wrong_requests_are_refused_before_sending(items: Any, scorers: Any, says: str) -> None:
    transport = FakeTransport(lambda *_: 1.0)
    with (
        RewardClient("fake://", transport=transport) as client,
        pytest.raises(InvalidArgument, match=says),
    ):
        client.score(items, scorers)
    assert transport.requests == []


def test_all_wrong_items_are_listed() -> None:
    items = [*grey_items(3), Item("", "", ()), Item("item-0", "", ())]
    with (
        RewardClient("fake://", transport=FakeTransport(lambda *_: 1.0)) as client,
        pytest.raises(InvalidArgument, match=r"\(and 1 more\)") as caught,
    ):
        client.score(items, ["fake"])
    assert sorted(caught.value.items) == [3, 4]


@pytest.mark.parametrize("limit_s", [0.0, -1.0, float("inf"), float("nan")])
def test_time_limits_are_positive_seconds(limit_s: float) -> None:
    with RewardClient("fake://", transport=FakeTransport(lambda *_: 1.0)) as client:
        with pytest.raises(InvalidArgument, match="deadline_s must be"):
            client.score([ONE], ["fake"], deadline_s=limit_s)
        with pytest.raises(InvalidArgument, match="timeout_s must be"):
            client.wait_ready(timeout_s=limit_s)


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:80", "ftp://x", "grpc://x", "http://", "http://x:y", "grpc://x:99999"]
)
def test_malformed_urls_are_refused(url: str) -> None:
    with pytest.raises(InvalidArgument, match="expected grpc://host:port"):
        RewardClient(url)


def test_urls() -> None:
    endpoint = parse_url("https://[::1]/base/")
    assert (endpoint.target, endpoint.base_path) == ("[::1]:443", "/base")
    assert endpoint.is_tls
    assert endpoint.is_loopback
    assert not endpoint.is_grpc
    assert not parse_url("grpc://rewards.internal:50051").is_loopback
    assert parse_url("grpc://localhost:50051").is_loopback
