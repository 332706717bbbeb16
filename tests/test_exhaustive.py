"""The table of slow groups: it guards what is there, and every marked test belongs to a group."""

import shlex
import subprocess
from fnmatch import fnmatch
from pathlib import Path

import pytest

from scripts.exhaustive import GROUPS, digest, read_groups

ROOT = Path(__file__).parents[1]
TABLE = read_groups(GROUPS.read_text(encoding="utf-8"))


def repository(folder: Path) -> Path:
    (folder / "a").mkdir()
    (folder / "a" / "one.py").write_text("1")
    (folder / "b.py").write_text("2")
    subprocess.run(["git", "init", "-q", "."], cwd=folder, check=True)
    subprocess.run(["git", "add", "."], cwd=folder, check=True)
    return folder


def test_a_digest_changes_with_the_files_it_guards_and_with_no_others(tmp_path: Path) -> None:
    root = repository(tmp_path)
    before = digest(root, ("a/**",))
    (root / "b.py").write_text("3")
    assert digest(root, ("a/**",)) == before
    (root / "a" / "one.py").write_text("2")
    changed = digest(root, ("a/**",))
    assert changed != before
    (root / "a" / "one.py").unlink()
    assert digest(root, ("a/**",)) not in {before, changed}


def test_a_guard_of_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names no tracked file"):
        digest(repository(tmp_path), ("moved/**",))


@pytest.mark.parametrize("group", TABLE, ids=lambda group: group.name)
def test_every_guard_names_tracked_files(group) -> None:
    assert digest(ROOT, group.guards)


@pytest.mark.parametrize("group", TABLE, ids=lambda group: group.name)
def test_no_group_guards_a_whole_package(group) -> None:
    whole = {f"{folder.name}/**" for folder in ROOT.iterdir() if (folder / "__init__.py").is_file()}
    assert {"trainer/**", "reward_server/**", "reward_client/**"} <= whole
    assert whole.isdisjoint(group.guards)


def test_every_exhaustive_test_is_run_by_a_group_and_guarded_by_it() -> None:
    marked = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "tests").rglob("test_*.py")
        if "pytest.mark.exhaustive" in path.read_text(encoding="utf-8") and path != Path(__file__)
    }
    assert marked
    run_by = {
        name: [
            group
            for group in TABLE
            if {name, *map(str, Path(name).parents)} & set(shlex.split(group.command))
        ]
        for name in marked
    }
    assert [name for name, groups in run_by.items() if len(groups) != 1] == []
    unguarded = [
        name
        for name, (group,) in run_by.items()
        if not any(fnmatch(name, guard) for guard in group.guards)
    ]
    assert unguarded == []
