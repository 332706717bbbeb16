"""The pure rules of upstream scorers: targets, keys, identity, hops."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_client.errors import (
    Unavailable,
)
from reward_server import config as configuration
from reward_server.config import ConfigError
from reward_server.upstream.hops import MAX_HOPS, check_no_loop, hop_headers, read_hop
from reward_server.upstream.identity import Identity, served_identity
from reward_server.upstream.settings import parse_target


def identity(fingerprint: str) -> Identity:
    return Identity("1", fingerprint, ("image",), ("raw",), "raw", (0.0, 1.0))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from("abc")), st.sampled_from(["a", "b", "c", None]))
def test_the_majority_is_served_and_a_tie_changes_nothing(
    ready: list[str], current: str | None
) -> None:
    now = identity(current) if current else None
    served = served_identity([identity(f) for f in ready], now)
    if not ready:
        assert served == now
        return
    assert served is not None
    counts = Counter(ready)
    assert counts[served.fingerprint] == max(counts.values())
    if current and counts[current] == max(counts.values()):
        assert served == now


@pytest.mark.parametrize(
    "text", ["ocr", "ocr:", ":1", "ocr:0", "ocr:70000", "dns://ocr:1", "a b:1"]
)
def test_a_target_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT or dns:///HOST:PORT"):
        parse_target(text)


def test_targets_are_read() -> None:
    assert parse_target("dns:///ocr:50051").every_address
    address = parse_target("[::1]:80", is_tls=True).address
    assert address
    assert (address.host, address.target, address.url) == ("::1", "[::1]:80", "grpcs://[::1]:80")
    assert not parse_target("10.0.0.7:50051").every_address


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ('upstream = "ocr"', "is not HOST:PORT"),
        ('upstream = "ocr:1"\ndevice = "cuda:0"', "scorers.ocr.device says how to run"),
        ('upstream = "ocr:1"\nupstream_policy = "random"', "least_loaded"),
        ('upstream = "ocr:1"\nupstream_polcy = "x"', "did you mean 'upstream_policy'"),
        ('upstream = "ocr:1"\nupstream_api_key_env = "NO_SUCH_KEY"', "NO_SUCH_KEY is not set"),
        ('upstream = "ocr:1"\nupstream_ca_file = "/no/such.pem"', "cannot read /no/such.pem"),
        ('upstream_scorer = "x"', "name an `upstream`"),
        ("upstream = []", "name an `upstream`"),
    ],
)
def test_wrong_keys_are_one_line(tmp_path: Path, table: str, complaint: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"[scorers.ocr]\n{table}\n")
    with pytest.raises(ConfigError, match=complaint) as caught:
        configuration.load(file, {})
    assert "\n" not in str(caught.value)


def test_any_name_will_do_for_an_upstream_scorer(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[scorers.my_ocr]\nupstream = "ocr:1"\nupstream_scorer = "ocr"\n')
    assert configuration.load(file, {}).scorers["my_ocr"].targets == ("ocr:1",)


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=200), st.lists(st.uuids().map(lambda u: u.hex), max_size=9))
def test_hops_survive_headers_and_name_the_caller_first(client: str, via: list[str]) -> None:
    headers = hop_headers(client, tuple(via), "me")
    assert all(value.isascii() and value.isprintable() for _, value in headers)
    hop = read_hop(headers, "gateway")
    assert hop.via == (*via, "me")
    assert hop.client == "gateway" or hop.client.startswith("gateway/")
    # Without a gateway in between, nobody can name himself.
    assert read_hop([headers[1]], "caller").client == "caller"


def test_loops_and_long_ways_are_refused() -> None:
    check_no_loop(("a", "b"), "c")
    for via in (("a", "c"), tuple("abdefghij"[:MAX_HOPS])):
        with pytest.raises(Unavailable) as caught:
            check_no_loop(via, "c")
        assert not caught.value.retryable
