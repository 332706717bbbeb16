"""`scripts/run_figures.py` on runs as the trainer writes them."""

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from tests.trainer_run.test_report import make_run
from trainer.images import load_png

SCRIPT = Path(__file__).parents[2] / "scripts/run_figures.py"


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
