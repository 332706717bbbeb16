"""What a run prints: one readable line per epoch and per evaluation."""

from collections.abc import Mapping
from typing import Any


def epoch_line(row: Mapping[str, Any], epochs: int) -> str:
    """One readable line per epoch, of `epochs`."""
    rewards = "  ".join(f"{n} {_text(v)}" for n, v in row["reward"].items())
    policy = row["policy"]
    parts = [
        f"epoch {row['epoch']:>4}/{epochs}",
        f"{row['train_minutes']:5.1f} min",
        rewards,
        f"kl {_text(policy.get('kl'), 4)}",
        f"clip {_text(_sum(policy, 'clip_frac_low', 'clip_frac_high'))}",
        f"flat groups {_text(row['advantage']['zero_std_groups'], 2)}",
        "{rollout:.1f}+{score_wait:.1f}+{train:.1f} s".format(**row["seconds"]),
        f"{row['images_per_s']:.1f} img/s",
    ]
    if "prompts" in row:
        parts.append(f"{row['prompts']['resting']} prompts rest")
    if row["failed"]:
        parts.append(f"{row['failed']} failed")
    return "  ".join(parts)


def evaluation_line(row: Mapping[str, Any]) -> str:
    """One readable line per evaluation."""
    values = "  ".join(
        f"{name} {_text(value['mean'])} [{_text(value['low'])}, {_text(value['high'])}]"
        for name, value in {**row["metrics"], **row["watch"]}.items()
    )
    return f"evaluation ({row['phase']}, epoch {row['epoch']}, {row['images']} images)  {values}"


def _sum(table: Mapping[str, float], *names: str) -> float | None:
    return sum(table[name] for name in names) if all(name in table for name in names) else None


def figure(value: float, decimals: int = 3) -> str:
    """Fixed decimals, or three significant digits where those would hide a small value."""
    fixed = value == 0 or abs(value) >= 10 ** (1 - decimals)
    return f"{value:.{decimals}f}" if fixed else f"{value:.3g}"


def _text(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else figure(value, digits)
