"""Lock files with hashes, one per family of images; `--check` tells offline whether they are true.

    make lock            resolve again, within constraints.txt (needs a package index)
    make audit           this check, and pip-audit where it reaches its data

A lock holds every package of a family but torch's own, whose builds differ by machine (CPU, CUDA)
and so in their hashes. Install torch first, by the version in constraints.txt, and then
`pip install --no-deps --require-hashes -r docker/locks/FAMILY.txt`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).parents[1]
LOCKS = Path("docker/locks")
FAMILIES = {
    "gateway": ("gateway", "otel"),
    "ocr": ("server", "ocr", "otel"),
    "preference": ("server", "preference", "geneval", "otel"),
    "trainer": ("train",),
    "mini": ("server", "ocr", "otel", "train"),
    "ci": ("dev",),
}
# The oldest Python that all versions in constraints.txt support; images use this or a newer one.
PYTHON = "3.11"
_LEFT_OUT = re.compile(r"torch|torchvision|triton|nvidia-.*|cuda-.*")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRAS = re.compile(r"flow-reward\[([a-z, -]+)\]")
_PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)


def requirements_of(extras: tuple[str, ...], project: dict[str, Any]) -> list[str]:
    """The requirements of the base install and of some extras, references between them resolved."""
    found = set(project["dependencies"])
    todo, seen = list(extras), set()
    while todo:
        extra = todo.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for requirement in project["optional-dependencies"][extra]:
            inner = _EXTRAS.fullmatch(requirement)
            todo.extend(re.split(r",\s*", inner[1]) if inner else ())
            found.update(() if inner else (requirement,))
    return sorted(found)


def canonical(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pins(text: str) -> dict[str, str]:
    """Package -> version of all `name==version` lines."""
    return {canonical(name): version for name, version in _PINNED.findall(text)}


def without_torch(text: str) -> str:
    """A resolved file without the packages that are torch's own."""
    blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)
    kept = []
    for block in blocks:
        name = _NAME.match(block)
        if name is None or not _LEFT_OUT.fullmatch(canonical(name[0])):
            kept.append(block)
    return "".join(kept)


def digest(requirements: list[str]) -> str:
    """What a lock was made from: changes with the family's requirements in pyproject.toml."""
    return hashlib.sha256(json.dumps([PYTHON, *requirements]).encode()).hexdigest()[:16]


def problems(root: Path = ROOT) -> list[str]:
    """Say, one line each, where locks, pyproject.toml and constraints.txt disagree."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    constraints = pins((root / "constraints.txt").read_text(encoding="utf-8"))
    found = []
    for family, extras in FAMILIES.items():
        file = root / LOCKS / f"{family}.txt"
        name = f"{LOCKS}/{family}.txt"
        if not file.exists():
            found.append(f"{name} is missing: run `make lock`")
            continue
        text = file.read_text(encoding="utf-8")
        requirements = requirements_of(extras, project)
        if f"digest {digest(requirements)}" not in text:
            found.append(f"{name} was made from other requirements: run `make lock`")
        locked = pins(text)
        for package, version in locked.items():
            if constraints.get(package, version) != version:
                found.append(
                    f"{name} has {package} {version}, constraints.txt {constraints[package]}:"
                    " run `make lock`"
                )
        for requirement in requirements:
            package = canonical(_NAME.match(requirement)[0])  # pyright: ignore[reportOptionalSubscript]
            is_old_python_only = "python_version <" in requirement
            if not (package in locked or _LEFT_OUT.fullmatch(package) or is_old_python_only):
                found.append(f"{name} lacks {package}: run `make lock`")
        blocks = re.split(r"^(?=[A-Za-z0-9])", text, flags=re.MULTILINE)[1:]
        bare = [block.split()[0] for block in blocks if "--hash=sha256:" not in block]
        found.extend(f"{name}: {package} has no hash" for package in bare)
    return found


def lock(family: str, uv: str) -> None:
    """Resolve one family and write its file."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = requirements_of(FAMILIES[family], project)
    command = [uv, "pip", "compile", "-", "--constraint", "constraints.txt", "--generate-hashes"]
    command += ["--universal", "--python-version", PYTHON, "--no-header", "--quiet"]
    command += ["--no-annotate"]
    resolved = subprocess.run(
        command,
        input="\n".join(requirements),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if resolved.returncode:
        raise SystemExit(f"lock: {family} cannot be resolved:\n{resolved.stderr}")
    head = (
        f"# Family {family!r}: extras {', '.join(FAMILIES[family])}; made by `make lock`,"
        f" digest {digest(requirements)}.\n"
        f"# Python >= {PYTHON}. Without torch's own packages: see scripts/lock.py.\n"
    )
    file = ROOT / LOCKS / f"{family}.txt"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(head + without_torch(resolved.stdout), encoding="utf-8")
    print(f"{LOCKS}/{family}.txt: {len(pins(file.read_text()))} packages")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Write docker/locks, or check them.")
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="default: all")
    parser.add_argument("--check", action="store_true", help="only compare, without an index")
    parser.add_argument("--uv", default="uv", help="the program that resolves")
    arguments = parser.parse_args()
    if unknown := set(arguments.families) - set(FAMILIES):
        parser.error(f"no family {min(unknown)!r}: known are {', '.join(FAMILIES)}")
    if arguments.check:
        wrong = problems()
        print("\n".join(wrong) or f"{LOCKS}: true to pyproject.toml and constraints.txt")
        raise SystemExit(1 if wrong else 0)
    for family in arguments.families or FAMILIES:
        lock(family, arguments.uv)


if __name__ == "__main__":
    main()
