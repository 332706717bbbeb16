"""What a report says, as plain values: before and after, watched rewards, the verdict."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from trainer.config.load import validated
from trainer.config.settings import Settings
from trainer.config.toml import differences, toml
from trainer.errors import ConfigError
from trainer.evaluation.alarms import ADVICE, Alarm, Rules, active, alarms, text
from trainer.evaluation.statistics import NOTHING, paired
from trainer.images import Pixels, cut, load_png
from trainer.run import checkpoint as checkpoints
from trainer.run.controller import Action, change
from trainer.run.log import EXIT, figure, read, read_json, sampled_as_trained
from trainer.run.progress import RESOLVED, RESULT, abandoned, kept_groups, read_resolved
from trainer.run.shards import FOLDER
from trainer.scores import history

KILLED = {"error": "its process was killed; the same command continues it", "exit_code": None}


@dataclass(frozen=True, slots=True)
class RunData:
    """All that a report is made from."""

    run_dir: Path
    settings: Mapping[str, Any]  # dumped
    versions: Mapping[str, str]  # of packages
    scorers: Mapping[str, str]  # fingerprints when the process started
    result: Mapping[str, Any] | None  # `result.json`; None while the run goes on
    ended: Mapping[str, Any] | None  # `exit.json`; KILLED if it was; None while it goes on
    epochs: Sequence[Mapping[str, Any]]  # the training rows
    evaluations: Sequence[Mapping[str, Any]]  # the first is the base

    @property
    def tolerance(self) -> float:
        """Share of the base by which a watched reward may move."""
        return float(self.settings["eval"]["alarm_fall"])

    @property
    def base(self) -> Mapping[str, Any]:
        """The evaluation of the untrained model."""
        return self.evaluations[0]

    @property
    def after(self) -> Mapping[str, Any]:
        """The newest evaluation."""
        return self.evaluations[-1]

    @property
    def headline(self) -> str:
        """Name of the first measured term."""
        return next(iter(self.base["metrics"]))


def load_run(run_dir: Path, until_epoch: int | None = None) -> RunData:
    """Read a run's folder.

    What came after `until_epoch` is left out.

    Raises:
        ConfigError: it holds no run, or nothing has been evaluated yet.
    """
    resolved = read_resolved(run_dir)
    rows = read(run_dir)
    if until_epoch is not None:
        rows = [row for row in rows if row["epoch"] <= until_epoch]
    evaluations = [row for row in rows if row["kind"] == "eval"]
    if not evaluations:
        raise ConfigError(f"{run_dir} has no evaluation yet")
    return RunData(
        run_dir=run_dir,
        settings=resolved["settings"],
        versions=resolved["versions"],
        scorers=resolved["scorers"],
        result=read_json(run_dir / RESULT),
        ended=read_json(run_dir / EXIT) or (KILLED if abandoned(run_dir) else None),
        epochs=[row for row in rows if row["kind"] == "train"],
        evaluations=evaluations,
    )


def state(run: RunData) -> dict[str, str]:
    """How far the run is: `kind` (finished, stopped, running) and `text`."""
    done = run.epochs[-1]["epoch"] if run.epochs else 0
    if run.result is not None:
        return {"kind": "finished", "text": f"finished: {run.result['reason']}"}
    if run.ended is None:
        epochs = run.settings["run"]["epochs"]
        return {"kind": "running", "text": f"unfinished: epoch {done} of {epochs}"}
    why = run.ended["error"] or f"exit code {run.ended['exit_code']}"
    return {"kind": "stopped", "text": f"stopped after epoch {done}: {why}"}


def groups(run: RunData) -> list[Any]:
    """The kept groups of a few epochs (`trainer.run.groups`), up to where the run stands."""
    done = run.epochs[-1]["epoch"] if run.epochs else 0
    found = [read_json(path) for path in kept_groups(run.run_dir)]
    return [record for record in found if record["epoch"] <= done]


def fingerprints(run: RunData) -> dict[str, str]:
    """What the run started from, as its newest checkpoint knows it: base weights and prompts."""
    for folder in checkpoints.present(run.run_dir):
        if stored := read_json(folder / checkpoints.PROGRESS):
            prompts = {f"{k} prompts": v for k, v in stored.get("prompts", {}).items()}
            return {"base weights": stored.get("base") or "not written down", **prompts}
    return {}


def changes(settings: Settings) -> dict[str, tuple[str, str]]:
    """What differs from the named preset: setting -> the preset's value and the run's, as TOML."""
    if not settings.run.preset:
        return {}
    found = differences(settings, settings.run.preset).items()
    return {name: (shown(before), shown(own)) for name, (before, own) in found}


def shown(value: Any) -> str:
    """A setting as TOML, `unset` for None."""
    return "unset" if value is None else toml(value)


def settings_of(run: RunData) -> Settings:
    """The run's settings as the trainer knows them.

    Raises:
        ConfigError: another version wrote them.
    """
    return validated(run.settings, source=f"{run.run_dir / RESOLVED}")


def found_alarms(run: RunData) -> tuple[Alarm, ...]:
    """All alarms of a run, over or not, in the order in which they began."""
    rows = sorted(
        [*run.epochs, *run.evaluations], key=lambda row: (row["epoch"], row["kind"] == "eval")
    )
    return alarms(rows, Rules.of(settings_of(run)))


def actions(run: RunData) -> list[dict[str, Any]]:
    """What was done about alarms (`run.on_alarm`): `epoch`, `kind`, `causes` and `change`."""
    limit = settings_of(run).alarm.max_actions
    return [
        {
            "epoch": row["epoch"],
            "kind": row["action"]["kind"],
            "causes": ", ".join(row["action"]["causes"]),
            "change": change(Action(**row["action"]), limit),
        }
        for row in run.evaluations
        if row.get("action")
    ]


def kl_after(run: RunData) -> float | None:
    """Distance of the newest evaluation's model to the base; None where it is not known."""
    return run.after.get("kl", {}).get("mean")


def outputs(run: RunData) -> list[dict[str, Any]]:
    before, after = run.base["outputs"], run.after["outputs"]
    return [comparison(name, before, after) for name in before]


def shown_prompt(run: RunData) -> str:
    return (run.base["shown"] or ["a photo of a star"])[0]


def shown_references(run: RunData) -> list[str]:
    """The files that the prompt of `shown_prompt` is about."""
    return next(iter(run.base.get("references", [])), [])


def shown_pictures(run: RunData, row: Mapping[str, Any], place: int = -1) -> list[Pixels]:
    """The pictures of the shown prompts in one evaluation; none if they were not kept.

    What the prompts ask to change lies above them: place 0 is the first picture of each.
    """
    path, count = run.run_dir / (row.get("samples") or ""), len(row["shown"])
    if not path.is_file():
        return []
    rows = 1 + _sources(row)
    cells = cut(load_png(path), count, rows)
    return cells[place % rows * count :][:count]


def shown_sources(run: RunData, row: Mapping[str, Any]) -> list[list[Pixels]]:
    """What the shown prompts ask to change: the first picture of each, the second of each, ..."""
    return [shown_pictures(run, row, place) for place in range(_sources(row))]


def _sources(row: Mapping[str, Any]) -> int:
    return len(next(iter(row.get("references", [])), []))


def difference(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Any:
    """The paired difference of two evaluations; without a mean where prompts have no means."""
    one, other = (row.get("by_prompt", {}).get(name) for row in (before, after))
    return paired(one, other) if one and other else {**NOTHING, "categories": {}}


def comparison(
    name: str,
    before: Mapping[str, Any],
    after: Mapping[str, Any],
    category: str = "",
    pairs: Mapping[str, Any] = NOTHING,
) -> dict[str, Any]:
    """One line of the before/after table; `pairs` is its `difference`.

    Returns:
        `name`, `before`, `after` and `pairs` (mean, low, high, n), `change`, `relative` (to the
        absolute base), `apart` (the intervals do not touch) and `text`.
    """
    first, second = before[name], after.get(name, NOTHING)
    if category:
        first = first["categories"][category]
        second = second.get("categories", {}).get(category, NOTHING)
    change = relative = None
    apart = False
    if first["mean"] is not None and second["mean"] is not None:
        change = second["mean"] - first["mean"]
        relative = change / abs(first["mean"]) if abs(first["mean"]) > 1e-9 else None
        apart = second["low"] > first["high"] or second["high"] < first["low"]
    return {
        "name": category or name,
        "before": first,
        "after": second,
        "pairs": pairs,
        "change": change,
        "relative": relative,
        "apart": apart,
        "text": "-" if change is None else ("+" if change >= 0 else "-") + figure(abs(change)),
    }


def measured(run: RunData) -> list[dict[str, Any]]:
    """Before and after of every measured term, the headline first."""
    base, after = ({**row["metrics"], **sampled_as_trained(row)} for row in (run.base, run.after))
    pairs = {name: difference(name, run.base, run.after) for name in base}
    return [comparison(name, base, after, pairs=pairs[name]) for name in base]


def categories(run: RunData) -> list[dict[str, Any]]:
    """Before and after of the headline, by category."""
    base, after, name = run.base["metrics"], run.after["metrics"], run.headline
    pairs = difference(name, run.base, run.after)["categories"]
    return [
        comparison(name, base, after, category, pairs.get(category, NOTHING))
        for category in base[name]["categories"]
    ]


def watched(run: RunData) -> list[dict[str, Any]]:
    """Before and after of what is watched but not trained on.

    `state` is `fell` (an alarm that is not over), `rose` (beyond the 95 % intervals), `steady`, or
    `unknown` (the base is zero or nothing was scored).
    """
    after = dict(run.after["watch"])
    for row in reversed(run.evaluations):
        # Evaluations with one image per prompt have no diversity.
        for name, value in row["watch"].items():
            after.setdefault(name, value)
    fallen = {alarm.name for alarm in active(found_alarms(run))}
    out = []
    for name in run.base["watch"]:
        line = comparison(name, run.base["watch"], after)
        rose = line["apart"] and line["change"] > 0
        known = line["relative"] is not None
        line["state"] = (
            "fell" if name in fallen else "rose" if rose else "steady" if known else "unknown"
        )
        out.append(line)
    return out


def verdict(run: RunData) -> dict[str, str]:
    """The reward-hacking monitor in plain words: `kind` (good, warn, none) and `text`."""
    raised = active(found_alarms(run))
    if raised:
        lines = [f"{text(alarm)}. {ADVICE[alarm.kind]}" for alarm in raised]
        return {"kind": "warn", "text": " ".join(lines)}
    rows = [row for row in watched(run) if row["state"] != "unknown"]
    if not rows:
        return {
            "kind": "none",
            "text": "Nothing is watched beside the trained reward, so reward hacking would not be "
            "seen here. Name scorers in rewards.watch.",
        }
    rose = [row for row in rows if row["state"] == "rose"]
    gain = measured(run)[0]["change"] or 0.0
    lost = [row for row in categories(run) if row["apart"] and row["change"] < 0]
    if lost:
        names = " and ".join(f"{row['name']} ({row['text']})" for row in lost)
        kept = (
            f"The watched rewards held, but {names} fell beyond the 95 % intervals while "
            f"{run.headline} changed by {gain:+.3f}: the policy is paid too rarely for them and "
            "forgets. Give them more weight in task.category_weights, or raise loss.kl_beta."
        )
        return {"kind": "warn", "text": kept}
    tail = ""
    if rose:
        names = " and ".join(f"{row['name']} ({percent(row['relative'])})" for row in rose)
        tail = f" Above it: {names}."
    return {
        "kind": "good",
        "text": f"No alarm on any of the {len(rows)} watched rewards while {run.headline} changed "
        f"by {gain:+.3f}: no sign of reward hacking."
        f"{tail}",
    }


def facts(run: RunData) -> list[tuple[str, str]]:
    images = sum(row["images"] for row in run.epochs)
    failed = sum(row["failed"] for row in run.epochs) + sum(r["failed"] for r in run.evaluations)
    minutes = run.epochs[-1]["train_minutes"] if run.epochs else 0.0
    found = [row.get("first_ratio_deviation") for row in run.epochs]
    deviations = [value for value in found if value is not None]
    kl = kl_after(run)
    exact = "exactly 1" if not any(deviations) else f"off by up to {max(deviations):.1e}"
    return [
        ("training time", f"{minutes:.1f} min"),
        ("epochs", f"{len(run.epochs)}"),
        ("optimiser updates", f"{run.epochs[-1]['updates'] if run.epochs else 0}"),
        ("images trained on", f"{images:,}"),
        ("images without a score", f"{failed}"),
        ("first ratio of every epoch", exact if deviations else "-"),
        *([("KL to the base", f"{kl:.2g}")] if kl is not None else []),
    ]


def recorded(run: RunData) -> dict[str, Any] | None:
    """The recorded images: `folder`, `size`, `epochs`, and why the recording has `stopped`."""
    files = list((run.run_dir / FOLDER).glob("epoch_*"))
    if not files:
        return None
    size = 0
    for file in files:
        # A run that goes on may be thinning them out.
        with suppress(FileNotFoundError):
            size += file.stat().st_size
    return {
        "folder": str(run.run_dir / FOLDER),
        "size": f"{size / 1e9:.1f} GB" if size > 1e9 else f"{size / 1e6:.1f} MB",
        "epochs": len({file.name[:12] for file in files}),
        "stopped": run.epochs[-1].get("record", {}).get("stopped", "") if run.epochs else "",
    }


def scorers(run: RunData) -> list[dict[str, str]]:
    """Which scorers computed the rewards: `name`, `fingerprint` and, if it has changed, `since`."""
    found = history(sorted([*run.epochs, *run.evaluations], key=lambda row: row["epoch"]))
    names = [name for name, _, _ in found]
    rows = [
        {
            "name": name,
            "fingerprint": fingerprint,
            "since": f"from epoch {epoch}" if names.count(name) > 1 else "",
        }
        for name, fingerprint, epoch in found
    ]
    asked = [name for name in run.scorers if name not in names]
    return rows + [{"name": n, "fingerprint": run.scorers[n], "since": ""} for n in asked]


def interval(row: Mapping[str, Any]) -> str:
    """A mean with its 95 % interval, or a dash."""
    if row["mean"] is None:
        return "-"
    return f"{figure(row['mean'])} ({figure(row['low'])} to {figure(row['high'])})"


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:+.1f} %"


def number(value: float | None) -> str:
    """As the log has it, or a dash."""
    return "-" if value is None else figure(value)


def environment(*, html: bool) -> Environment:
    """The templates; what is put into HTML is escaped, into Markdown it is not."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=not html,
        lstrip_blocks=not html,
    )
