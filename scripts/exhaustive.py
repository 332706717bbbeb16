"""Run the slow test groups of tests/exhaustive.toml: all, or those whose guarded files changed.

`make test-all` runs every group and records, in tests/exhaustive.lock, a digest of the files that
each group guards. `.ci/run` runs only the groups whose digest differs from the recorded one, so a
change of the trainer does not rebuild containers.
"""

import argparse
import hashlib
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

ROOT = Path(__file__).parents[1]
GROUPS = ROOT / "tests" / "exhaustive.toml"
LOCK = ROOT / "tests" / "exhaustive.lock"


@dataclass(frozen=True)
class Group:
    """One group of slow tests: the command, and the git pathspecs of the files it guards."""

    name: str
    command: str
    guards: tuple[str, ...]


def read_groups(text: str) -> tuple[Group, ...]:
    """The groups of a TOML document, in its order."""
    return tuple(
        Group(name, table["command"], tuple(table["guards"]))
        for name, table in tomllib.loads(text).items()
    )


def digest(root: Path, guards: tuple[str, ...]) -> str:
    """SHA-256 over names and contents of the tracked files that `guards` name.

    Raises:
        ValueError: a guard names no tracked file, so it guards nothing.
    """
    total = hashlib.sha256()
    for guard in guards:
        names = subprocess.run(
            ["git", "ls-files", "-z", "--", f":(glob){guard}"],
            cwd=root,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split("\0")[:-1]
        if not names:
            raise ValueError(f"tests/exhaustive.toml: the guard {guard!r} names no tracked file")
        for name in sorted(names):
            content = (root / name).read_bytes() if (root / name).is_file() else b"deleted"
            total.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()


def recorded(groups: Sequence[Group]) -> dict[str, str]:
    """Digest by group as of its last full pass; nothing of groups that are no more."""
    found = json.loads(LOCK.read_text(encoding="utf-8")) if LOCK.is_file() else {}
    return {group.name: found[group.name] for group in groups if group.name in found}


def record(digests: Mapping[str, str]) -> None:
    """Write the lock file."""
    LOCK.write_text(json.dumps(dict(digests), indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main() -> int:
    """Run the selected groups; the exit status is 1 when any fails."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--all", action="store_true", help="also groups whose files are unchanged")
    parser.add_argument("--record", action="store_true", help="record the groups that pass")
    parser.add_argument("groups", nargs="*", help="names from tests/exhaustive.toml (default: all)")
    options = parser.parse_args()
    groups = read_groups(GROUPS.read_text(encoding="utf-8"))
    unknown = set(options.groups) - {group.name for group in groups}
    if unknown:
        parser.error(f"no such group: {', '.join(sorted(unknown))}; see tests/exhaustive.toml")
    known, failed = recorded(groups), []
    for group in groups:
        if options.groups and group.name not in options.groups:
            continue
        now = digest(ROOT, group.guards)
        if now == known.get(group.name) and not options.all:
            print(f"== {group.name}: nothing it guards has changed since its last pass", flush=True)
            continue
        print(f"== {group.name}: {group.command}", flush=True)
        start = time.monotonic()
        status = subprocess.run(shlex.split(group.command), cwd=ROOT, check=False).returncode
        print(
            f"== {group.name}: exit status {status}, {time.monotonic() - start:.0f} s", flush=True
        )
        if status:
            failed.append(group.name)
        elif options.record:
            known[group.name] = now
            record(known)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
