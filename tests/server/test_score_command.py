"""`reward-server score`: against a server, here, explained copies, and what goes wrong."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from server_process import Server, run_cli, running
from typer.testing import CliRunner

from reward_server.cli import app
from reward_server.scorers.geneval import shapes
from reward_server.scorers.ocr.scorer import drawing

# Each test starts processes that load networks: seconds, but minutes on a crowded machine.
pytestmark = pytest.mark.timeout(400)

ROW = {
    "tag": "color_attr",
    "include": [
        {"class": "star", "count": 1, "color": "red"},
        {"class": "circle", "count": 2, "color": "blue"},
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    star = shapes.drawing("star", "red", 18, 20, 8)
    circle = shapes.drawing("circle", "blue", 46, 40, 8)
    both = np.concatenate([star[:, :32], circle[:, 32:]], axis=1)
    PIL.Image.fromarray(both).save(folder / "both.png")
    PIL.Image.fromarray(drawing("HELLO", 96)).save(folder / "word.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    (folder / "text.png").write_text("not an image")
    (folder / "other").mkdir()
    PIL.Image.fromarray(drawing("STOP", 96)).save(folder / "other" / "word.png")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    toml = "[scorers.geneval]\n[scorers.ocr]\noptions = { sessions = 1 }\n"
    with running(tmp_path_factory.mktemp("s"), toml, wait_for=("geneval", "ocr")) as server:
        yield server


@pytest.mark.parametrize("columns", ["80", "160"])
def test_a_folder_of_geneval_is_scored_by_one_command(
    server: Server, tmp_path: Path, columns: str
) -> None:
    rows = [
        ("red", {"tag": "colors", "include": [{"class": "star", "count": 1, "color": "red"}]}),
        ("red", {"tag": "single_object", "include": [{"class": "star", "count": 1}]}),
        ("blue", {"tag": "colors", "include": [{"class": "star", "count": 1, "color": "red"}]}),
    ]
    for number, (color, row) in enumerate(rows):
        place = tmp_path / f"{number:05d}"
        (place / "samples").mkdir(parents=True)
        picture = PIL.Image.fromarray(shapes.drawing("star", color, 32, 32, 14))
        picture.save(place / "samples" / "0000.png")
        (place / "metadata.jsonl").write_text(json.dumps({**row, "prompt": "a star"}))
        picture.save(place / "grid.png")
    where = ("--scorers", "geneval", "--url", server.grpc_url)
    done = run_cli("score", str(tmp_path), *where, COLUMNS=columns)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in re.sub("[\u2502\u2503]", " ", done.stdout).splitlines()]
    found = {line[0]: line for line in lines if line}
    names = found["category"][3:]
    official = 3 + names.index("official")
    assert found["colors"][official] == "0.5000"
    assert found["single_object"][official] == "1.0000"
    assert "00002/0000.png" in found
    mean = next(line for line in lines if line[:3] == ["mean", "of", "categories"])
    assert mean[2 + official - 1] == "0.7500"
    (tmp_path / "empty").mkdir()
    done = run_cli("score", str(tmp_path / "empty"), "--scorers", "geneval")
    assert done.returncode == 2
    assert "as GenEval writes it" in done.stderr


def test_a_row_without_its_tag_is_an_error_of_the_item(server: Server, folder: Path) -> None:
    row = json.dumps({"include": [{"class": "star", "count": 1}]})
    where = ("--scorers", "geneval", "--url", server.grpc_url, "--spec", row)
    done = run_cli("score", str(folder / "both.png"), *where)
    assert (done.returncode, done.stderr) == (1, "")
    assert "geneval  (version 1)" in done.stdout
    assert "INVALID_ARGUMENT: spec.tag" in done.stdout


def test_here_and_by_a_server_are_the_same(server: Server, folder: Path) -> None:
    command = ["score", str(folder / "both.png"), str(folder / "word.png"), "--json"]
    command += ["--scorers", "geneval,ocr", "--prompt", '"HELLO"', "--spec", json.dumps(ROW)]
    here = run_cli(*command, "--local")
    assert (here.returncode, here.stderr) == (0, "")
    for url in (server.grpc_url, server.http_url):
        there = CliRunner().invoke(app, [*command, "--url", url])
        assert there.exit_code == 0, there.output
        for ours, theirs in zip(
            json.loads(here.stdout)["results"], json.loads(there.stdout)["results"], strict=True
        ):
            for field in ("name", "scores", "raw", "components", "details", "fingerprint"):
                assert ours[field] == theirs[field]
    geneval, ocr = json.loads(here.stdout)["results"]
    assert 0 < geneval["scores"][0] < 1
    assert ocr["scores"] == [0.0, 1.0]


def test_explained_copies_and_readable_tables(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "explained"
    paths = [folder / name for name in ("both.png", "word.png", "broken.png", "other/word.png")]
    done = run_cli(
        *("score", *map(str, paths), "--scorers", "geneval,ocr", "--local"),
        *("--prompt", 'a sign "HELLO"', "--spec", json.dumps(ROW), "--explain", str(out)),
    )
    assert done.returncode == 1, done.stderr  # one picture has no score
    names = ["both.explained.png", "word-2.explained.png", "word.explained.png"]
    assert sorted(path.name for path in out.iterdir()) == names
    for word in ("geneval", "ocr", "flowgrpo", "INVALID_ARGUMENT", "failed"):
        assert word in done.stdout
    assert 'asked for "HELLO", read "STOP"' in done.stdout
    assert "expected circle>=2, found 1" in done.stdout
    original = np.asarray(PIL.Image.open(folder / "both.png"))
    copy = np.asarray(PIL.Image.open(out / "both.explained.png"))
    shown = np.kron(original, np.ones((10, 10, 1), dtype=np.uint8))
    changed = (copy[:640, :640] != shown).any(axis=2)
    # Something is drawn around both shapes, nothing inside them or far from them.
    assert changed[100:300].any()
    assert changed[300:500].any()
    assert not changed[160:230, 140:220].any()
    assert not changed[:40].any()
    assert not changed[560:].any()


def test_without_a_server_it_scores_here(folder: Path) -> None:
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 50051)) == 0:
            pytest.skip("a server runs at the default address of this machine")
    done = run_cli("score", str(folder / "word.png"), "--scorers", "jpeg")
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert "no server at grpc://127.0.0.1:50051: scoring here" in line
    assert "word.png" in done.stdout


def test_a_config_is_respected_here(folder: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[scorers.reader]\nscorer = "ocr"\noptions = { sessions = 1 }\n')
    picture = str(folder / "word.png")
    command = ["score", picture, "--prompt", '"HELLO"', "--config", str(config), "--json"]
    done = run_cli(*command, "--scorers", "reader")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["results"][0]["scores"] == [1.0]
    config.write_text('[scorers.ocr]\noptions = { engine = "tesseract" }\n')
    failed = run_cli(*command, "--scorers", "ocr")
    assert failed.returncode == 2
    (line,) = failed.stderr.splitlines()
    assert "unknown engine 'tesseract'; known: rapidocr, paddleocr" in line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.png"], "cannot read or write nowhere.png: No such file or directory"),
        (["FOLDER/broken.png"], "images[0]"),
        (["FOLDER/word.png", "--scorers", "jpge"], "did you mean 'jpeg'?"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], words: str, folder: Path) -> None:
    done = run_cli(*_command(arguments, folder))
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert words in line
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["FOLDER/text.png"], "is not a PNG, JPEG"),
        (["FOLDER"], "a folder is read as GenEval writes it"),
        (["FOLDER/word.png", "--scorers", ","], "name at least one scorer"),
        (["FOLDER/word.png", "--spec", "{"], "--spec is not JSON"),
        (["FOLDER/word.png", "--spec", "[1]"], "--spec must be a JSON object, got list"),
        (["FOLDER/word.png", "--explain", "FOLDER/word.png"], "word.png: File exists"),
        (["FOLDER/word.png", "--url", "grpc://127.0.0.1:9"], "leave it out"),
    ],
)
def test_mistakes_that_are_seen_before_anything_starts(
    arguments: list[str], words: str, folder: Path
) -> None:
    done = CliRunner().invoke(app, _command(arguments, folder))
    assert done.exit_code == 2, done.output
    (line,) = done.output.splitlines()
    assert words in line


def _command(arguments: list[str], folder: Path) -> list[str]:
    filled = [argument.replace("FOLDER", str(folder)) for argument in arguments]
    scorers = [] if "--scorers" in filled else ["--scorers", "jpeg"]
    return ["score", *filled, *scorers, "--local"]
