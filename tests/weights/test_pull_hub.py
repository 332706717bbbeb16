"""Pulling from the hub, by huggingface_hub itself, from a server that answers as the hub does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from file_server import FileServer, Served, serving, sha256
from pulling import run
from sets import BIG, weight_set

from reward_server.weights import records
from reward_server.weights.catalog import CATALOG, HUB, WeightFile, WeightSet
from reward_server.weights.pull import PullError
from reward_server.weights.records import Trust
from reward_server.weights.sources import Sources

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PATH = f"/org/model/resolve/{COMMIT}/model.pt"


def hub_set() -> WeightSet:
    return weight_set(WeightFile("model.pt", HUB + PATH, hub=("org/model", COMMIT)))


def on_hub(content: bytes, stated: bytes = b"", more: dict[str, str] | None = None) -> Served:
    checksum = sha256(stated or content)
    headers = {"X-Repo-Commit": COMMIT, "X-Linked-Size": str(len(content)), **(more or {})}
    return Served(content, etag=f'"{checksum}"', headers=headers)


def test_a_file_arrives_is_checked_and_recorded(server: FileServer, root: Path) -> None:
    server.files[PATH] = on_hub(BIG)
    report = run(hub_set(), root, Sources(hub=server.url()))
    assert (root / "tiny" / "model.pt").read_bytes() == BIG
    assert records.read(root / "tiny")["model.pt"].trust is Trust.SOURCE
    assert report.moves[-1] == ("tiny/model.pt", len(BIG), len(BIG))
    assert {p.name for p in (root / "tiny").iterdir()} == {"model.pt", records.NAME}
    server.requests.clear()
    run(hub_set(), root, Sources(hub=server.url()))
    assert not server.requests


def test_what_is_not_what_the_hub_states_is_not_kept(server: FileServer, root: Path) -> None:
    server.files[PATH] = on_hub(BIG, stated=b"something else")
    with pytest.raises(PullError, match=r"what came has sha256 .* nothing of it was kept"):
        run(hub_set(), root, Sources(hub=server.url()))
    assert not list((root / "tiny").iterdir())


def test_the_token_goes_to_the_hub_alone(server: FileServer, root: Path) -> None:
    with serving() as store:
        store.files["/blob"] = Served(BIG)
        served = on_hub(BIG, more={"X-Linked-Etag": f'"{sha256(BIG)}"'})
        served.redirect = store.url("/blob", "localhost")
        server.files[PATH] = served
        run(hub_set(), root, Sources(token="hf_secret", hub=server.url()))
        assert {r.headers.get("Authorization") for r in server.requests} == {"Bearer hf_secret"}
        assert store.gets("/blob")
        assert not [r for r in store.requests if "Authorization" in r.headers]
        # A mirror gets none, nor does any other source.
        store.files["/mirror/tiny/model.pt"] = Served(BIG)
        (root / "tiny" / "model.pt").unlink()
        run(hub_set(), root, Sources(mirror=store.url("/mirror"), token="hf_secret"))
        assert store.gets("/mirror/tiny/model.pt")
        assert not [r for r in store.requests if "Authorization" in r.headers]


def test_a_licence_that_was_not_accepted_is_one_line(server: FileServer, root: Path) -> None:
    gated = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted."}
    server.files[PATH] = Served(BIG, head_status=403, headers=gated)
    with pytest.raises(PullError, match=r"tiny/model\.pt: .* HF_TOKEN") as caught:
        run(hub_set(), root, Sources(hub=server.url()))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_one_line(server: FileServer, root: Path) -> None:
    missing = {"X-Error-Code": "EntryNotFound"}
    server.files[PATH] = Served(b"", head_status=404, headers=missing)
    with pytest.raises(PullError, match="the hub has no such file at this revision"):
        run(hub_set(), root, Sources(hub=server.url()))


def test_every_file_of_the_hub_is_of_one_commit() -> None:
    for weights in CATALOG.values():
        for file in weights.files:
            if file.url.startswith(HUB):
                assert file.hub, file.url
                assert re.fullmatch(r"[0-9a-f]{40}", file.hub[1]), file.url
                assert file.url == f"{HUB}/{file.hub[0]}/resolve/{file.hub[1]}/{file.path}"
