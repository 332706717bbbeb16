"""`reward-server audit` as it is called: files, exit status, and one line for every mistake."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from reward_client.errors import InvalidArgument
from reward_client.types import ScorerInfo
from reward_server.audit import drawings
from reward_server.audit.pictures import from_folder, from_run, thinned
from reward_server.audit.transforms import TRANSFORMS
from reward_server.cli import app
from reward_server.commands.audit import source_of

PICTURES = drawings.shapes(2)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["audit", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    rows = []
    for one in PICTURES:
        Image.fromarray(one.pixels).save(folder / f"{one.id}.png")
        rows.append({"file_name": f"{one.id}.png", **(one.spec or {})})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


@pytest.fixture(scope="module")
def out(folder: Path) -> Path:
    """The result of an audit of pictures in a folder by a real worker."""
    checks = "png,less_contrast,border"
    done = call("jpeg", "--images", folder, "--out", folder / "out", "--checks", checks)
    assert done.exit_code == 0, done.output
    assert "intended" in done.stdout
    return folder / "out"


def test_an_audit_leaves_a_result_and_a_page(out: Path) -> None:
    result = json.loads((out / "audit.json").read_text())
    assert result["pictures"]["prompts"] == 2
    assert result["scorer"]["fingerprint"]
    assert [row["name"] for row in result["checks"]] == ["border", "png", "less_contrast"]
    assert all(len(row["sha256"]) == 64 for row in result["checks"])
    assert "Hackability card: jpeg" in (out / "audit.html").read_text()


def test_two_results_are_compared_and_unlike_ones_named(out: Path) -> None:
    same = call("--compare", out / "audit.json", out / "audit.json")
    assert (same.exit_code, same.stdout) == (0, "no check differs\n")
    result = json.loads((out / "audit.json").read_text())
    result["pictures"]["sha256"] = "other"
    result["checks"][1]["verdict"] = "fail"
    result["checks"].pop()
    worse = out / "worse.json"
    worse.write_text(json.dumps(result))
    done = call("--compare", out / "audit.json", worse)
    assert done.exit_code == 1
    assert "not alike: pictures" in done.stdout
    assert "not alike: checks of the first alone: less_contrast" in done.stdout
    worse.write_text(json.dumps({"format": 99}))
    assert "format 99; this version reads 1" in call("--compare", worse, worse).output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["jepg"], "no scorer called 'jepg'"),
        ([], "name a scorer"),
        (["jpeg", "--images", "nowhere"], "--images nowhere: no such folder"),
        (["jpeg", "--checks", "blurr"], "--checks: no 'blurr'"),
        (["jpeg", "--set", "tua=1"], "no threshold 'tua'"),
        (["jpeg", "--set", "tau=much"], "'much' is not a number"),
        (["jpeg", "--url", "grpc://127.0.0.1:1", "--device", "cpu"], "--url asks a server"),
        (["jpeg", "--images", "a", "--run", "b"], "leave one out"),
        (["jpeg", "--url", "grpc://127.0.0.1:1"], "grpc://127.0.0.1:1"),
        (["jpeg", "--prompts", "a.jsonl"], "--prompts says what --images or --run show"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], said: str) -> None:
    done = call(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr.splitlines()[-1]


def test_a_scorer_that_needs_more_than_a_picture_is_refused() -> None:
    inputs = ("image", "references")
    info = ScorerInfo("twins", "1", "", inputs, ("raw",), "raw", (0, 1), "READY")
    with pytest.raises(InvalidArgument, match="twins needs references, which an audit has not"):
        source_of(info, "twins", "", lambda _: pytest.fail("it was asked"))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            '{"file_name": "x.png", "prompt": "a"}',
            "1 of 1 rows name pictures that .* line 1: x.png",
        ),
        ('{"prompt": "a"}', "line 1: no file_name says which picture it is"),
        ("[]", "line 1: not a JSON object"),
        ("", "no pictures"),
        ('{"file_name": "broken.png", "prompt": "a"}', "broken.png"),
        ('{"file_name": "good.png"}', "no prompt for good.png"),
    ],
)
def test_wrong_prompt_files_name_the_line(tmp_path: Path, rows: str, said: str) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    Image.fromarray(PICTURES[0].pixels).save(tmp_path / "good.png")
    (tmp_path / "rows.jsonl").write_text(rows)
    with pytest.raises(InvalidArgument, match=said):
        from_folder(tmp_path, tmp_path / "rows.jsonl")


def test_pictures_that_no_row_names_are_noted(folder: Path, tmp_path: Path) -> None:
    first = (folder / "metadata.jsonl").read_text().splitlines()[0]
    (tmp_path / "rows.jsonl").write_text(first)
    found, notes = from_folder(folder, tmp_path / "rows.jsonl")
    assert [one.spec_kind for one in found] == ["geneval"]
    assert notes == [f"11 pictures of {folder} are named by no row of {tmp_path}/rows.jsonl"]


def test_the_groups_that_a_run_kept_are_read_with_its_rows(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="it has kept no pictures"):
        from_run(tmp_path, None)
    shown = []
    for file in sorted(folder.glob("*.png"))[:6]:
        encoded = base64.b64encode(file.read_bytes()).decode()
        shown.append({"picture": f"data:image/png;base64,{encoded}"})
    groups = [{"prompt": "a photo of a star", "shown": shown}]
    (tmp_path / "groups").mkdir()
    (tmp_path / "groups" / "epoch_000001.json").write_text(json.dumps({"groups": groups}))
    settings = {"settings": {"task": {"train": "@mini/data/geneval_test.jsonl"}}}
    (tmp_path / "resolved.json").write_text(json.dumps(settings))
    found, notes = from_run(tmp_path, None)
    assert len(found) == 6
    assert notes == []
    assert found[0].spec_kind == "geneval"


def test_what_a_run_recorded_goes_before_its_groups(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "record").mkdir()
    for epoch, pictures in ((1, PICTURES), (2, PICTURES[:6])):
        with tarfile.open(tmp_path / f"record/epoch_00000{epoch}_rank_00_every_1.tar", "w") as tar:
            for number, one in enumerate(pictures):
                encoded = io.BytesIO()
                Image.fromarray(one.pixels).save(encoded, "WEBP", lossless=True)
                row = {"key": f"k{number}", "prompt": one.prompt, "encoding": "lossless"}
                row |= {"spec": json.dumps(one.spec), "spec_kind": "geneval"}
                files = {"webp": encoded.getvalue(), "json": json.dumps(row).encode()}
                for ending, content in files.items():
                    info = tarfile.TarInfo(f"k{number}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    found, notes = from_run(tmp_path, None)
    assert notes == []
    assert [one.prompt for one in found] == [one.prompt for one in PICTURES[:6]]
    assert all((a.pixels == b.pixels).all() for a, b in zip(found, PICTURES, strict=False))
    assert found[0].spec == PICTURES[0].spec
    assert not found[0].is_lossy


def test_few_prompts_whole_are_kept_of_many() -> None:
    kept = thinned(drawings.shapes(8), 12)
    assert len(kept) == 12
    assert len({one.prompt for one in kept}) == 2
    assert kept == thinned(drawings.shapes(8)[::-1], 12)


@pytest.mark.parametrize("one", TRANSFORMS, ids=lambda one: one.name)
def test_transforms_repeat_to_the_byte_and_keep_the_size(one) -> None:
    pixels = PICTURES[0].pixels[:96, :80]
    before = pixels.copy()
    for level in (one.levels[0], one.levels[-1]):
        made = one.apply(pixels, level, "a red star")
        assert made.dtype == pixels.dtype
        assert (made.shape == pixels.shape) == (one.battery != "size")
        assert (made == one.apply(pixels, level, "a red star")).all()
    assert (pixels == before).all()
