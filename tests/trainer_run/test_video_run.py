"""A whole run on videos: their frames reach the service, the sheets and the report."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage

from reward_client import Item
from reward_client.codec import decode
from tests.trainer.tiny_wan import build
from tests.trainer_run.fake_service import service_with
from trainer.config.load import parse
from trainer.errors import ConfigError
from trainer.images import STRIP_FRAMES, cut, load_png
from trainer.report.page import write_report
from trainer.run.log import read
from trainer.run.open import train_run
from trainer.run.shards import pixel_digest, read_pictures, read_tables
from trainer.tools.artifacts import Choice
from trainer.tools.offline import sample_target

HEIGHT, WIDTH, FRAMES = 16, 32, 9


@pytest.fixture
def video_table(table: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Two epochs on the tiny Wan 2.2 with two experts."""
    table["run"] |= {"epochs": 2}
    table["model"] |= {
        "family": "wan",
        "path": str(build(tmp_path / "wan", "wan2.2", unipc=True)),
        "max_sequence_length": 24,
    }
    table["sampling"] = {
        "num_steps": 3,
        "eval_num_steps": 3,
        "sde": "linear",
        "noise_level": 1.0,
        "guidance_scale": 2.0,
        "height_px": HEIGHT,
        "width_px": WIDTH,
        "num_frames": FRAMES,
    }
    table["batch"] |= {"images_per_prompt": 2, "optimizer_steps_per_epoch": 1}
    table["record"] = {"images": "lossless", "min_free_bytes": 0}
    table["loss"] = {"kl_beta": 0.004, "clip_low": 1e-3, "clip_high": 1e-3}
    return table


def test_frames_reach_the_service_the_sheets_and_the_report(
    video_table: dict[str, Any], tmp_path: Path
) -> None:
    seen: list[list[np.ndarray]] = []

    def score(scorer: str, item: Item) -> float:
        frames = [decode(image) for image in item.images]
        if not item.id.startswith("trial"):
            seen.append(frames)
        return float(np.mean(frames)) / 255

    outcome = train_run(
        parse(video_table), environment={}, open_service=service_with(score), say=lambda _: None
    )
    assert {len(frames) for frames in seen} == {FRAMES}
    assert {frame.shape for frames in seen for frame in frames} == {(HEIGHT, WIDTH, 3)}
    assert all((frames[0] != frames[-1]).any() for frames in seen)

    rows = read(outcome.run_dir)
    train = [row for row in rows if row["kind"] == "train"]
    assert [row["first_ratio_deviation"] for row in train] == [0.0, 0.0]
    assert all(row["failed"] == 0 and row["policy"]["grad_norm"] > 0 for row in train)
    evaluations = [row for row in rows if row["kind"] == "eval"]
    assert evaluations[0]["watch"]["diversity"]["mean"] > 0
    for row in evaluations:
        strips = cut(load_png(outcome.run_dir / row["samples"]), len(row["shown"]))
        frames = [frame for strip in strips for frame in cut(strip, STRIP_FRAMES, gap_px=1)]
        assert {frame.shape for frame in frames} == {(HEIGHT, WIDTH, 3)}
        assert len(frames) == STRIP_FRAMES * len(row["shown"])
    saved = outcome.run_dir / "model"
    files = {str(path.relative_to(saved)) for path in saved.rglob("*.safetensors")}
    assert files == {
        "pytorch_lora_weights.safetensors",
        "transformer_2/pytorch_lora_weights.safetensors",
    }

    digests = {row["key"]: row["sha256"] for row in read_tables(outcome.run_dir).to_pylist()}
    videos = dict(read_pictures(outcome.run_dir, digests))
    assert {video.shape for video in videos.values()} == {(FRAMES, HEIGHT, WIDTH, 3)}
    assert {key: pixel_digest(video) for key, video in videos.items()} == digests

    assert 'class="pairs videos"' in write_report(outcome.run_dir).read_text(encoding="utf-8")
    (path,) = sample_target(
        str(outcome.run_dir), Choice(), ["a red star"], tmp_path / "drawn", images=1, seed=1
    )
    with PilImage.open(path) as clip:
        assert (clip.size, getattr(clip, "n_frames", 1)) == ((WIDTH, HEIGHT), FRAMES)


def test_a_video_of_another_length_is_refused_in_one_line(video_table: dict[str, Any]) -> None:
    video_table["sampling"]["num_frames"] = 10
    with pytest.raises(
        ConfigError, match="num_frames must be a multiple of 4 and one more, not 10"
    ):
        train_run(parse(video_table), environment={}, open_service=service_with())
