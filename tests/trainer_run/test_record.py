"""The flight recorder: whole, bounded, never twice, and nothing of it reaches the training."""

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet  # pyright: ignore[reportMissingImports]
from safetensors.torch import load_file

from tests.trainer_run.fake_service import service_with
from tests.trainer_run.recorded import EPOCHS, GROUPS, SIZE, recorded, train
from trainer.algorithm.advantages import advantages
from trainer.config.load import parse
from trainer.config.settings import RewardTerm
from trainer.errors import ConfigError
from trainer.images import Pixels
from trainer.models.base import Decoded
from trainer.parallel.world import World
from trainer.run import shards
from trainer.run.log import read
from trainer.run.record import Recorder
from trainer.run.shards import pixel_digest
from trainer.scores import Scores
from trainer.tools.rescore import Other, rescore
from trainer.types import Prompt

FOLDER = shards.FOLDER


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


def test_every_image_is_there_with_what_was_decided_about_it(recorded_run: Path) -> None:
    found = rows(recorded_run)
    keys = [
        f"{e + 1:06d}_{g:04d}_{i:04d}"
        for e in range(EPOCHS)
        for g in range(GROUPS)
        for i in range(SIZE)
    ]
    assert [row["key"] for row in found] == keys
    seen = pictures(recorded_run)
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
    for epoch, logged in enumerate(
        (r for r in read(recorded_run) if r["kind"] == "train"), start=1
    ):
        own = [row for row in found if row["epoch"] == epoch]
        assert np.mean([row["reward"] for row in own]) == pytest.approx(
            logged["reward"]["brightness"]
        )
        assert sum(row["advantage"] != 0 for row in own) > 0
        size = sum(p.stat().st_size for p in (recorded_run / FOLDER).glob(f"*_{epoch:06d}_*"))
        assert size <= logged["record"]["bytes"]
    header = json.loads(
        parquet.read_schema(next((recorded_run / FOLDER).glob("*.parquet"))).metadata[b"flow-train"]
    )
    assert header["rewards"][0]["scorer"] == "brightness"


def test_training_is_the_same_to_the_bit_without_it(
    recorded_run: Path, table: dict[str, Any], tmp_path: Path
) -> None:
    run_dir, said = tmp_path / "plain", []
    plain = recorded(table, run_dir, images="none")
    plain["run"]["epochs"] = 1
    train(plain)
    assert not (run_dir / FOLDER).exists()
    # It can be switched on later; what has no room at all is said before a picture is written.
    crowded = recorded(table, run_dir, min_free_bytes=10**18)
    crowded["run"]["epochs"] = 2
    train(crowded, said.append)
    assert any(
        "less than 1000000000000000000 bytes, for checkpoints, would be left" in text
        for text in said
    )
    train(recorded(table, run_dir, max_bytes=1000), said.append)
    assert any("the tables alone are larger than record.max_bytes=1000" in text for text in said)
    assert list((run_dir / FOLDER).iterdir()) == []
    train_rows = [
        [row for row in numbers(d) if row["kind"] == "train"] for d in (run_dir, recorded_run)
    ]
    assert train_rows[0] == train_rows[1]
    last = f"checkpoints/epoch_{EPOCHS:06d}/trained.safetensors"
    one, other = load_file(recorded_run / last), load_file(run_dir / last)
    assert all((one[name] == other[name]).all() for name in one)


def test_what_is_interrupted_is_recorded_whole_and_once(
    recorded_run: Path, table: dict[str, Any], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    run = recorded(table, run_dir)
    run["run"]["save_every_epochs"] = 100
    said: list[str] = []

    class Killed(Exception):
        pass

    def fall(text: str) -> None:
        if text.startswith("epoch    2"):
            raise Killed

    with pytest.raises(Killed):
        train(run, fall)
    # Epoch 2 is on the disk, but the run goes on from the start.
    assert {row["epoch"] for row in rows(run_dir)} == {1, 2}
    train(run, said.append, lambda: any(text.startswith("epoch    2") for text in said))
    # Asked to stop, it has written all that it has trained on, once.
    assert [row["epoch"] for row in rows(run_dir)] == [1] * GROUPS * SIZE + [2] * GROUPS * SIZE
    train(run)
    assert rows(run_dir) == rows(recorded_run)
    assert list(pictures(run_dir)) == [row["key"] for row in rows(run_dir)]


def test_training_goes_on_when_the_disk_is_full(
    recorded_run: Path, table: dict[str, Any], tmp_path: Path
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
    assert numbers(run_dir) == numbers(recorded_run)
    assert {row["epoch"] for row in rows(run_dir)} == {1}
    assert "No space left" in read(run_dir)[-2]["record"]["stopped"]


def test_lossy_pictures_are_thinned_the_oldest_first(
    recorded_run: Path, table: dict[str, Any], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    size = sum(path.stat().st_size for path in (recorded_run / FOLDER).iterdir())
    train(recorded(table, run_dir, images="webp90", max_bytes=size * 2 // 3))
    assert sum(path.stat().st_size for path in (run_dir / FOLDER).iterdir()) <= size * 2 // 3
    # Of what is lossy only the files are other ones.
    expected = [{**row, "encoding": "webp90"} for row in rows(recorded_run)]
    assert rows(run_dir) == expected
    kept, whole = pictures(run_dir), pictures(recorded_run)
    differences = [np.abs(kept[key].astype(int) - whole[key].astype(int)) for key in kept]
    assert 0 < np.mean(differences) < 20
    left = [sum(int(key[:6]) == epoch for key in kept) for epoch in range(1, EPOCHS + 1)]
    assert left == sorted(left)
    assert left[0] < left[-1] == GROUPS * SIZE
    # Such pictures are no ground for exact scores.
    other = Other((RewardTerm(scorer="brightness"),), {})
    with pytest.raises(ConfigError, match="webp90: these are not the pixels"):
        rescore(run_dir, other, {}, open_service=service_with())
    forced = replace(other, force=True)
    found = rescore(run_dir, forced, {}, open_service=service_with())
    assert found.found["exact"] is False
    assert len(found.rows) == len(kept)
    assert found.found["left_out_groups"] == GROUPS * EPOCHS - len(kept) // SIZE
    # Recorded numbers are exact in any case, and there for all groups.
    found = rescore(run_dir, Other((), {"brightness": 2.0}), {})
    assert found.found["exact"]
    assert found.found["advantages_as_recorded"]
    assert len(found.rows) == len(expected)


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
    # Once more, nothing changes.
    assert shards.plan(sizes, every, room, end=10) == every


def test_what_cannot_be_encoded_ends_the_recording_alone(
    recorded_run: Path, table: dict[str, Any], tmp_path: Path
) -> None:
    settings, said = parse(recorded(table, tmp_path)), []
    shutil.copy(recorded_run / "config.json", tmp_path)
    recorder = Recorder(tmp_path, settings, [Prompt("a star")], World(), said.append)
    # WebP ends at 16,383 pixels.
    wide = np.zeros((1, 1, 20_000, 3), dtype=np.uint8)
    pictures = recorder.encode(Decoded(torch.zeros(0), wide, np.ones(1, dtype=bool)))
    scores = Scores({}, [()], {}, {})
    found = advantages({"brightness": [1.0]}, [0])
    kept = recorder.keep(1, [0], [(0, scores, pictures)], found, 0)
    recorder.close()
    assert kept["stopped"].startswith("cannot encode a picture")
    assert len(said) == 1
    assert recorder.encode(Decoded(torch.zeros(0), wide, np.ones(1, dtype=bool))) is None
