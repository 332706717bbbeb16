"""All checks of an audit, on scorers of which we know what they see."""

from __future__ import annotations

import pytest
from test_audit_scorers import JUDGE, PICTURES, WATCHED, audited, loaded, verdicts

from reward_server.audit import drawings
from reward_server.audit.run import Plan, audit
from reward_server.audit.transforms import BATTERIES

pytestmark = [pytest.mark.exhaustive, pytest.mark.timeout(600)]


def test_no_check_finds_anything_in_a_judge_without_faults() -> None:
    result = audited(loaded(JUDGE), *BATTERIES, search_budget=75)
    assert {*verdicts(result).values()} == {"pass"}, verdicts(result)
    assert len(result["checks"]) == 41


def test_ocr_is_gained_by_written_text_only_where_extra_text_is_free() -> None:
    pictures = drawings.words(2)
    plan = Plan(("prompt_text", "text_wall", "blank_picture", "swapped"))
    substring, soft = (
        verdicts(audit(loaded("ocr", output), pictures, plan, WATCHED))
        for output in ("flowgrpo", "soft")
    )
    assert substring["prompt_text"] == "intended"
    assert soft["text_wall"] == "pass"
    for found in (substring, soft):
        assert (found["blank_picture"], found["swapped"]) == ("pass", "pass")


def test_a_detector_and_a_file_size_pass_what_they_are_for() -> None:
    strict = audited(loaded("geneval", "strict"), *BATTERIES, search_budget=75)
    assert strict["counts"]["fail"] == 0, verdicts(strict)
    size = audited(loaded("jpeg"), *BATTERIES, search_budget=75)
    assert size["counts"]["fail"] == 0, verdicts(size)
    assert size["counts"]["intended"] > 10
    assert len(PICTURES) == 18
