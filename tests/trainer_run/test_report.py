import io
import json
import re
from html import unescape as html_text
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PilImage
from rich.console import Console
from scipy import stats

from trainer.config.load import load
from trainer.errors import ConfigError, StorageError
from trainer.images import cut, load_png, save_picture, save_png, sheet, strip
from trainer.report.charts import signal_to_noise
from trainer.report.compare import compare, unpaired
from trainer.report.data import load_run, state, verdict, watched
from trainer.report.page import PICTURES_BYTES, SHOWN_EVALUATIONS, write_report
from trainer.report.svg import Axes, Series, line_chart, moving_average, ticks
from trainer.run.log import evaluation_line


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
        if tag not in ("meta", "img", "br", "input"):
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
    anchors = [source for source in checker.sources if source.startswith("#")]
    pictures = [source for source in checker.sources if not source.startswith("#")]
    assert all(source.startswith("data:image/png;base64,") for source in pictures)
    assert len(pictures) == 2 * SHOWN_EVALUATIONS
    assert sorted(anchor[1:] for anchor in anchors) == sorted(
        re.findall(r'<section id="(\w+)"', html)
    )
    assert "url(" not in html
    assert "http" not in re.sub(r"http://www.w3.org/2000/svg", "", html)
    assert "0.500" in html
    assert "0.800" in html
    assert "no sign of reward hacking" in html
    assert "a &lt;star&gt;" in html
    assert "colors &lt;b&gt;" in html
    assert "colors <b>" not in html
    assert "exactly 1" in html
    assert "unfinished" in html
    assert "geneval.&lt;soft&gt;" in html
    titles = re.findall(r'<h4 title="(.*?)">', html)
    assert {"KL to the base, held-out", "Clip fraction", "Signal to noise"} <= set(titles)
    assert 'role="alert"' not in html
    assert "never</span>" in html
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
    (cell,) = re.findall(r"<td>reward hacking\?</td>.*?</tr>", html)
    assert "on since epoch 30" in cell


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


def test_a_run_that_an_older_version_wrote_has_a_report(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", {"sharpness": 0.78, "purity": 0.95})
    table = json.loads((folder / "config.json").read_text())
    del table["settings"]["sampling"]["num_frames"]
    del table["settings"]["logging"]["groups_every_epochs"]
    (folder / "config.json").write_text(json.dumps(table))
    assert "groups_every_epochs" in write_report(folder).read_text(encoding="utf-8")


def test_evaluations_with_the_training_sampler_have_a_row_of_their_own(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"sharpness": 0.8, "purity": 0.9})
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in (rows[0], rows[-1]):
        shifted = {**row["metrics"]["geneval"]}
        shifted["mean"] -= 0.125
        row["training_sampler"] = {"geneval": shifted}
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = write_report(run).read_text(encoding="utf-8")
    (line,) = re.findall(r"<tr><td>geneval, training sampler</td>.*?</tr>", page, re.DOTALL)
    assert "0.375" in line
    assert "0.675" in line
    assert "+0.300" in line
    assert "geneval, training sampler 0.675" in evaluation_line(rows[-1])


def test_a_folder_without_a_run_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no run"):
        write_report(tmp_path)


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_few_ordered_and_inside(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert 1 <= len(found) <= 7
    assert found == sorted(set(found))
    assert all(low - 1e-6 * span <= v <= low + span + 1e-6 * span for v in found)


def test_a_run_that_goes_on_has_stopped_or_is_finished_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", {"sharpness": 0.78, "purity": 0.95})
    assert state(load_run(folder)) == {"kind": "running", "text": "unfinished: epoch 30 of 200"}
    (folder / "exit.json").write_text('{"exit_code": 4, "error": "the <service> is gone"}')
    assert "stopped after epoch 30: the &lt;service&gt; is gone" in write_report(folder).read_text()
    (folder / "result.json").write_text('{"reason": "30 epochs"}')
    assert state(load_run(folder)) == {"kind": "finished", "text": "finished: 30 epochs"}


def test_pictures_do_not_fill_the_page_however_many_there_are(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", {"sharpness": 0.78, "purity": 0.95})
    small = len(write_report(folder).read_bytes())
    rng = np.random.default_rng(0)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in lines:
        if row["kind"] == "eval":
            row["shown"] = [f"prompt {n}" for n in range(25)]
            noise = rng.integers(0, 256, (48, 48 * 25 + 24 * 2, 3), dtype=np.uint8)
            save_png(folder / row["samples"], noise)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))
    whole = len(write_report(folder).read_bytes())
    # As PNG, each of the 300 would be 7 kB.
    assert small + 300 * 2_000 < whole < small + PICTURES_BYTES * 4 / 3 + 300 * 400


def test_signal_to_noise_is_welchs_statistic_of_two_windows() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, 30)
    found = signal_to_noise(values.tolist(), 10)
    assert found[:19] == [None] * 19
    for end in (20, 27, 30):
        now, before = values[end - 10 : end], values[end - 20 : end - 10]
        expected, _ = stats.ttest_ind(now, before, equal_var=False)
        assert found[end - 1] == pytest.approx(expected)
    assert signal_to_noise([1.0] * 20, 10)[-1] is None
    assert signal_to_noise([None] * 19 + [1.0], 10)[-1] is None


def test_long_curves_keep_their_ends_and_their_numbers() -> None:
    x = list(range(3001))
    chart = line_chart([Series("a", x, [v / 7 for v in x])], Axes(x_label="epoch"))
    data = json.loads(html_text(re.findall(r'data-chart="(.*?)"', chart)[0]))
    (line,) = data["lines"]
    assert (line["x"][0], line["x"][-1], len(line["x"])) == (0, 3000, 400)
    assert line["y"] == pytest.approx([v / 7 for v in line["x"]], rel=1e-4)
    assert data["scale"][:2] == [0, 3000]


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


def by_prompt(rng: np.random.Generator, shift: float) -> dict[str, Any]:
    base = np.random.default_rng(7).uniform(0, 0.5, 20)
    values = base + shift + rng.normal(0, 0.01, 20)
    return {"geneval": {"counting": values[:10].tolist(), "colors <b>": values[10:].tolist()}}


def rewrite(folder: Path, **last: Any) -> Path:
    """Change the last evaluation of a run."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows[-1].update(last)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def change_setting(folder: Path, section: str, **values: Any) -> None:
    table = json.loads((folder / "config.json").read_text())
    table["settings"][section] |= values
    (folder / "config.json").write_text(json.dumps(table))


def printed(table: Any) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_runs_side_by_side_are_paired_where_prompts_and_seeds_are_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    watch = {"sharpness": 0.78, "purity": 0.95}
    one = rewrite(make_run(tmp_path / "a<b>", watch), by_prompt=by_prompt(rng, 0), prompts="p")
    other = make_run(tmp_path / "other", watch, gain=0.25)
    rewrite(other, by_prompt=by_prompt(rng, 0.03), prompts="p")
    change_setting(other, "loss", kl_beta=0.05)
    page = tmp_path / "out" / "compare.html"
    text = printed(compare([one, other], page))
    change = re.search(r"([+-][\d.]+) \(([+-][\d.]+) to ([+-][\d.]+)\) paired", text)
    assert change, text
    mean, low, high = map(float, change.groups())
    assert 0.015 < low < mean < high < 0.045
    html = page.read_text(encoding="utf-8")
    checker = Checker()
    checker.feed(html)
    assert not checker.open
    assert all(source.startswith(("data:image/", "#")) for source in checker.sources)
    assert "a&lt;b&gt;" in html
    assert "a<b>" not in html
    assert "<code>loss.kl_beta</code>" in html
    assert "<code>run.out_dir</code>" not in html
    charts = [json.loads(html_text(one)) for one in re.findall(r'data-chart="(.*?)"', html)]
    assert {line["name"] for chart in charts for line in chart["lines"]} == {"a<b>", "other"}
    assert "KL to the base, held-out" in html
    for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(svg)
    # Another length and older rows: compared, with the wider interval, and it is said.
    rewrite(other, by_prompt={}, epoch=25)
    text = printed(compare([one, other], page))
    assert "(-0.078 to -0.022) unpaired" in text
    assert "is not paired" in text
    change_setting(other, "eval", seed=5)
    text = printed(compare([one, other], page))
    assert "not comparable" in text
    assert "evaluated differently (eval.seed)" in text


def test_what_cannot_be_compared_is_refused_in_one_line(tmp_path: Path) -> None:
    watch = {"sharpness": 0.78, "purity": 0.95}
    one, other = make_run(tmp_path / "a", watch), make_run(tmp_path / "b", watch)
    with pytest.raises(ConfigError, match="two or more"):
        compare([one, one], tmp_path / "page.html")
    with pytest.raises(ConfigError, match="holds no run"):
        compare([one, tmp_path], tmp_path / "page.html")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"cannot write .*page\.html"):
        compare([one, other], tmp_path / "file" / "page.html")
    change_setting(other, "task", name="ocr")
    with pytest.raises(ConfigError, match="b: task ocr, geneval"):
        compare([one, other], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_the_unpaired_interval_is_that_of_independent_normal_means() -> None:
    found = unpaired({"mean": 1.0, "low": 0.7, "high": 1.3}, {"mean": 2.0, "low": 1.6, "high": 2.4})
    assert [found[k] for k in ("low", "mean", "high")] == pytest.approx([0.5, 1.0, 1.5])
    nothing = {"mean": None, "low": None, "high": None}
    assert unpaired(nothing, {"mean": 1.0, "low": 0.0, "high": 2.0})["mean"] is None
