"""The report of a run in a real browser: what moves, what stays, and that it fits."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.playground.contrast import contrast
from tests.trainer_run.test_report import make_run
from trainer.images import data_url
from trainer.report.page import write_report

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(300)]
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
if BROWSER is None:
    pytest.skip("no Chromium here: apt-get install chromium", allow_module_level=True)

HOSTILE = "</script><img src=x onerror=\"document.title='hacked'\">"


def group(prompt: str, reward: float) -> dict[str, Any]:
    picture = data_url(np.full((64, 64, 3), 90, np.uint8), limit_px=64, limit_bytes=8000)
    details = {
        "objects": [{"class": "star", "score": 0.9, "box": [8, 16, 40, 48], "color": HOSTILE}],
        "strict_reasons": [f"expected {HOSTILE}"],
    }
    found = {"score": reward, "components": {"soft": reward}, "details": details}
    shown = {"reward": reward, "terms": {"geneval": reward}, "picture": picture, "size": [64, 64]}
    shown |= {"explained": {"geneval": found}, "error": ""}
    described = {"prompt": prompt, "category": "colors", "mean": reward}
    return {**described, "images": 16, "failed": 0, "shown": [shown] * 8}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_run(tmp_path_factory.mktemp("report") / "run", {"sharpness": 0.6, "purity": 0.9})
    (folder / "groups").mkdir()
    for epoch in (1, 30):
        groups = [group(f"best of {epoch}", 0.9), group(HOSTILE, 0.1)]
        record = {"epoch": epoch, "groups": groups}
        (folder / "groups" / f"epoch_{epoch:06d}.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any, run: Path) -> Iterator[Any]:
    """The report, which asks for nothing and says nothing in the console."""
    said: list[str] = []
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: said.append(request.url))
    page.goto(write_report(run).as_uri())
    yield page
    page.close()
    assert {url for url in said if not url.startswith("data:")} == {(run / "report.html").as_uri()}


def test_pointing_at_a_curve_and_its_arrow_keys_show_values(page: Any) -> None:
    card = page.locator(".charts .card", has=page.locator("h4:text-is('geneval')")).first
    svg, tip = card.locator("svg"), card.locator(".tip")
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    page.mouse.move(box["x"] + box["width"] - 16, box["y"] + 60)
    assert tip.text_content() == "epoch 30geneval 0.8 [0.78, 0.82]"
    page.mouse.move(5, 5)
    assert tip.is_hidden()
    svg.focus()
    page.keyboard.press("ArrowLeft")
    assert tip.text_content().startswith("epoch 19")
    heights = page.locator(".charts h4").evaluate_all("(all) => all.map((e) => e.offsetHeight)")
    assert max(heights) < 30


def test_the_slider_shows_one_evaluation_beside_the_base(page: Any) -> None:
    def shown() -> list[str]:
        return page.locator(".pairs [data-slide]:visible span").all_text_contents()

    assert shown() == ["epoch 30"] * 2
    page.focus(".control input")
    page.keyboard.press("Home")
    assert shown() == ["epoch 3"] * 2
    assert page.locator(".control output").text_content() == "epoch 3 0.3 min"
    assert page.locator(".pairs img:visible").count() == 4
    page.click(".control button")
    page.wait_for_function("document.querySelector('.control input').value === '3'")
    page.click(".control button")


def test_groups_open_with_marks_and_words_and_nothing_in_them_is_code(page: Any) -> None:
    page.click(".tabs button:has-text('epoch 1')")
    assert page.locator("#groups h4:visible").first.text_content() == "best of 1"
    page.locator("#groups .image:visible").nth(8).click()
    dialog = page.locator("dialog[open]")
    assert HOSTILE in dialog.text_content()
    assert f"expected {HOSTILE}" in dialog.text_content()
    mark, picture = dialog.locator("polygon").bounding_box(), dialog.locator("img").bounding_box()
    scale = picture["width"] / 64
    assert mark["x"] - picture["x"] == pytest.approx(8 * scale, abs=scale)
    assert mark["width"] == pytest.approx(32 * scale, abs=2 * scale)
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    assert page.title() == "run · Flow-GRPO report"


def test_a_page_that_loads_itself_again_stays_where_it_was(browser: Any, run: Path) -> None:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(write_report(run, reload_s=1).as_uri())
    page.focus(".control input")
    page.keyboard.press("ArrowLeft")
    before = page.input_value(".control input")
    page.click("summary:has-text('Versions')")
    page.evaluate("scrollTo(0, 1500); window.old = true")
    page.wait_for_function("window.old === undefined", timeout=30_000)
    page.wait_for_function("scrollY === 1500")
    assert page.input_value(".control input") == before
    assert page.locator("details[open] summary:has-text('Versions')").count() == 1
    page.close()


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (360, "light"), (900, "dark")])
def test_it_fits_narrow_screens_and_is_legible(
    browser: Any, run: Path, width: int, scheme: str
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 740}, color_scheme=scheme)
    page.goto(write_report(run).as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for selector in (".note", ".charts p", ".under span", "td", ".badge", ".toc a", ".alarm b"):
        assert contrast(page, selector) >= 4.5, selector
    page.close()
