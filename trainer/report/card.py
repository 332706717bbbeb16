"""The model card: what a trained model is, how well it does, how to load it, how to make it again.

`README.md` in the format of the Hugging Face hub, with its pictures beside it; made from what the
run wrote down. The licence is the user's to state.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCardData

from trainer.config.settings import Settings
from trainer.config.toml import to_toml
from trainer.evaluation.alarms import ADVICE, Alarm, text
from trainer.images import Pixels, save_png, sheet
from trainer.report import data
from trainer.report.charts import headline_series
from trainer.report.data import RunData, load_run
from trainer.report.page import render
from trainer.report.snippets import base_of, is_hub_id, snippet
from trainer.report.svg import line_document

CARD = "README.md"
CURVE = "curve.svg"
BEFORE_AFTER = "before_after.png"
WIDGETS = 4


def write_card(
    run_dir: Path, folder: Path, *, epoch: int | None = None, whole: bool = False
) -> Path:
    """Write the card of the weights in `folder`, with its pictures, and return its path.

    `epoch` is that of the checkpoint that they come from, None for the newest. With `whole`, the
    folder holds a complete pipeline.

    Raises:
        ConfigError: nothing has been evaluated yet.
    """
    run = load_run(run_dir, epoch)
    settings = data.settings_of(run)
    pictures = _pictures(run, folder)
    (folder / CURVE).write_text(line_document(headline_series(run)), encoding="utf-8")
    card = render(
        "model_card.md",
        run,
        front=_front_matter(run, settings, pictures).to_yaml(),
        settings=settings,
        base=base_of(settings),
        lora=settings.model.finetune == "lora" and not whole,
        whole=whole,
        kl=data.kl_after(run),
        alarms=[_alarm_line(alarm) for alarm in data.found_alarms(run)],
        actions=data.actions(run),
        curve=CURVE,
        before_after=BEFORE_AFTER if pictures else "",
        edits=bool(data.shown_references(run)),
        shown=list(run.base["shown"])[:WIDGETS],
        snippet=snippet(
            settings,
            str(folder),
            data.shown_prompt(run),
            data.shown_references(run),
            whole=whole,
        ),
        command=_command(settings),
        changes=data.changes(settings),
        interval=data.interval,
    )
    path = folder / CARD
    path.write_text(card.rstrip() + "\n", encoding="utf-8")
    return path


def _command(settings: Settings) -> str:
    """The command that trains the same; or the settings themselves, if no preset was named."""
    if not settings.run.preset:
        return to_toml(settings)
    parts = [
        f"--set {shlex.quote(f'{name}={own}')}"
        for name, (_, own) in data.changes(settings).items()
        if own != "unset"
    ]
    return " \\\n    ".join([f"flow-train train {settings.run.preset}", *parts])


def _front_matter(run: RunData, settings: Settings, pictures: Sequence[str]) -> ModelCardData:
    lora = settings.model.finetune == "lora"
    hub = is_hub_id(settings)
    given = "image" if data.shown_references(run) else "text"
    kind = f"{given}-to-{'video' if settings.sampling.num_frames > 1 else 'image'}"
    widgets = [
        {"text": prompt, "output": {"url": url}}
        for prompt, url in zip(run.base["shown"], pictures, strict=False)
    ]
    return ModelCardData(
        base_model=base_of(settings) if hub else None,
        base_model_relation=("adapter" if lora else "finetune") if hub else None,
        library_name="diffusers",
        pipeline_tag=kind,
        tags=[
            *(["lora"] if lora else []),
            "flow-grpo",
            kind,
            "diffusers",
            settings.task.name,
        ],
        widget=widgets or None,
        instance_prompt=data.shown_prompt(run),
    )


def _pictures(run: RunData, folder: Path) -> list[str]:
    """Write the first shown prompts before and after; names of the pictures after, by prompt."""
    before, after = data.shown_pictures(run, run.base), data.shown_pictures(run, run.after)
    count = min(WIDGETS, len(before), len(after))
    if not count:
        return []
    both: list[Pixels] = [*before[:count], *after[:count]]
    if data.shown_references(run):
        both = [*data.shown_pictures(run, run.base, place=0)[:count], *both]
    save_png(folder / BEFORE_AFTER, sheet(both, count))
    names = [f"images/{index}.png" for index in range(count)]
    for name, picture in zip(names, after, strict=False):
        save_png(folder / name, picture)
    return names


def _alarm_line(alarm: Alarm) -> str:
    period = f"from epoch {alarm.epoch}" + (f" to {alarm.until}" if alarm.until else "")
    return f"{text(alarm)} ({period}). {ADVICE[alarm.kind]}"
