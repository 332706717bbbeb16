"""Known vulnerabilities of all locked packages, by pip-audit; says so where it cannot know.

Exit status 1 if a package has a known vulnerability; 0 if none has, or if nothing could be asked
(then the reason is printed: silence would read as a clean bill).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile

from lock import LOCKS, ROOT, pins

_TIMEOUT_S = 300.0


def locked() -> list[str]:
    """`name==version` of every package in any lock."""
    found = set()
    for file in sorted((ROOT / LOCKS).glob("*.txt")):
        found |= set(pins(file.read_text(encoding="utf-8")).items())
    return [f"{name}=={version}" for name, version in sorted(found)]


def ask(pip_audit: str, packages: list[str]) -> list[dict[str, object]] | str:
    """What pip-audit says about each package, or why it says nothing."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(packages))
        file.flush()
        command = [pip_audit, "--no-deps", "--disable-pip", "--progress-spinner", "off"]
        command += ["--format", "json", "-r", file.name]
        try:
            told = subprocess.run(
                command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return f"no answer in {_TIMEOUT_S:.0f} s"
    try:
        return json.loads(told.stdout)["dependencies"]
    except (ValueError, KeyError):
        return (told.stderr.strip().splitlines() or ["no output"])[-1][:200]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Known vulnerabilities of all locked packages.")
    parser.add_argument("pip_audit", help="the program")
    packages = locked()
    found = ask(parser.parse_args().pip_audit, packages)
    if isinstance(found, str):
        print(f"pip-audit: SKIPPED, its data cannot be reached: {found}")
        return
    known = [entry for entry in found if "skip_reason" not in entry]
    bad = [entry for entry in known if entry.get("vulns")]
    for entry in bad:
        print(f"{entry['name']} {entry['version']}: {json.dumps(entry['vulns'])[:300]}")
    if not known:
        reason = found[0]["skip_reason"] if found else "no packages"
        print(f"pip-audit: SKIPPED, it knows none of the {len(packages)} packages ({reason})")
        return
    print(f"pip-audit: {len(known)} of {len(packages)} packages known, {len(bad)} vulnerable")
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
