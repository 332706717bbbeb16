"""What a suite found, as plain values: numbers with intervals, what is missing, and the label.

An image without a score is in no mean. How many there are stands beside every number, with what it
would be if they were worth the least and the most.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from trainer.config.settings import Settings
from trainer.data.files import fingerprint
from trainer.run.storage import digest
from trainer.scores import joined
from trainer.suites import reduce
from trainer.suites.cases import Case
from trainer.suites.manifest import Manifest, Measure, Published
from trainer.suites.pictures import Job, Pictures, drawn_with
from trainer.suites.reduce import Answer, Cell
from trainer.suites.tree import Rule, Tree, plant, summary, totals

MOST_UNANSWERED = 0.01
MOST_ERRORS = 10
OTHER = "another model"
Row = dict[str, Any]
Line = dict[str, Any]  # what a scorer said about a picture: a line of `scores.jsonl`
Scored = dict[tuple[Job, str], Line]  # by picture and scorer


def rule_of(measure: Measure) -> Rule:
    pooled = measure.reduce in ("ratio", "edits")
    return Rule(measure.total, measure.group_weights, measure.scale, pooled)


def suite_result(
    name: str,
    manifest: Manifest,
    cases: Sequence[Case],
    prompts: Sequence[int],
    scored: Scored,
    pictures: Pictures,
    made: Mapping[str, Any],
    settings: Settings,
) -> Row:
    """Everything about one suite that a program, a page or another version needs."""
    jobs = [(prompt, image) for prompt in prompts for image in range(pictures.per_prompt)]
    rows = {
        m.name: measured(m, cases, prompts, scored, pictures.per_prompt) for m in manifest.measures
    }
    judges = _judges(scored.values())
    builds = joined(
        {scorer: [line["fingerprint"]]}
        for (_, scorer), line in scored.items()
        if "fingerprint" in line
    )
    why = _why_not_official(manifest, rows, judges, builds, len(prompts), len(cases))
    return {
        "suite": name,
        "label": "official" if not why else "not official",
        "why": why,
        "measures": rows,
        "published": [
            beside(row, rows[row.measure], settings, official=not why) for row in manifest.published
        ],
        "errors": _errors(scored),
        "images": len(jobs),
        "prompts": len(prompts),
        "prompts_sha256": fingerprint([case.prompt for case in cases]),
        "made_from": dict(made),
        "manifest": manifest.model_dump(mode="json"),
        "manifest_sha256": manifest.digest,
        "judge": {
            "models": judges,
            "template_sha256": hashlib.sha256(manifest.judge.template.encode()).hexdigest(),
            "decoding": next(
                (d for line in scored.values() if (d := _said(line, "decoding"))), None
            ),
        },
        "scorers": builds,
        "pictures": [_picture(job, cases[job[0]], pictures, scored, manifest) for job in jobs],
    }


def measured(
    measure: Measure, cases: Sequence[Case], prompts: Sequence[int], scored: Scored, per_prompt: int
) -> Row:
    """One number: `summary`, `unanswered` of `images`, the worst and the best case, the tree."""
    rule = rule_of(measure)
    known: list[list[Mapping[str, Cell]]] = []
    whole: list[list[Mapping[str, Cell]]] = []
    unanswered = 0
    for prompt in prompts:
        found = [cells(measure, cases[prompt], scored.get(((prompt, image), measure.scorer)))
                 for image in range(per_prompt)]  # fmt: skip
        unanswered += sum(one is None for one in found)
        known.append([one for one in found if one is not None])
        whole.append([_unknown(measure, cases[prompt]) if one is None else one for one in found])
    units = [cases[prompt].unit for prompt in prompts]
    strata = {cases[prompt].unit: cases[prompt].stratum for prompt in prompts}
    tree = plant(known, units, strata, pooled=rule.pooled)
    row = summary(tree, rule)
    worst = best = None
    if measure.reduce != "score" or measure.bounds or not unanswered:
        full = plant(whole, units, strata, pooled=rule.pooled)
        ends = totals(full, rule, np.ones((1, len(full.strata))))
        worst, best = (None if np.isnan(end[0]) else float(end[0]) for end in ends)
    counts = {"unanswered": unanswered, "images": len(prompts) * per_prompt}
    return {**row, **counts, "worst": worst, "best": best, "tree": as_table(tree)}


def cells(measure: Measure, case: Case, line: Line | None) -> Mapping[str, Cell] | None:
    """What one image is worth, by group; None without a score."""
    if line is None or "error" in line:
        return None
    if measure.reduce == "score":
        part = measure.component
        value = line["components"][part] if part else line["score"]
        return {_group(case): Cell(value, value)}
    said = {one["id"]: one for one in line["details"]["answers"]}
    answers = [
        replace(one, **{key: said[one.id][key] for key in ("low", "high", "said")})
        for one in asked(case)
    ]
    return _reduced(measure, case, answers)


def _unknown(measure: Measure, case: Case) -> Mapping[str, Cell]:
    """What an image without a score may be worth."""
    if measure.reduce == "score":
        return {_group(case): Cell(*measure.bounds)} if measure.bounds else {}
    return _reduced(measure, case, asked(case))


def asked(case: Case) -> list[Answer]:
    """The questions about a case, answered by nobody; parts are grouped by what is before " - "."""
    found: list[Answer] = []
    for one in case.questions:
        parents = tuple(one.get("parents", ()))
        if parts := one.get("parts"):
            found += [
                Answer(f"{one['id']}.{n}", parents=parents, group=part.partition(" - ")[0])
                for n, part in enumerate(parts)
            ]
            continue
        weight, group = one.get("weight", 1.0), one.get("group", "")
        target = one.get("target", "")
        found.append(Answer(one["id"], parents=parents, weight=weight, group=group, target=target))
    return found


def _reduced(measure: Measure, case: Case, answers: Sequence[Answer]) -> Mapping[str, Cell]:
    if measure.reduce == "edits":
        return reduce.edits(answers)
    to_cell = (
        partial(reduce.gmean, floor=measure.floor)
        if measure.reduce == "gmean"
        else reduce.REDUCERS[measure.reduce]
    )
    if measure.by == "prompt":
        return {_group(case): to_cell(answers)}
    names = dict.fromkeys(one.group for one in answers)
    return {name: to_cell([one for one in answers if one.group == name]) for name in names}


def _group(case: Case) -> str:
    return case.prompt.group or "all"


def as_table(tree: Tree) -> Row:
    """A tree as plain values, rounded to nine digits."""
    numbers = {name: np.round(getattr(tree, name), 9).tolist() for name in ("low", "high", "count")}
    return {
        "groups": list(tree.groups),
        **numbers,
        "units": tree.units.tolist(),
        "strata": list(tree.strata),
    }


def as_tree(table: Mapping[str, Any]) -> Tree:
    """The inverse."""
    low, high, count = (np.array(table[name], dtype=float) for name in ("low", "high", "count"))
    units = np.array(table["units"], dtype=np.intp)
    return Tree(tuple(table["groups"]), low, high, count, units, tuple(table["strata"]))


def _why_not_official(
    manifest: Manifest,
    rows: Mapping[str, Row],
    judges: Sequence[str],
    builds: Mapping[str, Sequence[str]],
    drawn: int,
    of: int,
) -> list[str]:
    """Why a number must not stand beside published ones without a word; nothing if it may."""
    why: list[str] = []
    if manifest.fidelity == "own":
        why.append("the definition is this project's own")
    if manifest.fidelity == "substitute-judge":
        why.append("another judge than the published one may have answered")
    wanted = manifest.judge.model
    if others := [name for name in judges if wanted and not _same_model(name, wanted)]:
        why.append(f"the judge is {', '.join(others)}, not {wanted}")
    why += [
        f"{measure.scorer} is another build than the suite pins"
        for measure in manifest.measures
        if measure.pins and not {*builds.get(measure.scorer, ())} <= {*measure.pins}
    ]
    if drawn < of:
        why.append(f"{drawn} of {of} prompts")
    for name, row in rows.items():
        if row["unanswered"] > MOST_UNANSWERED * row["images"]:
            why.append(
                f"{name}: {row['unanswered']} of {row['images']} images without a score, more than "
                f"{MOST_UNANSWERED:.0%}"
            )
    return why


def _errors(scored: Scored) -> dict[str, int]:
    """How often which error left an image without a score, the commonest first."""
    found = Counter(
        f"{scorer}: {line['error']['code']}: {line['error']['message']}"
        for (_, scorer), line in scored.items()
        if "error" in line
    )
    return dict(found.most_common(MOST_ERRORS))


def _same_model(served: str, wanted: str) -> bool:
    """Whether a judge is served under the name of its weights, of whatever owner."""
    return served.rpartition("/")[2].lower() == wanted.rpartition("/")[2].lower()


def _judges(lines: Any) -> list[str]:
    return list(dict.fromkeys(name for line in lines if (name := _said(line, "model"))))


def _said(line: Line, name: str) -> Any:
    return line.get("details", {}).get(name)


def beside(row: Published, found: Row, settings: Settings, *, official: bool) -> Row:
    """A published number, and how far it is from this one or why that cannot be told."""
    mine = drawn_with(settings)
    unlike = [f"{k} {mine[k]}, not {v}" for k, v in row.settings.items() if mine.get(k) != v]
    differs = OTHER
    if row.path == settings.model.path:
        differs = "; ".join(unlike) or ("" if row.settings else "its settings are not known")
    if not differs and not official:
        differs = "this number is not official"
    delta = None if differs or found["mean"] is None else found["mean"] - row.value
    return {**row.model_dump(mode="json"), "differs": differs, "difference": delta}


def _picture(job: Job, case: Case, pictures: Pictures, scored: Scored, manifest: Manifest) -> Row:
    """One image with everything that was said about it."""
    path = pictures.path(job)
    scorers = dict.fromkeys(measure.scorer for measure in manifest.measures)
    kept = ("score", "raw", "components", "details", "error")
    lines = {scorer: scored[job, scorer] for scorer in scorers if (job, scorer) in scored}
    return {
        "prompt": job[0],
        "image": job[1],
        "text": case.prompt.text,
        "group": case.prompt.group,
        "file": str(path.relative_to(pictures.folder.parent)),
        "sha256": digest(path) if path.is_file() else None,
        "scores": {s: {k: line[k] for k in kept if k in line} for s, line in lines.items()},
    }
