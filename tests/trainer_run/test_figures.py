"""`scripts/run_figures.py` and `scripts/experiments.py` on runs as the trainer writes them."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from tests.trainer_run.test_report import make_run
from trainer.images import load_png

SCRIPTS = Path(__file__).parents[2] / "scripts"
SCRIPT, EXPERIMENTS = SCRIPTS / "run_figures.py", SCRIPTS / "experiments.py"


def test_figures_show_every_run_and_evaluation(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"sharpness": 0.8, "purity": 0.9})
    other = make_run(tmp_path / "other", {"sharpness": 0.8, "purity": 0.9}, gain=0.1)
    command = [sys.executable, str(SCRIPT), "--run", f"<first>={run}", "--run", f"second={other}"]
    command += ["--control", "more=0.55", "--grid", str(run), "--out", str(tmp_path)]
    subprocess.run(command, check=True, timeout=120)

    drawing = ElementTree.parse(tmp_path / "miniature_curve.svg").getroot()
    texts = [element.text or "" for element in drawing.iter() if element.tag.endswith("}text")]
    assert {"<first> 0.80", "second 0.60", "more 0.55", "colors <b> 0.80"} <= set(texts)
    lines = [element for element in drawing.iter() if element.tag.endswith("}polyline")]
    assert len(lines) == 2 + 1 + 2  # runs, control, categories of the first

    pixels = load_png(tmp_path / "miniature_samples.png")
    # make_run paints the epoch as a grey level: the last row shows the last evaluation.
    assert np.array_equal(pixels[-64, -64], [30, 30, 30])


def test_experiments_are_a_figure_and_a_table_per_question(tmp_path: Path) -> None:
    runs, docs = tmp_path / "runs", tmp_path / "docs"
    runs.mkdir()
    (docs / "images").mkdir(parents=True)
    for name, gain in (("reference", 0.3), ("kl_off", 0.1), ("a___0.1", 0.2)):
        folder = make_run(runs / f"{name}-seed0", {"sharpness": 0.4, "purity": 0.9}, gain=gain)
        # One that has not ended yet has no result, and is left out.
        (folder / ("result.json" if name != "a___0.1" else "later")).write_text("{}")
    command = [sys.executable, str(EXPERIMENTS), "report", "--out", str(runs), "--docs", str(docs)]
    said = subprocess.run(command, check=True, timeout=120, capture_output=True, text=True).stdout

    assert {path.name for path in (docs / "images").iterdir()} == {
        "experiment_kl.svg",
        "experiment_samples.png",
    }
    drawing = ElementTree.parse(docs / "images" / "experiment_kl.svg").getroot()
    texts = [element.text for element in drawing.iter() if element.tag.endswith("}text")]
    assert {"reference", "KL off"} <= set(texts)
    cells = {row.split(" | ")[0]: row.split(" | ") for row in said.splitlines() if "| " in row}
    # make_run's counting lies 0.1 below its colours; both have as many images.
    assert cells["| reference"][3] == "0.75"
    assert cells["| KL off"][3] == "0.55"
    assert cells["| KL off"][5] == "sharpness -50%"
    assert load_png(docs / "images" / "experiment_samples.png").shape == (54 + 3 * 128, 348, 3)
