"""Which scorers computed the rewards: in the metrics, in the report, and said when one changes."""

from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from reward_client._client import RewardClient
from reward_client._transports.fake import FakeTransport
from tests.trainer_run.fake_service import score_pixels, service_with
from trainer.config.load import parse
from trainer.config.settings import RewardSettings
from trainer.report.page import write_report
from trainer.rewards import RewardService
from trainer.run.log import read
from trainer.run.open import train_run
from trainer.scores import history, joined, newest, take_note

BOTH = ("brightness", "contrast")


def run(table: dict[str, Any], fingerprint: str) -> list[str]:
    lines: list[str] = []
    opener = service_with(score_pixels, fingerprint)
    train_run(parse(table), environment={}, open_service=opener, say=lines.append)
    return lines


def test_rows_and_report_name_the_scorers_and_a_change_on_resume_is_said(
    table: dict[str, Any],
) -> None:
    table["run"]["epochs"] = 1
    assert not [line for line in run(table, "a" * 64) if "warning" in line]
    folder = Path(table["run"]["out_dir"])
    for row in read(folder):
        names = BOTH if row["kind"] == "eval" else BOTH[:1]
        assert row["scorers"] == {name: ["a" * 64] for name in names}
    page = write_report(folder).read_text(encoding="utf-8")
    assert "a" * 64 in page
    assert "changed during the run" not in page
    table["run"]["epochs"] = 2
    lines = run(table, "b" * 64)
    warnings = [line for line in lines if "has changed" in line]
    assert [f"scorer {name!r}" in line for name, line in zip(BOTH, warnings, strict=True)]
    assert "fingerprint aaaaaaaaaaaa is now bbbbbbbbbbbb" in warnings[0]
    assert lines.index(warnings[0]) < next(i for i, t in enumerate(lines) if "epoch    2" in t)
    page = write_report(folder).read_text(encoding="utf-8")
    assert "changed during the run" in page
    assert "from epoch 2" in page
    table["run"]["epochs"] = 3
    again = [line for line in run(table, "b" * 64) if "has changed" in line]
    assert not [line for line in again if "brightness" in line]


def test_a_service_that_changes_in_the_middle_is_said_once(table: dict[str, Any]) -> None:
    before = FakeTransport(score_pixels, BOTH, fingerprint="before")
    after = FakeTransport(score_pixels, BOTH, fingerprint="after")

    class Exchanged(FakeTransport):
        """Is redeployed after ten requests."""

        async def score(self, message: Any, timeout_s: float, headers: Any = ()) -> Any:
            self.requests.append(message)
            chosen = before if len(self.requests) <= 10 else after
            return await chosen.score(message, timeout_s)

    def open_service(settings: RewardSettings) -> RewardService:
        exchanged = Exchanged(score_pixels, BOTH, fingerprint="before")
        return RewardService(RewardClient("fake://x", attempts=1, transport=exchanged), settings)

    table["rewards"]["requests_in_flight"] = 1
    lines: list[str] = []
    train_run(parse(table), environment={}, open_service=open_service, say=lines.append)
    warnings = [line for line in lines if "has changed" in line]
    assert sorted(line.split("'")[1] for line in warnings) == ["brightness", "contrast"]


names = st.sampled_from(["a", "b"])
seen = st.lists(st.sampled_from(["1", "2", "3"]), min_size=1, max_size=3)


@given(st.lists(st.dictionaries(names, seen), max_size=6))
def test_history_newest_and_notes_agree(parts: list[dict[str, list[str]]]) -> None:
    rows = [{"epoch": i, "scorers": part} for i, part in enumerate(parts)]
    known: dict[str, str] = {}
    warnings = [line for part in parts for line in take_note(known, part)]
    assert known == newest(rows)
    periods = history(rows)
    assert len(warnings) == len(periods) - len({name for name, _, _ in periods})
    assert {name: fingerprint for name, fingerprint, _ in periods} == known
    merged = joined(parts)
    assert all(len(set(found)) == len(found) for found in merged.values())
    assert {n: set(found) for n, found in merged.items()} == {
        n: {f for part in parts for f in part.get(n, ())} for n in merged
    }
