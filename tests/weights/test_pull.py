"""Pulling weight files over a real connection: checksums, mirrors, tokens, records."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest
from file_server import FileServer, Served, serving, sha256
from pulling import run
from sets import BIG, QUICK, SMALL, Report, served_set, weight_set

from reward_server.weights import files, records
from reward_server.weights.catalog import WeightFile
from reward_server.weights.pull import PullError, pull, size_text
from reward_server.weights.records import Trust
from reward_server.weights.sources import Sources


def test_everything_arrives_is_checked_and_recorded(server: FileServer, root: Path) -> None:
    weights = served_set(server, sha256(BIG), model=Served(BIG), config=Served(SMALL))
    report = run(weights, root)
    assert (root / "tiny" / "model.pt").read_bytes() == BIG
    assert (root / "tiny" / "sub" / "config.json").read_bytes() == SMALL
    found = records.read(root / "tiny")
    assert found["model.pt"].trust is Trust.PUBLISHED
    assert found["sub/config.json"].trust is Trust.FIRST_USE
    assert found["sub/config.json"].sha256 == sha256(SMALL)
    assert any("model.pt" in line and "as published" in line for line in report.lines)
    assert any("config.json" in line and "trusted on first use" in line for line in report.lines)
    assert not [p for p in root.rglob("*") if ".part" in p.name]
    steps = [done for what, done, _ in report.moves if what == "tiny/model.pt"]
    assert steps == sorted(steps)
    assert steps[-1] == len(BIG)
    server.requests.clear()
    assert run(weights, root).lines == [f"tiny: complete in {root / 'tiny'}"]
    assert not server.requests


@pytest.mark.parametrize("where", ["etag", "get only"])
def test_a_checksum_that_the_source_states_is_held_against_the_bytes(
    server: FileServer, root: Path, where: str
) -> None:
    status = 405 if where == "get only" else 200
    served = Served(BIG, etag=f'"{sha256(BIG)}"', head_status=status)
    weights = served_set(server, model=served)
    run(weights, root)
    assert records.read(root / "tiny")["model.pt"].trust is Trust.SOURCE
    served.content = b"x" + BIG[1:]
    (root / "tiny" / "model.pt").unlink()
    (root / "tiny" / records.NAME).unlink()
    with pytest.raises(PullError, match=r"tiny/model\.pt: what came has sha256 .* nothing of it"):
        run(weights, root)
    assert not [p for p in (root / "tiny").iterdir() if p.name.startswith("model.pt")]


def test_a_published_checksum_wins_and_a_wrong_source_is_not_even_fetched(
    server: FileServer, root: Path
) -> None:
    weights = served_set(server, sha256(BIG), model=Served(b"other", etag=f'"{sha256(b"other")}"'))
    with pytest.raises(PullError, match=r"not fetched, the source has sha256 .*, published: "):
        run(weights, root)
    assert not server.gets("/model.pt")


def test_what_was_trusted_first_has_to_come_again(server: FileServer, root: Path) -> None:
    weights = served_set(server, model=Served(BIG))
    run(weights, root)
    (root / "tiny" / "model.pt").unlink()
    server.files["/model.pt"].content = b"another version"
    with pytest.raises(PullError, match=r"should have .* \(first use\)"):
        run(weights, root)
    server.files["/model.pt"].content = BIG
    run(weights, root)
    assert (root / "tiny" / "model.pt").read_bytes() == BIG


def test_one_file_that_fails_does_not_cost_the_other(server: FileServer, root: Path) -> None:
    broken = Served(BIG, failures=[(500, {})] * 100)
    with pytest.raises(PullError, match=r"model\.pt"):
        run(served_set(server, model=broken, config=Served(SMALL)), root)
    assert (root / "tiny" / "sub" / "config.json").read_bytes() == SMALL


def test_no_room_is_said_before_anything_is_fetched(server: FileServer, root: Path) -> None:
    weights = served_set(server, model=Served(BIG, size=10**18), config=Served(SMALL))
    with pytest.raises(PullError, match=r"1000000000\.0 GB to fetch and .* free; make room"):
        run(weights, root)
    assert not [r for r in server.requests if r.method == "GET"]


@pytest.mark.parametrize("kind", ["url", "folder"])
def test_a_mirror_hands_on_the_checksums_it_recorded(
    server: FileServer, root: Path, tmp_path: Path, kind: str
) -> None:
    weights = served_set(server, model=Served(BIG), config=Served(SMALL))
    run(weights, tmp_path / "first")
    copy = tmp_path / "first" / "tiny"
    with serving() as mirror:
        for path in ("model.pt", "sub/config.json", records.NAME):
            mirror.files[f"/base/tiny/{path}"] = Served((copy / path).read_bytes())
        address = mirror.url("/base/") if kind == "url" else str(tmp_path / "first")
        server.requests.clear()
        report = run(weights, root, Sources(mirror=address), offline=kind == "folder")
        assert "as the mirror recorded" in report.text
        assert (root / "tiny" / "model.pt").read_bytes() == BIG
        assert not server.requests
        # A mirror whose bytes are not those it recorded.
        mirror.files["/base/tiny/model.pt"].content = b"?" * len(BIG)
        (copy / "model.pt").write_bytes(b"?" * len(BIG))
        with pytest.raises(PullError, match=r"model\.pt: what came has sha256"):
            run(weights, tmp_path / "second", Sources(mirror=address))


def test_a_mirror_that_lacks_a_file_names_it(root: Path, tmp_path: Path) -> None:
    weights = weight_set(WeightFile("model.pt", "http://source.invalid/model.pt"))
    with pytest.raises(PullError, match=r"tiny/model\.pt: .*mirror/tiny/model\.pt does not exist"):
        run(weights, root, Sources(mirror=str(tmp_path / "mirror")))


def test_a_proxy_of_the_environment_is_used(
    server: FileServer, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", server.url())
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy", raising=False)
    server.files["http://weights.invalid/model.pt"] = Served(BIG)
    run(weight_set(WeightFile("model.pt", "http://weights.invalid/model.pt")), root)
    assert (root / "tiny" / "model.pt").read_bytes() == BIG


@pytest.mark.usefixtures("no_network")
def test_offline_names_what_is_missing_and_touches_no_network(root: Path) -> None:
    files_ = [WeightFile(f"{i}.pt", f"http://source.invalid/{i}.pt") for i in range(3)]
    weights = weight_set(*files_)
    (root / "tiny").mkdir(parents=True)
    (root / "tiny" / "1.pt").write_bytes(b"one")
    with pytest.raises(PullError, match="these files are not here") as caught:
        run(weights, root, offline=True)
    assert "tiny/0.pt (absent), from http://source.invalid/0.pt" in str(caught.value)
    assert "1.pt" not in str(caught.value)
    for name in ("0.pt", "2.pt"):
        (root / "tiny" / name).write_bytes(b"two")
    report = run(weights, root, offline=True)
    assert sum("found here; sha256" in line for line in report.lines) == 3
    assert records.set_states(root / "tiny", weights, rehash=True).keys() == {
        "0.pt",
        "1.pt",
        "2.pt",
    }
    assert run(weights, root, offline=True).lines == [f"tiny: complete in {root / 'tiny'}"]


def test_files_found_here_are_compared_with_what_the_source_states(
    server: FileServer, root: Path
) -> None:
    weights = served_set(server, model=Served(BIG, etag=f'"{sha256(BIG)}"'))
    (root / "tiny").mkdir(parents=True)
    (root / "tiny" / "model.pt").write_bytes(BIG)
    assert "found here; sha256" in run(weights, root).text
    assert not server.gets("/model.pt")
    (root / "tiny" / records.NAME).unlink()
    (root / "tiny" / "model.pt").write_bytes(b"something else")
    assert "what lies here is another version" in run(weights, root).text
    assert (root / "tiny" / "model.pt").read_bytes() == BIG


@pytest.mark.parametrize("states_it", [True, False])
def test_files_of_an_older_catalogue_are_not_taken_for_the_new_ones(
    server: FileServer, root: Path, states_it: bool
) -> None:
    etag = f'"{sha256(BIG)}"' if states_it else "content"
    old = served_set(server, model=Served(BIG, etag=etag))
    run(old, root)
    server.files["/v2/model.pt"] = Served(BIG, etag=etag)
    new = weight_set(WeightFile("model.pt", server.url("/v2/model.pt")))
    with pytest.raises(PullError, match=r"tiny/model\.pt \(outdated\)"):
        run(new, root, offline=True)
    report = run(new, root)
    assert ("found here" in report.text) is states_it
    assert len(server.gets("/v2/model.pt")) == (0 if states_it else 1)
    server.files["/v3/model.pt"] = Served(SMALL)
    run(weight_set(WeightFile("model.pt", server.url("/v3/model.pt"))), root)
    assert (root / "tiny" / "model.pt").read_bytes() == SMALL


def test_damage_is_repaired(server: FileServer, root: Path) -> None:
    weights = served_set(server, model=Served(BIG))
    run(weights, root)
    (root / "tiny" / "model.pt").write_bytes(b"?" * len(BIG))
    assert "not what its checksum says" in run(weights, root).text
    assert (root / "tiny" / "model.pt").read_bytes() == BIG


def test_two_pulls_at_once_fetch_once(server: FileServer, root: Path) -> None:
    weights = served_set(server, model=Served(BIG), config=Served(SMALL))
    reports, errors = [Report(), Report()], []

    def work(report: Report) -> None:
        try:
            pull([weights], root, QUICK, report)
        except Exception as error:
            errors.append(error)

    with files.locked(root / ".tiny.lock"):
        threads = [threading.Thread(target=work, args=(report,)) for report in reports]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + 10
        while not all("waiting for it" in report.text for report in reports):
            assert time.monotonic() < deadline
            time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert not errors
    assert len(server.gets("/model.pt")) == len(server.gets("/sub/config.json")) == 1


def test_damaged_records_are_one_line(server: FileServer, root: Path) -> None:
    weights = served_set(server, model=Served(BIG))
    (root / "tiny").mkdir(parents=True)
    for text in ("{", "[]", '{"files": {"model.pt": {}}}'):
        (root / "tiny" / records.NAME).write_text(text)
        with pytest.raises(PullError, match="delete it and pull the set again") as caught:
            run(weights, root)
        assert "\n" not in str(caught.value)


def test_records_survive_a_round_trip(server: FileServer, root: Path) -> None:
    run(served_set(server, model=Served(BIG)), root)
    text = (root / "tiny" / records.NAME).read_text()
    assert records.parse(text) == records.read(root / "tiny")
    assert json.loads(text)["files"]["model.pt"]["trust"] == "first use"


def test_sizes_are_readable() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 1_234_567, 3.95e9, 2.5e12)] == [
        "0 B", "999 B", "1.0 kB", "1.2 MB", "4.0 GB", "2500.0 GB",
    ]  # fmt: skip
