"""`pip install` with a line of progress; what pip says goes to VENV/pip.log, its errors to stderr.

python scripts/install.py .venv --constraint constraints.txt --editable '.[dev]'
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

PLAIN_EVERY_S = 20.0
MB = 1e6
DOES = {"Collecting": "looking for", "Processing": "reading", "Downloading": "downloading"}


class Pip:
    """What a running pip is doing, read from its lines (`--progress-bar raw`)."""

    def __init__(self, site: Path) -> None:
        self.site = site
        self.doing, self.packages, self.done_bytes = "asking the package index", 0, 0
        self.file_bytes = self.file_size_bytes = 0
        self.installing, self.before = 0, 0

    def read(self, line: str) -> None:
        """Take note of one line."""
        if found := re.match(r"Progress (\d+) of (\d+)", line):
            self.file_bytes, self.file_size_bytes = int(found[1]), int(found[2])
        elif found := re.match(r"\s*(Collecting|Processing|Downloading) ([^\s<>=!~;]+)", line):
            verb, what = found[1], found[2].rstrip("/").rsplit("/", 1)[-1]
            self.done_bytes += self.file_bytes
            self.file_bytes = self.file_size_bytes = 0
            self.packages += verb != "Downloading"
            package = what if verb == "Collecting" else what.split("-")[0]
            self.doing = f"{DOES[verb]} {package}"
        elif found := re.match(r"\s*Building (?:editable|wheel) for ([\w.-]+)", line):
            self.doing = f"building {found[1]}"
        elif found := re.match(r"Installing collected packages: (.*)", line):
            self.installing, self.before = len(found[1].split(",")), self._there()

    def _there(self) -> int:
        return len(list(self.site.glob("*.dist-info")))

    def line(self, elapsed_s: float) -> str:
        """Time, what is done, and how far it is."""
        parts = [f"{int(elapsed_s) // 60}:{int(elapsed_s) % 60:02d}"]
        if self.installing:
            done = min(max(self._there() - self.before, 0), self.installing)
            return "  ".join([*parts, f"unpacking {done} of {self.installing} packages"])
        text = self.doing
        if self.file_size_bytes:
            text += f" {self.file_bytes / MB:.0f} of {self.file_size_bytes / MB:.0f} MB"
        parts += [text, f"{self.packages} packages found"]
        total_bytes = self.done_bytes + self.file_bytes
        if total_bytes > MB:
            parts.append(f"{total_bytes / MB:.0f} MB, {total_bytes / MB / elapsed_s:.1f} MB/s")
        return "  ".join(parts)


def install(venv: Path, arguments: list[str]) -> int:
    """Run pip in `venv`; return its exit code."""
    log, began = venv / "pip.log", time.monotonic()
    command = [str(venv / "bin" / "python"), "-m", "pip", "install"]
    # The pip of Python 3.10 to 3.12 has no raw progress.
    subprocess.run([*command, "-qqq", "--upgrade", "pip>=24.1"], check=False)
    command += ["--no-input", "--progress-bar", "raw", *arguments]
    (site,) = venv.glob("lib/python*/site-packages")
    state, shown = Pip(site), began
    with (
        log.open("a", encoding="utf-8") as file,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        ) as pip,
    ):
        lines: list[str] = []

        def follow() -> None:
            assert pip.stdout is not None
            for line in pip.stdout:
                state.read(line)
                if not line.startswith("Progress "):
                    file.write(line)
                    lines.append(line)

        reader = threading.Thread(target=follow)
        reader.start()
        terminal = sys.stdout.isatty()
        while reader.is_alive():
            reader.join(0.25)
            now = time.monotonic()
            if terminal or now - shown >= PLAIN_EVERY_S:
                shown = now
                text = f"  {state.line(now - began)}"
                print(f"\r{text[:78]:78}" if terminal else text, end="" if terminal else "\n")
                sys.stdout.flush()
        status = pip.wait()
    if terminal:
        print(f"\r{'':78}\r", end="")
    if status:
        said = [line for line in lines if not line.startswith("WARNING")]
        first = next((n for n, line in enumerate(said) if line.startswith("ERROR")), 0)
        print("".join(said[first:][-15:]), end="", file=sys.stderr)
        print(f"pip failed; everything it said: {log}", file=sys.stderr)
    else:
        print(f"  {state.installing} packages in {time.monotonic() - began:.0f} s", flush=True)
    return status


if __name__ == "__main__":
    sys.exit(install(Path(sys.argv[1]), sys.argv[2:]))
