"""What is said about an evaluation: alarms that begin or are over, and scores that are missing."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.alarms import Alarm, Rules, alarms, news, over_text, text


def judge(
    rows: Sequence[Mapping[str, Any]], row: Mapping[str, Any], rules: Rules
) -> tuple[tuple[Alarm, ...], list[str]]:
    """All alarms of a run up to an evaluation, and the lines that this evaluation adds to the log.

    An alarm is a line when it begins and a line when it is over, however often it is evaluated in
    between.

    Args:
        rows: of `metrics.jsonl` before the evaluation.
        row: the evaluation.
        rules: the thresholds.
    """
    now = alarms([*rows, row], rules)
    begun, over = news(alarms(rows, rules), now)
    lines = [f"alarm: {text(alarm)}" for alarm in begun]
    lines += [f"alarm over: {over_text(alarm, row)}" for alarm in over]
    if row["failed"] > rules.max_failed * row["images"]:
        commonest = max(row["errors"], key=lambda t: row["errors"][t], default="no message")
        lines.append(
            f"warning: {row['failed']} of {row['images']} images of this evaluation lack a score "
            f"(mostly: {commonest}); it decides nothing"
        )
    return now, lines
