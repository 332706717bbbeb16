"""`data pull` against a real HTTP server: resumed, retried, checked, and clear where it fails."""

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import stamina

from prompt_sets.download import pull
from prompt_sets.official import OfficialFile, OfficialSet, catalog, names_with
from tests.weights.file_server import FileServer, Served, serving
from trainer.errors import DataError

ROOT = Path(__file__).parents[2]
CONTENT = b"".join(f"a photo of a thing, number {n}\n".encode() for n in range(5000))


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving() as running:
        yield running


def official(server: FileServer, content: bytes = CONTENT, name: str = "train") -> OfficialFile:
    path = f"/{name}.txt"
    server.files.setdefault(path, Served(content))
    sha = hashlib.sha256(content).hexdigest()
    return OfficialFile(f"set/{name}.txt", server.url(path), len(content), sha)


def fetch(root: Path, *files: OfficialFile) -> list[str]:
    lines: list[str] = []
    with stamina.set_testing(True, attempts=3):  # which also skips the waits
        pull([OfficialSet("set", "a set", files)], root, lines.append)
    return lines


def test_a_file_is_fetched_once_and_checked_again(tmp_path: Path, server: FileServer) -> None:
    file = official(server)
    assert f"{len(CONTENT):,} bytes" in fetch(tmp_path, file)[0]
    assert (tmp_path / file.path).read_bytes() == CONTENT
    assert "there already" in fetch(tmp_path, file)[0]
    assert len(server.gets("/train.txt")) == 1
    (tmp_path / file.path).write_bytes(CONTENT[:-1])  # changed by hand: fetched again
    fetch(tmp_path, file)
    assert (tmp_path / file.path).read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "set").iterdir()] == ["train.txt"]


def test_a_broken_download_continues_where_it_broke_off(tmp_path: Path, server: FileServer) -> None:
    file = official(server)
    server.files["/train.txt"].cuts = [10_000, 20_000]
    fetch(tmp_path, file)
    assert (tmp_path / file.path).read_bytes() == CONTENT
    assert [got.range for got in server.gets("/train.txt")] == ["", "bytes=10000-", "bytes=30000-"]


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("knows_ranges", [False, True])
def test_what_an_earlier_pull_left_is_used_if_it_is_right(
    tmp_path: Path, server: FileServer, damaged: bool, knows_ranges: bool
) -> None:
    file = official(server)
    server.files["/train.txt"].knows_ranges = knows_ranges
    (tmp_path / "set").mkdir()
    left = b"x" * 5000 if damaged else CONTENT[:5000]
    (tmp_path / "set" / "train.txt.part").write_bytes(left)
    fetch(tmp_path, file)
    assert (tmp_path / file.path).read_bytes() == CONTENT
    expected = ["bytes=5000-", ""] if damaged and knows_ranges else ["bytes=5000-"]
    assert [got.range for got in server.gets("/train.txt")] == expected


def test_passing_troubles_are_waited_out(tmp_path: Path, server: FileServer) -> None:
    file = official(server)
    server.files["/train.txt"].failures = [(503, {}), (429, {})]
    fetch(tmp_path, file)
    assert (tmp_path / file.path).read_bytes() == CONTENT


def test_a_size_and_checksum_of_git_are_enough(tmp_path: Path, server: FileServer) -> None:
    blob = hashlib.sha1(f"blob {len(CONTENT)}\0".encode() + CONTENT).hexdigest()
    official(server)
    file = OfficialFile("set/train.txt", server.url("/train.txt"), git_blob=blob)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.txt.part").write_bytes(CONTENT)  # whole, but never renamed
    fetch(tmp_path, file)
    assert (tmp_path / file.path).read_bytes() == CONTENT
    server.files["/train.txt"] = Served(CONTENT + b"!")
    (tmp_path / file.path).unlink()
    with pytest.raises(DataError, match="is not what was published"):
        fetch(tmp_path, file)


def test_a_wrong_content_is_not_kept(tmp_path: Path, server: FileServer) -> None:
    file = official(server)
    server.files["/train.txt"] = Served(CONTENT.replace(b"thing", b"THING"))
    with pytest.raises(DataError, match=f"not what was published .*{file.sha256}"):
        fetch(tmp_path, file)
    assert list((tmp_path / "set").iterdir()) == []


def test_files_before_the_failure_stay(tmp_path: Path, server: FileServer) -> None:
    first, gone = official(server, b"a\n", "first"), official(server, b"b\n", "gone")
    del server.files["/gone.txt"]
    with pytest.raises(DataError, match=r"gone\.txt answers HTTP 404"):
        fetch(tmp_path, first, gone)
    assert (tmp_path / first.path).read_bytes() == b"a\n"


def test_a_server_that_never_finishes_says_what_to_fetch_elsewhere(
    tmp_path: Path, server: FileServer
) -> None:
    file, other = official(server), official(server, b"b\n", "other")
    server.files["/train.txt"].failures = [(503, {})] * 3
    with pytest.raises(DataError, match="HTTP 503") as caught:
        fetch(tmp_path, file, other)
    for one in (file, other):
        assert f"{one.url}\n    -> {tmp_path / one.path} (sha256 {one.sha256})" in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_one_line(tmp_path: Path, server: FileServer) -> None:
    file = official(server)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.txt.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match="no space left on the disk; make room"):
        fetch(tmp_path, file)


def test_one_pull_at_a_time(tmp_path: Path, server: FileServer) -> None:
    file = official(server)
    (tmp_path / "set").mkdir()
    with (tmp_path / "set" / "train.txt.part").open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another pull is at work"):
            fetch(tmp_path, file)


def test_the_command_without_a_network(tmp_path: Path) -> None:
    # A proxy that nobody listens on: every connection is refused.
    env = {**os.environ, "https_proxy": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)}
    env["no_proxy"] = env["NO_PROXY"] = ""
    program = (
        "import sys, stamina; stamina.set_testing(True, attempts=2)\n"
        "sys.argv = ['flow-train', 'data', 'pull', 'gedit_bench', 'drawbench']\n"
        "from trainer.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    (file,) = catalog()["drawbench"].files
    assert "without a network, fetch on another machine" in done.stderr
    assert f"{file.url}\n    -> dataset/drawbench/test.txt (sha256 {file.sha256})" in done.stderr
    assert "Traceback" not in done.stderr
    assert "gedit_bench: licence see the card of stepfun-ai" in done.stdout


def test_the_catalogue_is_pinned_and_complete() -> None:
    for one in catalog().values():
        assert one.licence
        assert one.files or one.further
        assert ("/data/" in one.further.format(root="/data")) == bool(one.further)
    files = [file for one in catalog().values() for file in one.files]
    for file in files:
        assert "/main/" not in file.url
        assert file.url.startswith("https://")
        assert file.url.endswith(file.path.rsplit("/", 1)[-1])
        assert len(file.sha256) == 64 or len(file.git_blob) == 40
        assert names_with(Path("dataset") / file.path)
    assert len({file.path for file in files}) == len(files)


@pytest.fixture(autouse=True)
def quiet_retries() -> Iterator[None]:
    stamina.instrumentation.set_on_retry_hooks([])
    yield
    stamina.instrumentation.set_on_retry_hooks(None)


def test_progress_counts_the_bytes_of_a_file(tmp_path: Path, server: FileServer) -> None:
    file, seen = official(server), []
    pull([OfficialSet("set", "a set", (file,))], tmp_path, print, lambda *at: seen.append(at))
    assert seen[-1] == ("set/train.txt", len(CONTENT), len(CONTENT))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
