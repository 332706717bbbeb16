"""The flight recorder: whole, bounded, never twice, and nothing of it reaches the training."""

import io
import json
import tarfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file

from tests.trainer_run.fake_service import service_with
from trainer.config.load import parse
from trainer.images import Pixels
from trainer.run import shards
from trainer.run.log import read
from trainer.run.open import Outcome, train_run
from trainer.run.record import pixel_digest

EPOCHS, GROUPS, SIZE = 3, 2, 4
FOLDER = shards.FOLDER


def recorded(table: dict[str, Any], run_dir: Path, **record: Any) -> dict[str, Any]:
    out = deepcopy(table)
    out["run"] |= {"out_dir": str(run_dir), "epochs": EPOCHS}
    out["eval"] |= {"every_epochs": 0, "images_per_prompt": 1, "kl_steps": 0}
    out["logging"]["groups_every_epochs"] = 0
    out["record"] = {"images": "lossless", "min_free_bytes": 0, **record}
    return out


def train(
    table: dict[str, Any],
    say: Callable[[str], None] = lambda _: None,
    stop: Callable[[], object] = lambda: False,
) -> Outcome:
    connect = service_with()
    return train_run(parse(table), environment={}, open_service=connect, say=say, stop=stop)


@pytest.fixture(scope="module")
def whole(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that was recorded."""
    from tests.trainer_run.tiny import settings_table

    folder = tmp_path_factory.mktemp("recorded")
    train(recorded(settings_table(folder, pipeline), folder / "run"))
    return folder / "run"


def numbers(run_dir: Path) -> list[dict[str, Any]]:
    rows = read(run_dir)
    for row in rows:
        for name in ("seconds", "images_per_s", "train_minutes", "record"):
            row.pop(name, None)
    return rows


def pictures(run_dir: Path) -> dict[str, Pixels]:
    """What the shards hold, read without this project."""
    out = {}
    for path in sorted((run_dir / FOLDER).glob("*.tar")):
        with tarfile.open(path) as tar:
            names = tar.getnames()
            assert [name.partition(".")[2] for name in names] == ["webp", "json"] * (
                len(names) // 2
            )
            for name in names[::2]:
                key = name.removesuffix(".webp")
                row = json.load(tar.extractfile(f"{key}.json") or io.BytesIO())
                assert row["key"] == key
                out[key] = np.asarray(Image.open(tar.extractfile(name) or io.BytesIO()))
    return out


def rows(run_dir: Path) -> list[dict[str, Any]]:
    found = sorted((run_dir / FOLDER).glob("*.parquet"))
    return [row for path in found for row in parquet.read_table(path).to_pylist()]


def test_every_image_is_there_with_what_was_decided_about_it(whole: Path) -> None:
    found = rows(whole)
    keys = [
        f"{e + 1:06d}_{g:04d}_{i:04d}"
        for e in range(EPOCHS)
        for g in range(GROUPS)
        for i in range(SIZE)
    ]
    assert [row["key"] for row in found] == keys
    seen = pictures(whole)
    assert list(seen) == keys
    for row in found:
        picture = seen[row["key"]]
        assert pixel_digest(picture) == row["sha256"]
        # What the fake scorer saw, to the bit.
        assert row["score.brightness"] == float((picture.astype(np.float64) / 255).mean())
        assert row["reward"] == row["output.brightness"] == row["score.brightness"]
        assert row["fingerprint.brightness"] == "fake"
        assert row["failure"] is None
        assert row["noise"]["epoch"] == row["epoch"] - 1
        assert row["updates"] == 2 * (row["epoch"] - 1)
        assert (row["height"], row["width"], row["encoding"]) == (*picture.shape[:2], "lossless")
    for epoch, logged in enumerate((r for r in read(whole) if r["kind"] == "train"), start=1):
        own = [row for row in found if row["epoch"] == epoch]
        assert np.mean([row["reward"] for row in own]) == pytest.approx(
            logged["reward"]["brightness"]
        )
        assert sum(row["advantage"] != 0 for row in own) > 0
        size = sum(p.stat().st_size for p in (whole / FOLDER).glob(f"*_{epoch:06d}_*"))
        assert size <= logged["record"]["bytes"]
    header = json.loads(
        parquet.read_schema(next((whole / FOLDER).glob("*.parquet"))).metadata[b"flow-train"]
    )
    assert header["rewards"][0]["scorer"] == "brightness"


def test_training_is_the_same_to_the_bit_without_it(
    whole: Path, table: dict[str, Any], tmp_path: Path
) -> None:
    train(recorded(table, tmp_path / "plain", images="none"))
    assert not (tmp_path / "plain" / FOLDER).exists()
    assert numbers(tmp_path / "plain") == numbers(whole)
    last = f"checkpoints/epoch_{EPOCHS:06d}/trained.safetensors"
    one, other = load_file(whole / last), load_file(tmp_path / "plain" / last)
    assert all((one[name] == other[name]).all() for name in one)


def test_an_epoch_that_is_done_again_is_recorded_once(
    whole: Path, table: dict[str, Any], tmp_path: Path
) -> None:
    run = recorded(table, tmp_path / "run")
    run["run"]["save_every_epochs"] = 100
    said: list[str] = []

    class Killed(Exception):
        pass

    def fall(text: str) -> None:
        said.append(text)
        if text.startswith("epoch    2"):
            raise Killed

    with pytest.raises(Killed):
        train(run, fall)
    # Epoch 2 is on the disk, but the run goes on from the start.
    assert {row["epoch"] for row in rows(tmp_path / "run")} == {1, 2}
    train(run, said.append)
    assert rows(tmp_path / "run") == rows(whole)
    assert pictures(tmp_path / "run").keys() == pictures(whole).keys()


def test_a_run_that_is_asked_to_stop_has_all_its_epochs(
    whole: Path, table: dict[str, Any], tmp_path: Path
) -> None:
    run = recorded(table, tmp_path / "run")
    said: list[str] = []
    done = train(run, said.append, lambda: any(text.startswith("epoch    2") for text in said))
    assert done.epoch == 2
    assert {row["epoch"] for row in rows(tmp_path / "run")} == {1, 2}
    train(run)
    assert rows(tmp_path / "run") == rows(whole)


def test_training_goes_on_when_the_disk_is_full(
    whole: Path, table: dict[str, Any], tmp_path: Path
) -> None:
    said: list[str] = []
    run_dir = tmp_path / "run"
    (run_dir / FOLDER).mkdir(parents=True)

    def say(text: str) -> None:
        said.append(text)
        if text.startswith("epoch    1"):
            full = run_dir / FOLDER / ".epoch_000002_rank_00_every_1.tar.writing"
            full.symlink_to("/dev/full")

    train(recorded(table, run_dir), say)
    (line,) = [text for text in said if "recorded" in text]
    assert line.startswith(
        "warning: nothing is recorded from here on, training goes on: cannot write"
    )
    assert "No space left on device" in line
    assert numbers(run_dir) == numbers(whole)
    assert {row["epoch"] for row in rows(run_dir)} == {1}
    assert "No space left" in read(run_dir)[-2]["record"]["stopped"]


def test_pictures_are_thinned_the_oldest_first(
    whole: Path, table: dict[str, Any], tmp_path: Path
) -> None:
    size = sum(path.stat().st_size for path in (whole / FOLDER).iterdir())
    run = recorded(table, tmp_path / "run", max_bytes=size * 2 // 3)
    train(run)
    assert (
        sum(path.stat().st_size for path in (tmp_path / "run" / FOLDER).iterdir()) <= size * 2 // 3
    )
    assert rows(tmp_path / "run") == rows(whole)
    kept, all_pictures = pictures(tmp_path / "run"), pictures(whole)
    assert all((kept[key] == all_pictures[key]).all() for key in kept)
    left = [sum(int(key[:6]) == epoch for key in kept) for epoch in range(1, EPOCHS + 1)]
    assert left == sorted(left)
    assert left[0] < left[-1] == GROUPS * SIZE


def test_what_has_no_room_at_all_is_said(table: dict[str, Any], tmp_path: Path) -> None:
    said: list[str] = []
    run = recorded(table, tmp_path / "run", max_bytes=1000)
    run["run"]["epochs"] = 1
    train(run, said.append)
    assert any("the tables alone are larger than record.max_bytes=1000" in text for text in said)
    assert list((tmp_path / "run" / FOLDER).iterdir()) == []


@pytest.mark.parametrize("room", [0, 1, 500, 4_000, 10_000, 10**9])
def test_a_plan_fits_the_room_and_wastes_little(room: int) -> None:
    random = np.random.default_rng(room)
    sizes = {epoch: random.integers(50, 150, 6) for epoch in range(1, 31)}
    every = shards.plan(sizes, dict.fromkeys(sizes, 1), room, end=10)
    left = {e: len(range(0, 6, every[e])) if every[e] else 0 for e in sizes}
    used = sum(int(sizes[e][:: every[e]].sum()) + 10 for e in sizes if every[e])
    assert used <= room
    assert list(left.values()) == sorted(left.values())
    assert used > room - 460 or all(value == 6 for value in left.values())
    # Once more, nothing changes; and a plan made epoch by epoch fits, too.
    assert shards.plan(sizes, every, room, end=10) == every
