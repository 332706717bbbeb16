"""Where weights are looked for, their digests and states; none of it may reach the network."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from file_server import sha256
from sets import BIG, SMALL, weight_set

from reward_server.scorers import golden, golden_file
from reward_server.weights import files, records, store
from reward_server.weights.catalog import CATALOG, WeightFile, hub_files
from reward_server.weights.records import State, Trust
from tests.scorers_golden.weighted import WEIGHTS_FILE, Weighted

FILES = (
    WeightFile("model.pt", "http://source.invalid/model.pt", sha256(BIG)),
    WeightFile("sub/config.json", "http://source.invalid/config.json"),
)
TINY = weight_set(*FILES)


def place(root: Path) -> Path:
    folder = root / "tiny"
    (folder / "sub").mkdir(parents=True)
    (folder / "model.pt").write_bytes(BIG)
    (folder / "sub" / "config.json").write_bytes(SMALL)
    return folder


@pytest.mark.usefixtures("no_network")
def test_with_files_present_nothing_reaches_for_the_network(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CATALOG, "tiny", TINY)
    folder = place(root)
    assert store.require("tiny") == folder
    assert len(store.digest_of(folder / file.path for file in FILES)) == 64
    records.set_states(folder, TINY, rehash=True)
    (root / "weighted").mkdir()
    np.save(root / "weighted" / WEIGHTS_FILE, np.array([0.2, 0.3, 0.4]))
    scorer = Weighted(weights=str(root / "weighted"))
    scorer.load("cpu")
    golden_file.record("weighted", scorer.weights_digest(), golden.measure(scorer))
    scorer.self_test()


@pytest.mark.usefixtures("no_network")
def test_missing_files_are_named_with_what_to_do_and_not_fetched(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CATALOG, "tiny", TINY)
    with pytest.raises(store.MissingWeights, match=r"model\.pt and 1 more not found; run") as one:
        store.require("tiny")
    assert "reward-server models pull tiny" in str(one.value)
    with pytest.raises(store.MissingWeights, match="check the option weights = 'elsewhere'"):
        store.require("tiny", "elsewhere")


def test_the_guard_of_these_tests_does_guard(no_network: None) -> None:
    import httpx

    with pytest.raises(pytest.fail.Exception, match="the network was touched"):
        httpx.get("http://127.0.0.1:9/")


def test_states_of_files_and_sets(root: Path) -> None:
    folder = root / "tiny"
    assert records.overall(records.set_states(folder, TINY)) is State.ABSENT
    place(root)
    states = records.set_states(folder, TINY)
    assert states == {"model.pt": State.COMPLETE, "sub/config.json": State.UNRECORDED}
    assert records.overall(states) is State.UNRECORDED
    config = records.of(folder / "sub" / "config.json", sha256(SMALL), FILES[1], Trust.FIRST_USE)
    records.write(folder, {"sub/config.json": config})
    assert records.overall(records.set_states(folder, TINY)) is State.COMPLETE
    (folder / "sub" / "config.json").write_bytes(SMALL + b" ")
    assert records.overall(records.set_states(folder, TINY)) is State.CORRUPTED
    (folder / "sub" / "config.json").unlink()
    assert records.overall(records.set_states(folder, TINY)) is State.PARTIAL


def test_damage_that_keeps_size_and_time_is_found_by_hashing(root: Path) -> None:
    folder = place(root)
    path = folder / "model.pt"
    records.write(folder, {"model.pt": records.of(path, sha256(BIG), FILES[0], Trust.PUBLISHED)})
    stat = path.stat()
    path.write_bytes(b"?" + BIG[1:])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert records.set_states(folder, TINY)["model.pt"] is State.COMPLETE
    assert records.set_states(folder, TINY, rehash=True)["model.pt"] is State.CORRUPTED


def test_a_file_recorded_for_another_source_is_outdated(root: Path) -> None:
    folder, old = place(root), WeightFile("sub/config.json", "http://source.invalid/older.json")
    config = records.of(folder / "sub" / "config.json", sha256(SMALL), old, Trust.SOURCE)
    records.write(folder, {"sub/config.json": config})
    states = records.set_states(folder, TINY)
    assert states["sub/config.json"] is State.OUTDATED
    assert records.overall(states) is State.OUTDATED


def test_digests_depend_on_names_and_contents_not_on_folders_or_order(tmp_path: Path) -> None:
    paths = [tmp_path / folder / "config.json" for folder in ("a", "b")]
    for path, text in zip(paths, ("one", "two"), strict=True):
        path.parent.mkdir()
        path.write_text(text)
    assert store.digest_of(paths) == store.digest_of(paths[::-1])
    moved = tmp_path / "c" / "config.json"
    moved.parent.mkdir()
    moved.write_text("one")
    assert store.digest_of([moved]) == store.digest_of(paths[:1])
    assert store.digest_of([moved]) != store.digest_of(paths[1:])
    renamed = moved.rename(moved.with_name("other.json"))
    assert store.digest_of([renamed]) != store.digest_of(paths[:1])


def test_files_of_the_hub_have_a_revision() -> None:
    (file,) = hub_files("org/model", "abc123", "sub/model.safetensors")
    assert file.url == "https://huggingface.co/org/model/resolve/abc123/sub/model.safetensors"


@pytest.mark.parametrize("name", sorted(CATALOG))
def test_the_catalogue_is_well_formed(name: str) -> None:
    weights = CATALOG[name]
    assert weights.name == name
    assert weights.files
    assert weights.scorers
    assert weights.license
    assert weights.size_gb > 0
    paths = [file.path for file in weights.files]
    assert len(set(paths)) == len(paths)
    for file in weights.files:
        assert file.url.startswith("https://")
        assert len(file.sha256) in (0, 64)
        assert ".." not in file.path.split("/")
        assert not file.path.startswith("/")
        assert file.path != records.NAME


def test_a_json_file_is_replaced_as_a_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.json"
    files.write_json(path, {"a": 1})
    before = path.read_text()
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(path, {"a": float("nan")})
    assert path.read_text() == before
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]
