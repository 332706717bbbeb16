"""All checks of an audit, on scorers of which we know what they see."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_audit_scorers import JUDGE, PICTURES, WATCHED, audited, loaded, verdicts

from reward_server.audit import drawings
from reward_server.audit.checks import Plan
from reward_server.audit.run import audit
from reward_server.audit.transforms import BATTERIES
from tests.server.server_process import run_cli, running

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(600)]


def test_no_check_finds_anything_in_a_judge_without_faults() -> None:
    result = audited(loaded(JUDGE), *BATTERIES, search_budget=75)
    assert {*verdicts(result).values()} == {"pass"}, verdicts(result)
    assert len(result["checks"]) == 42


def test_ocr_is_gained_by_written_text_only_where_extra_text_is_free() -> None:
    pictures = drawings.words(2)
    plan = Plan(("prompt_text", "text_wall", "blank_picture", "swapped"))
    substring, soft = (
        verdicts(audit(loaded("ocr", output), pictures, plan, WATCHED))
        for output in ("flowgrpo", "soft")
    )
    assert substring["prompt_text"] == "intended"
    assert substring["text_wall"] in ("warn", "fail")
    assert soft["text_wall"] == "pass"
    for found in (substring, soft):
        assert (found["blank_picture"], found["swapped"]) == ("pass", "pass")


def test_a_scorer_of_a_running_server_is_audited(tmp_path: Path) -> None:
    with running(tmp_path, "[scorers.jpeg]\n", wait_for=("jpeg",)) as server:
        checks = ("--checks", "png,solid", "--out", str(tmp_path / "out"))
        done = run_cli("audit", "jpeg", "--url", server.grpc_url, *checks)
        assert done.returncode == 0, done.stderr
        wrong = run_cli("audit", "ocr", "--url", server.grpc_url, *checks)
        no_output = run_cli("audit", "jpeg", "--output", "size", "--url", server.grpc_url, *checks)
    assert "has no scorer 'ocr'; it has jpeg" in wrong.stderr
    assert "jpeg has no output 'size': it has compressibility" in no_output.stderr
    here = run_cli("audit", "jpeg", "--checks", "png,solid", "--out", str(tmp_path / "here"))
    assert here.returncode == 0, here.stderr
    both = [json.loads((tmp_path / f"{name}/audit.json").read_text()) for name in ("out", "here")]
    assert both[0] == both[1]


def test_a_detector_and_a_file_size_pass_what_they_are_for() -> None:
    strict = audited(loaded("geneval", "strict"), *BATTERIES, search_budget=75)
    assert strict["counts"]["fail"] == 0, verdicts(strict)
    size = audited(loaded("jpeg"), *BATTERIES, search_budget=75)
    assert size["counts"]["fail"] == 0, verdicts(size)
    assert size["counts"]["intended"] > 10
    assert len(PICTURES) == 18
