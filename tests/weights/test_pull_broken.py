"""Pulling weight files over a connection that breaks: parts, ranges, retries."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from file_server import FileServer, Served, serving, sha256
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pulling import leave_part, run
from sets import BIG, QUICK, SMALL, served_set, weight_set

from reward_server.weights.catalog import WeightFile
from reward_server.weights.pull import PullError


def test_a_left_over_is_continued_if_a_checksum_tells(server: FileServer, root: Path) -> None:
    leave_part(root, BIG[:500_000])
    run(served_set(server, sha256(BIG), model=Served(BIG)), root)
    (request,) = server.gets("/model.pt")
    assert request.range == "bytes=500000-"
    assert (root / "tiny" / "model.pt").read_bytes() == BIG


def test_without_a_checksum_a_left_over_is_not_continued(server: FileServer, root: Path) -> None:
    leave_part(root, b"?" * 500_000)
    run(served_set(server, model=Served(BIG, cuts=[300_000])), root)
    assert [r.range for r in server.gets("/model.pt")] == ["", ""]
    assert (root / "tiny" / "model.pt").read_bytes() == BIG


def test_a_server_without_ranges_sends_everything_again(server: FileServer, root: Path) -> None:
    served = Served(BIG, knows_ranges=False, cuts=[300_000])
    run(served_set(server, sha256(BIG), model=served), root)
    assert [r.range for r in server.gets("/model.pt")] == ["", "bytes=300000-"]
    assert (root / "tiny" / "model.pt").read_bytes() == BIG


@pytest.mark.parametrize(
    "left", [b"?" * 1000, BIG + b"more", b"?" * len(BIG)], ids=["short", "long", "whole"]
)
def test_a_damaged_left_over_is_dropped_once(server: FileServer, root: Path, left: bytes) -> None:
    leave_part(root, left)
    report = run(served_set(server, sha256(BIG), model=Served(BIG)), root)
    assert "what an earlier pull left is damaged" in report.text
    assert (root / "tiny" / "model.pt").read_bytes() == BIG


def test_a_complete_left_over_needs_no_bytes(server: FileServer, root: Path) -> None:
    leave_part(root, BIG)
    run(served_set(server, sha256(BIG), model=Served(BIG)), root)
    assert [r.range for r in server.gets("/model.pt")] == [f"bytes={len(BIG)}-"]
    assert (root / "tiny" / "model.pt").read_bytes() == BIG


def test_a_line_that_keeps_breaking_is_followed_as_long_as_bytes_come(
    server: FileServer, root: Path
) -> None:
    served = Served(BIG, cuts=[100_000] * 7)  # more than the attempts without progress
    report = run(served_set(server, sha256(BIG), model=served), root)
    assert len(server.gets("/model.pt")) == 8
    assert (root / "tiny" / "model.pt").read_bytes() == BIG
    assert sum("trying again" in line for line in report.lines) == 7


@pytest.mark.parametrize("status", [500, 503, 429])
def test_errors_that_may_pass_are_retried_a_bounded_number_of_times(
    server: FileServer, root: Path, status: int
) -> None:
    served = Served(BIG, failures=[(status, {})] * 3)
    run(served_set(server, model=served), root)
    (root / "tiny" / "model.pt").unlink()
    served.failures = [(status, {})] * 100
    server.requests.clear()
    with pytest.raises(PullError, match=rf"tiny/model\.pt: HTTP {status}"):
        run(served_set(server, model=served), root)
    assert len(server.gets("/model.pt")) == QUICK.attempts


def test_retry_after_is_waited_for_within_reason(server: FileServer, root: Path) -> None:
    served = Served(SMALL, failures=[(429, {"Retry-After": "1"})])
    begin = time.monotonic()
    run(served_set(server, config=served), root)
    assert time.monotonic() - begin >= 1.0
    (root / "tiny" / "sub" / "config.json").unlink()
    served.failures = [(503, {"Retry-After": "3600"})]
    with pytest.raises(PullError, match="asking to come back in 3600 s"):
        run(served_set(server, config=served), root)


@pytest.mark.parametrize(
    ("status", "says"), [(404, "does not exist"), (401, "refuses"), (403, "refuses")]
)
def test_what_will_not_pass_is_not_retried(
    server: FileServer, root: Path, status: int, says: str
) -> None:
    served = Served(SMALL, failures=[(status, {})] * 9, head_status=405)
    with pytest.raises(PullError, match=says):
        run(served_set(server, config=served), root)
    assert len(server.gets("/sub/config.json")) == 1


def test_nobody_there_is_one_line(root: Path) -> None:
    with serving() as gone:
        url = gone.url("/model.pt")
    with pytest.raises(PullError, match="ConnectError"):
        run(weight_set(WeightFile("model.pt", url)), root)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    cuts=st.lists(st.integers(0, 5000), max_size=4),
    knows_ranges=st.booleans(),
    is_published=st.booleans(),
)
def test_whatever_breaks_the_bytes_are_right_or_absent(
    tmp_path_factory: pytest.TempPathFactory,
    cuts: list[int],
    knows_ranges: bool,
    is_published: bool,
) -> None:
    content, root = bytes(range(250)) * 20, tmp_path_factory.mktemp("models")
    with serving() as server:
        served = Served(content, knows_ranges=knows_ranges, cuts=list(cuts))
        weights = served_set(server, sha256(content) if is_published else "", model=served)
        try:
            run(weights, root)
        except PullError:
            assert not (root / "tiny" / "model.pt").exists()
        else:
            assert (root / "tiny" / "model.pt").read_bytes() == content
