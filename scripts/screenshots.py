"""Draw the pictures of the playground in docs/images: light, dark and on a phone.

python scripts/screenshots.py           # needs playwright and a Chromium
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
        page.evaluate("document.getElementById('form').scrollTop = 0; scrollTo(0, 0)")
    page.screenshot(path=out)
    # A third of the bytes, and nobody sees it.
    Image.open(out).convert("RGB").quantize(128).save(out, optimize=True)


def main() -> None:
    """Serve, score, shoot."""
    chromium = shutil.which("chromium") or sys.exit("no chromium here: apt-get install chromium")
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
