"""Draw the pictures of the playground and the report in docs/images: light, dark, on a phone.

python scripts/screenshots.py                     # the playground; needs playwright and a Chromium
python scripts/screenshots.py runs/a runs/b       # a report: top and curves of a, groups of b
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from miniature.render import render
from miniature.scenes import Background, Scene, Shape
from reward_client import RewardClient
from trainer.report.page import write_report

OUT = Path(__file__).parents[1] / "docs" / "images"
PROMPT = "a photo of a red star and a green circle"
ROW = {
    "tag": "color_attr",
    "include": [
        {"class": "star", "count": 1, "color": "red"},
        {"class": "circle", "count": 1, "color": "green"},
    ],
}
LIGHT = Background((236, 232, 226), (3, -2))
SCENES = {
    "seed_0.png": (Shape("star", "red", 18, 22, 8), Shape("circle", "green", 44, 42, 8)),
    "seed_1.png": (Shape("star", "green", 20, 44, 8), Shape("circle", "green", 45, 20, 8)),
    "seed_2.png": (Shape("star", "red", 33, 30, 8),),
}


def shoot(page: Any, url: str, files: list[str], out: Path) -> None:
    """Score the files in a page and write what it shows."""
    page.goto(url)
    page.wait_for_selector(".scorers li")
    page.set_input_files("#images", files)
    page.fill("#prompt", PROMPT)
    page.check("#scorer-geneval")
    page.click("#geneval summary")
    page.fill("#row", json.dumps(ROW))
    page.click("#geneval summary")
    page.click("#score")
    page.wait_for_selector(".card .marks", timeout=60_000)
    page.wait_for_timeout(500)
    if page.viewport_size["width"] < 500:
        page.locator(".card").first.scroll_into_view_if_needed()
        page.locator(".summary").scroll_into_view_if_needed()
    else:
        page.evaluate("document.activeElement.blur()")
        page.evaluate("document.getElementById('form').scrollTop = 0; scrollTo(0, 0)")
        page.wait_for_timeout(300)
    write(page, out)


def write(page: Any, out: Path) -> None:
    """The window as a file of a third of the bytes; rare colours are kept."""
    page.screenshot(path=out)
    Image.open(out).convert("RGB").quantize(256, kmeans=3).save(out, optimize=True)


def report(chromium: str, run: Path, groups: Path) -> None:
    """Curves with the pointer on one, the top in the dark, and a picture explained on a phone."""
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium)
        page = browser.new_page(viewport={"width": 1360, "height": 820})
        page.goto(write_report(run).resolve().as_uri())
        page.evaluate("document.getElementById('curves').scrollIntoView()")
        box = page.locator("svg[data-chart]").nth(1).bounding_box() or {}
        page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.5)
        write(page, OUT / "report.png")
        page = browser.new_page(viewport={"width": 1360, "height": 900}, color_scheme="dark")
        page.goto((run / "report.html").resolve().as_uri())
        page.wait_for_timeout(500)
        write(page, OUT / "report_dark.png")
        page = browser.new_page(viewport={"width": 390, "height": 844}, device_scale_factor=2)
        page.goto(write_report(groups).resolve().as_uri())
        page.locator("#groups .image:visible:has(.why:not(:empty))").last.click()
        page.wait_for_timeout(500)
        write(page, OUT / "report_phone.png")
        browser.close()


def main() -> None:
    """Serve, score, shoot."""
    chromium = shutil.which("chromium") or sys.exit("no chromium here: apt-get install chromium")
    if len(sys.argv) == 3:
        report(chromium, Path(sys.argv[1]), Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, shapes in SCENES.items():
            Image.fromarray(render(Scene(shapes, LIGHT))).save(folder / file)
        ports = folder / "ports.json"
        command = [sys.executable, "-m", "reward_server", "serve", "--port-file", str(ports)]
        command += ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
        server = subprocess.Popen([*command, "geneval", "ocr", "jpeg", "shapes_quality"])
        try:
            while not ports.exists():
                time.sleep(0.2)
            url = f"http://127.0.0.1:{json.loads(ports.read_text())['http']}"
            with RewardClient(url) as client:
                client.wait_ready(timeout_s=180)
            files = [str(folder / file) for file in SCENES]
            with sync_playwright() as driver:
                browser = driver.chromium.launch(executable_path=chromium)
                for suffix, scheme, size, scale in (
                    ("", "light", (1360, 900), 1),
                    ("_dark", "dark", (1360, 900), 1),
                    ("_phone", "light", (390, 844), 2),
                ):
                    page = browser.new_page(
                        viewport={"width": size[0], "height": size[1]},
                        color_scheme=scheme,
                        device_scale_factor=scale,
                    )
                    shoot(page, url, files, OUT / f"playground{suffix}.png")
                browser.close()
        finally:
            server.terminate()
            server.wait(timeout=60)


if __name__ == "__main__":
    main()
