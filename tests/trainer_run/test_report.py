import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PilImage

from trainer.config.load import load
from trainer.errors import ConfigError
from trainer.images import cut, load_png, save_picture, save_png, sheet, strip
from trainer.report.data import load_run, verdict, watched
from trainer.report.page import write_report
from trainer.report.svg import Axes, Series, line_chart, moving_average, ticks


def estimate(mean: float, half: float = 0.02) -> dict[str, Any]:
    return {"mean": mean, "low": mean - half, "high": mean + half, "n": 40}


def evaluation(epoch: int, phase: str, mean: float, watch: dict[str, float]) -> dict[str, Any]:
    return {
        "kind": "eval",
        "phase": phase,
        "epoch": epoch,
        "updates": 2 * epoch,
        "train_minutes": epoch / 10,
        "metrics": {
            "geneval": {
                **estimate(mean),
                "categories": {"counting": estimate(mean - 0.1), "colors <b>": estimate(mean)},
            }
        },
        "rewards": {"geneval.strict": {**estimate(mean - 0.2), "categories": {}}},
        "watch": {k: {**estimate(v), "categories": {}} for k, v in watch.items()},
        "outputs": {"geneval.<soft>": {**estimate(mean + 0.1), "categories": {}}},
        "kl": {**estimate(epoch / 1000, 0.0), "categories": {}},
        "failed": 0,
        "errors": {},
        "images": 80,
        "samples": f"samples/{phase}_{epoch:06d}.png",
        "shown": ["a <star>", "two hearts"],
        "seconds": 1.0,
    }


def training(epoch: int) -> dict[str, Any]:
    return {
        "kind": "train",
        "epoch": epoch,
        "updates": 2 * epoch,
        "train_minutes": epoch / 10,
        "reward": {"geneval": 0.4 + epoch / 100},
        "categories": {"counting": 0.3, "colors": None if epoch % 3 else 0.5},
        "advantage": {"zero_std_groups": 0.1},
        "failed": 0,
        "errors": {},
        "first_ratio_deviation": 0.0,
        "policy": {"kl": 0.001 * epoch, "clip_frac_low": 0.1, "clip_frac_high": None},
        "seconds": {"rollout": 1.0, "score_wait": 0.1, "train": 2.0, "total": 3.1, "cpu": 6.0},
        "images": 192,
        "images_per_s": 60.0,
    }


def make_run(folder: Path, after: dict[str, float], gain: float = 0.3) -> Path:
    settings = load("mini_geneval").model_dump(mode="json")
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({"settings": settings, "versions": {"torch": "2"}, "scorers": {"geneval": "f"}})
    )
    base = {"sharpness": 0.8, "purity": 0.9}
    rows = [evaluation(0, "base", 0.5, base)]
    rows += [training(epoch) for epoch in range(1, 31)]
    rows += [evaluation(e, "curve", 0.5 + e / 100, base) for e in range(2, 20)]
    rows += [evaluation(30, "final", 0.5 + gain, after)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        if row["kind"] == "eval":
            images = [np.full((64, 64, 3), row["epoch"], np.uint8)] * 2
            save_png(folder / row["samples"], sheet(images, 2))
    return folder


class Checker(HTMLParser):
    """Collects what would be fetched, and checks that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [v or "" for k, v in attrs if k in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Closed at once."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_report_is_whole_and_needs_nothing_else(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run", {"sharpness": 0.78, "purity": 0.95}))
    html = page.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(html)
    assert not checker.open
    assert all(source.startswith("data:image/png;base64,") for source in checker.sources)
    assert len(checker.sources) == 2 * 7
    assert "url(" not in html
    assert "0.500" in html
    assert "0.800" in html
    assert "no sign of reward hacking" in html
    assert "a &lt;star&gt;" in html
    assert "<b>" not in re.sub(r"<b>(?!</b>)[^<]*</b>", "", html)
    assert "exactly 1" in html
    assert "unfinished" in html
    assert "geneval.&lt;soft&gt;" in html
    titles = re.findall(r"<h3>(.*?)</h3>", html)
    assert "KL to the base, held-out" in titles
    assert "Training reward by category: geneval" in titles
    assert 'role="alert"' not in html
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(svg)


def test_a_watched_reward_that_falls_is_called_what_it_is(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", {"sharpness": 0.6, "purity": 1.1})
    run = load_run(folder)
    assert [row["state"] for row in watched(run)] == ["fell", "rose"]
    found = verdict(run)
    assert found["kind"] == "warn"
    assert "sharpness fell 25 %" in found["text"]
    assert "kl_beta" in found["text"]
    html = write_report(folder).read_text(encoding="utf-8")
    (alarm,) = re.findall(r'<div class="alarm" role="alert">(.*?)</div>', html)
    assert "since the evaluation of epoch 30" in alarm
    assert "Reward hacking? sharpness fell 25 % (0.80 -&gt; 0.60) while geneval" in alarm
    assert "look at samples/final_000030.png" in alarm
    assert "lower optim.lr" in alarm
    assert html.index('role="alert"') < html.index("<h1>")


@pytest.mark.parametrize(("low", "badge"), [(0.9, "beyond the 95"), (0.1, "inside the 95")])
def test_the_headline_claims_only_what_the_intervals_show(
    tmp_path: Path, low: float, badge: str
) -> None:
    folder = make_run(tmp_path / "run", {"sharpness": 0.78, "purity": 0.95})
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = next(row for row in reversed(rows) if row["kind"] == "eval")
    headline = next(iter(last["metrics"].values()))
    headline.update(low=low, high=1.0)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = write_report(folder).read_text(encoding="utf-8")
    assert f'badge">{badge}' in html.replace("badge warn", "badge")


def test_a_forgotten_category_is_named_although_watched_rewards_hold(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "run", {"sharpness": 0.78, "purity": 0.95}))
    name = next(iter(run.after["metrics"][run.headline]["categories"]))
    after = run.after["metrics"][run.headline]["categories"][name]
    before = run.base["metrics"][run.headline]["categories"][name]
    before.update(mean=0.5, low=0.4, high=0.6)
    after.update(mean=0.1, low=0.0, high=0.2)
    found = verdict(run)
    assert found["kind"] == "warn"
    assert f"{name} (-0.400)" in found["text"]
    assert "category_weights" in found["text"]


def test_a_run_of_another_version_is_one_line(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", {"sharpness": 0.78, "purity": 0.95})
    table = json.loads((folder / "config.json").read_text())
    table["settings"]["loss"]["gone"] = 1
    (folder / "config.json").write_text(json.dumps(table))
    with pytest.raises(ConfigError, match=r"config\.json: unknown setting loss\.gone"):
        write_report(folder)


def test_a_folder_without_a_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        write_report(tmp_path)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_ordered_and_inside(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 1 <= len(found) <= 7
    assert found == sorted(set(found))
    assert all(low - 1e-6 * span <= v <= low + span + 1e-6 * span for v in found)


def test_charts_survive_gaps_single_points_and_nothing() -> None:
    assert line_chart([Series("a", [], [])]) == ""
    assert line_chart([Series("a", [1], [None])]) == ""
    for chart in (
        line_chart([Series("a", [1], [2.0])]),
        line_chart(
            [Series("a<", [1, 2], [0.0, None], [0.0, None], [0.0, 1.0])], Axes(band=(-1, 1))
        ),
    ):
        ElementTree.fromstring(chart[: chart.index("</svg>") + 6])
        assert "nan" not in chart


def test_moving_average_skips_gaps() -> None:
    assert moving_average([1.0, None, 3.0], 2) == [1.0, 1.0, 3.0]


def test_a_sheet_is_cut_into_what_it_was_made_of(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (8, 12, 3), dtype=np.uint8) for _ in range(6)]
    save_png(tmp_path / "sheet.png", sheet(images, 3))
    for before, after in zip(images, cut(load_png(tmp_path / "sheet.png"), 3, 2), strict=True):
        assert (before == after).all()
    with pytest.raises(ValueError, match="one size"):
        sheet([images[0], images[1][:4]], 2)


def test_a_video_is_shown_as_a_strip_and_saved_as_an_animation(tmp_path: Path) -> None:
    video = np.stack([np.full((8, 12, 3), 10 * frame, np.uint8) for frame in range(9)])
    frames = cut(strip(video), 5, gap_px=1)
    assert [int(frame.max()) for frame in frames] == [0, 20, 40, 60, 80]
    assert all(frame.shape == (8, 12, 3) and frame.min() == frame.max() for frame in frames)
    assert (strip(video[4]) == video[4]).all()
    assert len(cut(strip(video[:2]), 2, gap_px=1)) == 2
    path = save_picture(tmp_path / "clip", video)
    with PilImage.open(path) as clip:
        assert (path.name, clip.n_frames) == ("clip.webp", 9)
        for number in range(9):
            clip.seek(number)
            assert (np.asarray(clip.convert("RGB")) == video[number]).all()
    assert save_picture(tmp_path / "still", video[3]).name == "still.png"
    assert (load_png(tmp_path / "still.png") == video[3]).all()
