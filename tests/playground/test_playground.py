"""The playground in a real browser: what it sends, draws and says, against real servers."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fake_judge import FakeEndpoint
from google.protobuf import json_format
from PIL import Image, ImageDraw, ImageFont
from server_process import ROOT, Server, run_cli, running

from miniature.render import render
from miniature.scenes import Background, Scene, Shape
from reward_client import RewardClient
from reward_client._pb.reward.v1 import reward_pb2 as pb
from reward_client._wire import convert
from tests.playground.contrast import contrast

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(300)]
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
if BROWSER is None:
    pytest.skip("no Chromium here: apt-get install chromium", allow_module_level=True)

CONFIG = """
[scorers.geneval]
options = { detector = "shapes" }
[scorers.ocr]
options = { frame_stride = 1 }
[scorers.jpeg]
[scorers.unifiedreward]
options = { base_url = "JUDGE" }
[scorers.compared]
scorer = "tests.scorers_bad.bad:Mean"
options = { inputs = "image,references" }
[scorers.refuses]
scorer = "tests.scorers_bad.bad:FailsSelfTest"
"""
RED_STAR = Scene(
    (Shape("star", "red", 16, 40, 7.0), Shape("circle", "blue", 44, 18, 7.0)),
    Background((236, 232, 226), (0, 0)),
)
GENEVAL = {"tag": "colors", "include": [{"class": "star", "count": 1, "color": "green"}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with FakeEndpoint() as judge:
        toml = CONFIG.replace("JUDGE", judge.base_url)
        ready = ("geneval", "ocr", "jpeg", "unifiedreward", "compared")
        with running(tmp_path_factory.mktemp("play"), toml, wait_for=ready) as server:
            yield server


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    Image.fromarray(render(RED_STAR)).save(folder / "shapes.png")
    sign = Image.new("RGB", (256, 96), (250, 250, 250))
    ImageDraw.Draw(sign).text((40, 20), "STOP", (10, 10, 10), ImageFont.load_default(48))
    sign.save(folder / "sign.png")
    sign.save(folder / "it's.jpg", quality=95)
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    return folder


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page whose console must stay silent; a refusal by the server is no error of the page."""
    said: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    yield page
    context.close()
    assert not [line for line in said if "Failed to load resource" not in line]


def opened(page, server: Server) -> None:
    page.goto(server.http_url + "/")
    page.wait_for_selector(".scorers li")


def choose(page, *names: str) -> None:
    """Tick these scorers and no others."""
    for box in page.query_selector_all(".scorers input[type=checkbox]"):
        box.set_checked(box.get_attribute("id").removeprefix("scorer-") in names)


def score(page) -> None:
    """Send, and wait until the answer or the error is there."""
    page.click("#score")
    page.wait_for_selector("#score:not([disabled])")


def value(page, scorer: str, card: int = 0) -> float:
    shown = page.locator(".card").nth(card).locator(f"[data-scorer={scorer}] .value")
    return float(shown.get_attribute("title"))


def test_objects_are_drawn_where_the_scorer_saw_them(page, server: Server, files: Path) -> None:
    opened(page, server)
    page.set_input_files("#images", str(files / "shapes.png"))
    choose(page, "geneval", "jpeg")
    page.click("summary:has-text('Paste a row')")
    page.fill("#row", json.dumps(GENEVAL))
    assert page.input_value(".clause .class") == "star"
    assert page.input_value(".clause .color") == "green"
    score(page)
    page.wait_for_selector(".marks polygon.counted")
    with RewardClient(server.http_url) as client:
        image = Image.open(files / "shapes.png")
        result = client.score(
            [image], "", ["geneval", "jpeg"], specs=[GENEVAL], include_details=True
        )
    assert value(page, "geneval") == result["geneval"].scores[0]
    assert value(page, "jpeg") == result["jpeg"].scores[0]
    details = result["geneval"].details
    assert details is not None
    seen = (details[0] or {})["objects"]
    drawn = [
        [float(v) * 64 / 1000 for v in polygon.get_attribute("points").replace(",", " ").split()]
        for polygon in page.query_selector_all(".marks polygon.counted")
    ]
    expected = sorted([*o["box"][:2], o["box"][2], o["box"][1], *o["box"][2:]] for o in seen)
    assert np.array(sorted(corners[:6] for corners in drawn)) == pytest.approx(
        np.array(expected), abs=0.02
    )
    labels = page.locator(".marks .tag text").all_text_contents()
    assert sorted(text.split(" ")[:2] for text in labels) == [["blue", "circle"], ["red", "star"]]
    reasons = page.locator(".reasons").text_content()
    assert "green" in reasons
    assert "red" in reasons
    assert result["geneval"].fingerprint in (
        page.locator(".summary tr[data-scorer=geneval] code").get_attribute("title")
    )


def test_text_and_the_judges_words_are_shown(page, server: Server, files: Path) -> None:
    opened(page, server)
    page.set_input_files("#images", str(files / "sign.png"))
    choose(page, "ocr", "unifiedreward")
    page.fill("#prompt", "a <b>sign</b>")
    page.fill("#target", "SHOP")
    score(page)
    page.wait_for_selector(".marks polygon.text")
    assert page.locator(".tag.text text").text_content().startswith("STOP")
    assert page.locator(".reading").text_content() == "Asked for SHOP, read STOP."
    assert 0 < value(page, "ocr") < 1
    assert "Score" in page.locator(".judge").text_content()
    # What comes from elsewhere is text, never markup.
    assert page.locator(".summary q").text_content() == "a <b>sign</b>"
    assert page.locator(".summary q b").count() == 0


def test_an_item_that_fails_says_why_beside_the_others(page, server: Server, files: Path) -> None:
    opened(page, server)
    page.set_input_files("#images", [str(files / "broken.png"), str(files / "shapes.png")])
    choose(page, "jpeg", "geneval", "refuses")
    page.fill(".clause .class", "strar")
    score(page)
    broken, good = page.locator(".card").all()
    assert "INVALID_ARGUMENT" in broken.locator("[data-scorer=jpeg] .failed").text_content()
    assert value(page, "jpeg", card=1) > 0
    assert "star" in good.locator("[data-scorer=geneval] .failed").text_content()
    assert "UNAVAILABLE" in good.locator("[data-scorer=refuses] .failed").text_content()
    assert good.locator("[data-scorer=refuses] .value").count() == 0
    assert page.locator(".summary tr[data-scorer=jpeg] .failed").text_content() == "1"
    assert page.locator("li[data-state=FAILED] .state").text_content().startswith("FAILED ")


def test_a_request_that_fails_as_a_whole_is_one_line(page, server: Server, files: Path) -> None:
    opened(page, server)
    score(page)
    assert page.locator("#message").text_content() == "Choose an image first."
    page.set_input_files("#images", str(files / "sign.png"))
    choose(page, "jpeg")
    page.fill("#prompt", "x" * 70_000)
    score(page)
    message = page.locator("#message")
    assert "prompt" in message.text_content()
    assert "failed" in message.get_attribute("class")
    page.context.set_offline(True)
    score(page)
    assert "cannot be reached" in message.text_content()
    page.context.set_offline(False)


def test_references_videos_and_two_specs_at_once(page, server: Server, files: Path) -> None:
    opened(page, server)
    page.set_input_files("#images", [str(files / "sign.png"), str(files / "it's.jpg")])
    page.check("#video")
    choose(page, "ocr", "geneval", "compared")
    page.fill("#target", "STOP")
    page.fill(".clause .class", "star")
    page.set_input_files("#reference-images", str(files / "shapes.png"))
    score(page)
    page.wait_for_selector(".frames .marks polygon.text")
    assert page.locator(".card").count() == 1
    assert page.locator(".frames .picture:has(polygon.text)").count() == 2
    assert value(page, "ocr") == 1
    assert value(page, "compared") > 0
    # The other request of the two went its own way.
    refusal = page.locator(".card [data-scorer=geneval] .failed").text_content()
    assert "exactly one image" in refusal


def test_the_code_shown_gives_the_same_scores(
    page, server: Server, files: Path, tmp_path: Path
) -> None:
    opened(page, server)
    page.set_input_files("#images", [str(files / "sign.png"), str(files / "it's.jpg")])
    choose(page, "ocr", "jpeg")
    page.fill("#prompt", 'it\'s a "STOP" sign,\n@home')
    score(page)
    scores = [[value(page, name, card) for card in (0, 1)] for name in ("ocr", "jpeg")]
    page.click("summary:has-text('This request as code')")
    code = page.locator(".snippets pre")
    run = {"cwd": files, "capture_output": True, "text": True, "timeout": 60}
    env = {**os.environ, "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    if shutil.which("curl"):
        answer = json.loads(
            subprocess.run(["bash", "-c", code.text_content()], check=True, env=env, **run).stdout
        )
        assert [result["scores"] for result in answer["results"]] == scores
    page.click("[role=tab]:has-text('Python')")
    page.click(".snippets button:has-text('Copy')")
    program = page.evaluate("navigator.clipboard.readText()")
    assert program == code.text_content()
    printed = subprocess.run([sys.executable, "-c", program], check=True, env=env, **run).stdout
    assert printed == "".join(
        f"{name} ({a}, {b}) \n" for name, (a, b) in zip(("ocr", "jpeg"), scores, strict=True)
    )
    page.click("[role=tab]:has-text('grpcurl')")
    assert "reward.v1.RewardService/Score < request.json" in code.text_content()
    with page.expect_download() as saved:
        page.click("button:has-text('Save request.json')")
    saved.value.save_as(tmp_path / "request.json")
    message = json_format.Parse((tmp_path / "request.json").read_text(), pb.ScoreRequest())
    request = convert.request_from_proto(message)
    with server.client() as client:
        results = client.score(request.items, request.scorers).results
    assert [list(result.scores) for result in results.values()] == scores


def test_a_key_is_asked_for_refused_and_used(browser, files: Path, tmp_path: Path) -> None:
    made = run_cli("keys", "create", "me", "--file", str(tmp_path / "keys.toml"))
    toml = f"""
[server]
http = "127.0.0.1:0"
grpc = "127.0.0.1:0"
log_format = "json"
keys_file = "{tmp_path / "keys.toml"}"
[scorers.jpeg]
"""
    with running(tmp_path, toml) as server:
        page = browser.new_page()
        page.goto(server.http_url)
        page.wait_for_selector("#key-dialog[open]")
        page.fill("#key", "frk_wrong")
        page.keyboard.press("Enter")
        page.wait_for_selector("#key-dialog[open] p:has-text('key')")
        assert page.locator(".scorers li").count() == 0
        page.fill("#key", made.stdout.strip())
        page.keyboard.press("Enter")
        page.wait_for_selector(".scorers li[data-state=READY]", timeout=60_000)
        page.set_input_files("#images", str(files / "sign.png"))
        score(page)
        assert value(page, "jpeg") > 0
        page.click("summary:has-text('This request as code')")
        assert "$REWARD_API_KEY" in page.locator(".snippets pre").text_content()
        assert made.stdout.strip() not in page.content()
        page.close()


def test_by_keyboard_alone_with_history_and_comparison(page, server: Server) -> None:
    opened(page, server)
    page.focus("[data-example=shapes]")
    page.keyboard.press("Enter")
    page.wait_for_selector(".card [data-scorer=geneval]")
    page.focus(".pick")
    page.keyboard.press("Space")
    assert "shapes.png" in page.locator("#tray").text_content()
    page.focus(".thumbs button")
    page.keyboard.press("Enter")
    page.focus("[data-example=sign]")
    page.keyboard.press("Enter")
    page.wait_for_selector(".card [data-scorer=ocr] .value")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#history li:nth-child(3)")
    page.focus(".pick")
    page.keyboard.press("Enter")
    page.wait_for_selector("#compare[open]")
    table = page.locator("#compare tbody").text_content()
    assert "not scored" in table
    jpeg = page.locator("#compare tr:has(th:text-is('jpeg')) td").all_text_contents()
    assert float(jpeg[2]) == pytest.approx(float(jpeg[1]) - float(jpeg[0]), rel=0.01)
    page.keyboard.press("Escape")
    page.wait_for_selector("#tray", state="hidden")
    page.focus("#history li:last-child button")
    page.keyboard.press("Enter")
    page.wait_for_selector(".card [data-scorer=geneval]")
    assert page.input_value("#prompt") == "a photo of a red star and a green circle"
    assert page.is_checked("#scorer-geneval")


def test_images_are_dropped_and_pasted(page, server: Server, files: Path) -> None:
    opened(page, server)
    data = base64.b64encode((files / "sign.png").read_bytes()).decode()
    transfer = """([data, name, type]) => {
      const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
      const transfer = new DataTransfer();
      transfer.items.add(new File([bytes], name, { type }));
      return transfer; }"""
    drop = page.evaluate_handle(transfer, [data, "dropped.png", "image/png"])
    page.dispatch_event("#drop", "drop", {"dataTransfer": drop})
    paste = page.evaluate_handle(transfer, [data, "image.png", "image/png"])
    page.evaluate(
        "(data) => document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: data}))",
        paste,
    )
    names = page.locator("#thumbs img").evaluate_all("(all) => all.map((image) => image.alt)")
    assert names == ["dropped.png", "pasted-1.png"]
    other = page.evaluate_handle(transfer, [data, "notes.txt", "text/plain"])
    page.dispatch_event("#drop", "drop", {"dataTransfer": other})
    assert page.locator("#message").text_content().startswith("notes.txt: not a PNG")
    assert page.locator("#thumbs li").count() == 2


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_is_legible(browser, server: Server, scheme: str) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    page = context.new_page()
    opened(page, server)
    page.click("[data-example=shapes]")
    page.wait_for_selector(".card .marks")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for selector in ("#score", ".hint", ".reasons", "td", ".needs"):
        assert contrast(page, selector) >= 4.5, (scheme, selector)
    shot = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"))
    assert bool(shot[200:210, 4].mean() < 128) == (scheme == "dark")
    context.close()
