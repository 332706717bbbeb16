"""PaddleOCR as the engine, for real, on local folders; `make test-paddle` makes its environment."""

from __future__ import annotations

import importlib.metadata
import json
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from paddle_models import folders_2, folders_3
from PIL import Image, ImageDraw, ImageFont

from reward_server.scorers.base import ItemFailure, ItemScore, ScoreInput, UInt8Image
from reward_server.scorers.ocr.scorer import OcrScorer, drawing

paddleocr = pytest.importorskip(
    "paddleocr", reason="PaddleOCR is not installed here: run `make test-paddle`"
)
pytestmark = pytest.mark.filterwarnings("ignore")  # PaddleOCR's own, which are not ours to mend

ROOT = Path(__file__).parents[2]
MAJOR = int(importlib.metadata.version("paddleocr").split(".")[0])


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return (folders_3 if MAJOR >= 3 else folders_2)(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def options(folders: tuple[Path, Path]) -> dict[str, Any]:
    return {
        "engine": "paddleocr",
        "detector_dir": str(folders[0]),
        "recognizer_dir": str(folders[1]),
    }


@pytest.fixture(scope="module")
def scorer(options: dict[str, Any]) -> Iterator[OcrScorer]:
    """Loaded, and used, while nothing can be connected to or looked up."""
    attempts: list[object] = []

    def refuse(*arguments: object, **_: object) -> None:
        attempts.append(arguments)
        raise OSError("no network in this test")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        found = OcrScorer(sessions=2, **options)
        found.load("cpu")
        yield found
        assert attempts == []


def _page(lines: Sequence[str], font_px: int, color: tuple[int, int, int]) -> UInt8Image:
    picture = Image.new("RGB", (512, 256), (248, 244, 236))
    for index, line in enumerate(lines):
        at = (24, 24 + index * 2 * font_px)
        font = ImageFont.load_default(size=font_px)
        ImageDraw.Draw(picture).text(at, line, fill=color, font=font)
    return np.asarray(picture)


def test_a_target_that_the_networks_cannot_read_is_refused(scorer: OcrScorer) -> None:
    page = _page(["HELLO"], 24, (0, 0, 0))
    items = [ScoreInput("", (page,), (), {"target": word}) for word in ("HELLO", "\u041f\u0440")]
    read, refused = scorer.score(items, details=False)
    assert isinstance(read, ItemScore)
    assert isinstance(refused, ItemFailure)
    assert "cannot read: \u043f" in refused.message


def test_self_test(scorer: OcrScorer) -> None:
    scorer.self_test()


def test_reads_rendered_phrases(scorer: OcrScorer) -> None:
    pages = [
        _page(["Fresh Bread", "every morning"], 32, (25, 30, 70)),
        _page(["Opening"], 48, (180, 20, 20)),
        _page([], 20, (0, 0, 0)),
    ]
    prompts = ["\u201cFresh Bread every morning\u201d", '"Opening"', '"Opening"']
    items = [ScoreInput(p, (page,)) for p, page in zip(prompts, pages, strict=True)]
    two_lines, one_line, blank = scorer.score(items, details=True)
    assert isinstance(two_lines, ItemScore)
    assert isinstance(one_line, ItemScore)
    assert isinstance(blank, ItemScore)
    assert two_lines.raw == one_line.raw == 1.0
    assert blank.raw == 0.0
    assert two_lines.details is not None
    first, second = two_lines.details["lines"]
    assert np.mean(first["box"], axis=0)[1] < np.mean(second["box"], axis=0)[1]
    assert 20 < np.min(first["box"]) < np.max(first["box"]) < 260


def test_a_batch_reads_like_its_pictures_one_by_one(scorer: OcrScorer) -> None:
    pages = [_page(["Exit", "a considerably longer line"], 26, (0, 0, 0)), drawing("STOP", 64)]
    pages += [_page(["Mind the Gap"], 40, (0, 60, 0))]
    together = scorer.read(pages)
    assert together == [scorer.read([page])[0] for page in pages]
    assert ["".join(line.text for line in lines) for lines in together][1] == "STOP"


def test_networks_get_bgr(scorer: OcrScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[UInt8Image] = []
    engine = scorer._engine
    read = engine.read

    def listen(images: Sequence[UInt8Image]) -> Any:
        seen.extend(images)
        return read(images)

    monkeypatch.setattr(engine, "read", listen)
    red = np.zeros((200, 200, 3), dtype=np.uint8)
    red[..., 0] = 255
    scorer.read([red])
    assert seen[0][0, 0].tolist() == [0, 0, 255]


def test_fingerprint_follows_the_networks(scorer: OcrScorer, options: dict[str, Any]) -> None:
    facts = scorer._engine.facts()
    assert facts["paddleocr"] == importlib.metadata.version("paddleocr")
    for role, folder in (("detector", "detector_dir"), ("recognizer", "recognizer_dir")):
        file = Path(options[folder]) / "NOTES"
        file.write_text("another file is another network")
        changed = scorer._engine.facts()
        file.unlink()
        assert {key for key in facts if facts[key] != changed[key]} == {role}
    assert facts == scorer._engine.facts()


def _has(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def test_an_incomplete_folder_is_named(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "inference.onnx").write_bytes(b"")
    found = OcrScorer(**{**options, "detector_dir": str(tmp_path), "recognizer_dir": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match=str(tmp_path)):
        found.load("cpu")


@pytest.mark.skipif(not _has("fastapi"), reason="the server's packages are not installed here")
def test_served_by_a_worker(options: dict[str, Any], tmp_path: Path) -> None:
    config, picture = tmp_path / "config.toml", tmp_path / "stop.png"
    table = "\n".join(f"{key} = '{value}'" for key, value in options.items())
    config.write_text(f"[scorers.ocr.options]\nsessions = 1\n{table}\n")
    Image.fromarray(drawing("STOP", 256)).save(picture)
    command = [sys.executable, "-m", "reward_server", "score", str(picture), "--scorers", "ocr"]
    command += ["--prompt", 'a sign "STOP"', "--config", str(config), "--json"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)["results"]
    assert result["scores"] == [1.0]
