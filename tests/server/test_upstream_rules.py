"""The pure rules of upstream scorers: targets, keys, choice, identity, cutting."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reward_client.errors import (
    Code,
    ItemError,
    Unavailable,
)
from reward_client.images import (
    Encoding,
    Image,
)
from reward_client.types import (
    Item,
    ScoreRequest,
    ScorerSelector,
)
from reward_server import config as configuration
from reward_server.backend import Order
from reward_server.config import ConfigError
from reward_server.upstream.choice import Identity, choose, served_identity
from reward_server.upstream.hops import MAX_HOPS, check_no_loop, hop_headers, read_hop
from reward_server.upstream.parts import MAX_PART_BYTES, cut
from reward_server.upstream.targets import parse_target


@dataclass(frozen=True)
class Endpoint:
    name: int
    outstanding: int


BYTES = {size: bytes(size) for size in (0, 1, 5 << 20, MAX_PART_BYTES, 20 << 20)}


def identity(fingerprint: str) -> Identity:
    return Identity("1", fingerprint, ("image",), ("raw",), "raw", (0.0, 1.0))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 5), min_size=1), st.integers(0, 1000))
def test_the_least_loaded_is_chosen_and_equals_take_turns(loads: list[int], turn: int) -> None:
    endpoints = [Endpoint(i, load) for i, load in enumerate(loads)]
    chosen = choose(endpoints, "least_loaded", turn)
    assert chosen is not None
    assert chosen.outstanding == min(loads)
    best = [endpoint for endpoint in endpoints if endpoint.outstanding == min(loads)]
    taken = {choose(endpoints, "least_loaded", turn + i) for i in range(len(endpoints))}
    assert taken == set(best)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 9), st.integers(0, 1000), st.integers(1, 5))
def test_round_robin_treats_all_alike(n: int, turn: int, rounds: int) -> None:
    endpoints = [Endpoint(i, 7 * i) for i in range(n)]
    counts = Counter(choose(endpoints, "round_robin", turn + i) for i in range(n * rounds))
    assert set(counts.values()) == {rounds}


def test_nobody_is_chosen_from_nobody() -> None:
    assert choose([], "least_loaded", 3) is None


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


def order(sizes: list[int], broken: set[int], scorers: tuple[str, ...] = ("ocr",)) -> Order:
    items = tuple(
        Item(str(i), "", (Image(BYTES[size], Encoding.PNG),)) for i, size in enumerate(sizes)
    )
    selectors = tuple(ScorerSelector(name) for name in scorers)
    errors = {i: ItemError(Code.INVALID_ARGUMENT, "bad") for i in broken}
    return Order(ScoreRequest("id", selectors, items), selectors[0], {}, errors, "", 0.0)


@settings(deadline=None, max_examples=50)
@given(st.data(), st.integers(1, 7))
def test_parts_hold_every_good_item_once_in_order_within_the_limits(
    data: st.DataObject, max_items: int
) -> None:
    sizes = data.draw(st.lists(st.sampled_from(sorted(BYTES))))
    broken = data.draw(st.sets(st.integers(0, max(0, len(sizes) - 1))))
    parts = cut(order(sizes, broken), max_items)
    assert [i for part in parts for i in part.indices] == [
        i for i in range(len(sizes)) if i not in broken
    ]
    assert len({part.request_id for part in parts}) == len(parts)
    for part in parts:
        assert 1 <= len(part.indices) <= max_items
        size = sum(sizes[i] for i in part.indices)
        assert size <= MAX_PART_BYTES or len(part.indices) == 1


def test_a_whole_request_keeps_its_id_and_others_get_one_of_their_own() -> None:
    (whole,) = cut(order([1, 1], set()), 16)
    assert whole.request_id == "id"
    (one_of_two,) = cut(order([1, 1], set(), ("ocr", "geneval")), 16)
    assert one_of_two.request_id == "id/ocr"
    assert [part.request_id for part in cut(order([1, 1], set()), 1)] == ["id/0", "id/1"]
    assert cut(order([1], {0}), 16) == []


@pytest.mark.parametrize(
    "text", ["ocr", "ocr:", ":1", "ocr:0", "ocr:70000", "dns://ocr:1", "a b:1"]
)
def test_a_target_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT or dns:///HOST:PORT"):
        parse_target(text)


def test_targets_are_read() -> None:
    assert parse_target("dns:///ocr:50051").every_address
    assert parse_target("[::1]:80").host == "::1"
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
