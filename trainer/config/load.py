"""Read settings: preset or file, then environment, then `--set section.key=value`; and check them.

Everything that can be wrong with the settings alone is found here, before anything is loaded.
"""

import copy
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

import miniature
from trainer.config.geometry import geometry
from trainer.config.loss_settings import LOSS_SETTINGS
from trainer.config.preset import preset_path, read, switch_loss, tomllib
from trainer.config.settings import RewardTerm, Settings
from trainer.errors import ConfigError, did_you_mean
from trainer.rollout.config import RolloutConfig

MINIATURE = Path(miniature.__file__).parent


def rollout_config(settings: Settings) -> RolloutConfig:
    """The sampling settings as the rollout takes them; ConfigError where they contradict."""
    sampling, loss, name = settings.sampling, settings.loss, settings.loss.algorithm
    deterministic = sampling.sde == "ode"
    if loss.learns_from == "images" and not deterministic:
        raise ConfigError(
            f"loss.algorithm={name} learns from finished images: set sampling.sde=ode, not "
            f"{sampling.sde}"
        )
    if loss.learns_from == "steps" and deterministic:
        raise ConfigError(
            f"loss.algorithm={name} learns from stochastic steps: set sampling.sde to flow_sde, "
            "cps, dance or linear; ode is for "
            + ", ".join(n for n, other in LOSS_SETTINGS.items() if other.learns_from == "images")
        )
    if deterministic and sampling.group_noise != "independent":
        raise ConfigError(
            f"sampling.group_noise={sampling.group_noise} with sampling.sde=ode: images that start "
            "alike would be the same; set one of them otherwise"
        )
    size = settings.batch.images_per_prompt
    if sampling.group_noise == "antithetic_pairs" and size % 2:
        raise ConfigError(
            f"sampling.group_noise=antithetic_pairs needs an even batch.images_per_prompt, not "
            f"{size}; use {size - 1} or {size + 1}"
        )
    end = sampling.window_end or sampling.num_steps - 1
    try:
        return RolloutConfig(
            num_steps=sampling.num_steps,
            kind=sampling.sde,
            noise_level=sampling.noise_level,
            window_size=sampling.window_size,
            window_range=None if deterministic else (sampling.window_start, end),
            guidance_scale=sampling.guidance_scale,
            log_prob_form=loss.log_prob_form,
            keep_means=loss.keep_means,
        )
    except ValueError as error:
        raise ConfigError(f"sampling: {error}") from None


def negative_prompt(settings: Settings) -> str | None:
    """What classifier-free guidance moves away from; None where there is none."""
    sampling, trained = settings.sampling, settings.loss.guidance_scale
    scales = (sampling.guidance_scale, sampling.eval_guidance_scale, trained)
    guides = any(scale and scale > 1 for scale in (*scales, settings.model.true_cfg_scale))
    return sampling.negative_prompt if guides else None


def keeps_reference(settings: Settings) -> bool:
    """Whether the base model stays at hand: always under an adapter, else if a loss may use it."""
    used = settings.loss.kl_beta > 0 or settings.loss.needs_reference
    return settings.model.finetune == "lora" or used or settings.run.on_alarm == "raise_kl"


def resolve_path(text: str) -> Path:
    """A path of the settings; `@mini/` stands for the miniature's folder."""
    return MINIATURE / text.removeprefix("@mini/") if text.startswith("@mini/") else Path(text)


def load(
    name_or_path: str,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    *,
    world_size: int = 0,
) -> Settings:
    """Read and check the settings of a run.

    Args:
        name_or_path: name of a preset, or a .toml file.
        overrides: `section.key=value` texts; values as in TOML, bare words are strings.
        environment: REWARD_URL and torchrun's WORLD_SIZE are used.
        world_size: processes that the sizes are checked for; 0: as in the environment, else 1.

    Raises:
        ConfigError: anything unknown, malformed or contradictory, in one line.
    """
    environment = environment or {}
    table = read(name_or_path)
    if url := environment.get("REWARD_URL"):
        table.setdefault("rewards", {})["url"] = url
    return parse(
        apply_overrides(table, overrides),
        source=preset_path(name_or_path).name,
        world_size=world_size or int(environment.get("WORLD_SIZE", "1")),
    )


def apply_overrides(table: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of a nested table with `section.key=value` texts applied; ConfigError if malformed."""
    changed = copy.deepcopy(table)
    # Another loss has other settings: it is chosen before they are set.
    for text in sorted(overrides, key=lambda text: not text.startswith("loss.algorithm=")):
        before = copy.deepcopy(changed.get("loss"))
        _override(changed, text)
        if isinstance(before, dict):
            switch_loss(before, changed["loss"])
    return changed


def parse(table: Mapping[str, Any], *, source: str = "settings", world_size: int = 1) -> Settings:
    """Check a nested table of settings, for a number of processes; ConfigError as in `load`."""
    settings = validated(table, source=source)
    _check(settings, world_size)
    return settings


def validated(table: Mapping[str, Any], *, source: str) -> Settings:
    """Settings that were written down; only unknown names and wrong values are ConfigErrors."""
    try:
        return Settings.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error)}") from None


def term_of(text: str) -> RewardTerm:
    """`scorer` or `scorer.component` of a command line; ConfigError without a name."""
    scorer, _, component = text.partition(".")
    if not scorer:
        raise ConfigError(f"--scorer {text!r}: write the name of a scorer, or scorer.component")
    return RewardTerm(scorer=scorer, component=component)


def _override(table: dict[str, Any], text: str) -> None:
    name, equals, value = text.partition("=")
    parts = name.strip().split(".")
    if not equals or len(parts) < 2 or not all(parts):
        raise ConfigError(f"--set {text!r}: write section.key=value, e.g. optim.lr=1e-4")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    for part in parts[:-1]:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {text!r}: {part} is not a section")
        table = inner
    table[parts[-1]] = parsed


def _check(settings: Settings, world_size: int) -> None:
    from trainer.data import TASKS
    from trainer.models.registry import MODELS

    _check_known("task.name", settings.task.name, list(TASKS))
    _check_known("model.family", settings.model.family, list(MODELS))
    _check_rewards(settings)
    if settings.model.trained_layers and settings.model.finetune == "lora":
        raise ConfigError(
            "model.trained_layers names what model.finetune=full trains; the layers of adapters "
            "are model.lora_targets: set model.trained_layers=[]"
        )
    geometry(settings, world_size)
    rollout_config(settings)
    loss, groups = settings.loss, settings.batch.prompts_per_epoch
    updates = settings.batch.optimizer_steps_per_epoch
    if loss.needs_groups and groups % updates:
        raise ConfigError(
            f"loss.algorithm={loss.algorithm} compares images of a group within one update: "
            f"batch.optimizer_steps_per_epoch={updates} does not divide "
            f"batch.prompts_per_epoch={groups}"
        )
    _check_alarms(settings)
    if settings.record.images != "none":
        need_pyarrow(f"record.images={settings.record.images}", ", or set record.images=none")


def need_pyarrow(what: str, otherwise: str = "") -> None:
    """Raise ConfigError if what the recorder writes tables with is not installed."""
    if find_spec("pyarrow") is None:
        raise ConfigError(f"{what} needs pyarrow: pip install 'flow-reward[record]'{otherwise}")


def _check_known(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(
            f"{name}: unknown {value!r}{did_you_mean(value, known)}; one of {', '.join(known)}"
        )


def _check_rewards(settings: Settings) -> None:
    if not settings.rewards.train:
        raise ConfigError("rewards.train is empty: name at least one scorer to train on")
    names = [term.name for term in settings.rewards.train]
    if len(set(names)) < len(names):
        raise ConfigError(f"rewards.train: {names} repeat a name; give them different labels")
    transforms: dict[str, str] = {}
    for term in (*settings.rewards.train, *settings.rewards.watch, *settings.eval.metrics):
        if term.component:
            continue
        other = transforms.setdefault(term.scorer, term.transform)
        if other != term.transform:
            raise ConfigError(
                f"rewards: {term.scorer} is asked for with transform {other!r} and "
                f"{term.transform!r}; use component= for further values of one scorer"
            )


def _check_alarms(settings: Settings) -> None:
    """Refuse an action that could never be taken."""
    mode, every, bounds = settings.run.on_alarm, settings.eval, settings.alarm
    if mode == "report":
        return
    epochs = settings.run.epochs
    if not (0 < every.every_epochs < epochs or every.every_minutes > 0):
        raise ConfigError(
            f"run.on_alarm={mode} acts after evaluations during training, and there are none "
            f"(eval.every_epochs={every.every_epochs}, run.epochs={epochs}): set "
            f"eval.every_epochs={max(1, epochs // 10)}, or run.on_alarm=report"
        )
    first = settings.loss.kl_beta * bounds.kl_factor or bounds.kl_start
    if mode == "raise_kl" and first > bounds.kl_max:
        raise ConfigError(
            f"run.on_alarm=raise_kl would begin with a weight of {first:g}, above "
            f"alarm.kl_max={bounds.kl_max:g}: set alarm.kl_max={first:g} or more"
        )


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    loc = first["loc"]
    if loc[0] == "loss" and loc[1:] and loc[1] in LOSS_SETTINGS:
        return _explain_loss(first, str(loc[1]), ".".join(map(str, loc[2:])))
    where = ".".join(str(part) for part in loc)
    if first["type"] == "union_tag_invalid":
        name, known = first.get("ctx", {})["tag"], list(LOSS_SETTINGS)
        near = did_you_mean(name, known)
        return f"loss.algorithm: unknown {name!r}{near}; one of {', '.join(known)}"
    if first["type"] == "extra_forbidden":
        # Sections hold settings, and lists of reward terms.
        section: Any = Settings if len(loc) == 1 else Settings.model_fields[str(loc[0])].annotation
        known = list((RewardTerm if len(loc) > 2 else section).model_fields)
        return f"unknown setting {where}{did_you_mean(where.rpartition('.')[2], known)}"
    return _wrong_value(first, where)


def _explain_loss(first: ErrorDetails, algorithm: str, name: str) -> str:
    """What is wrong with a setting of a loss; pydantic names the loss between section and field."""
    if first["type"] != "extra_forbidden":
        return _wrong_value(first, f"loss.{name}")
    known = list(LOSS_SETTINGS[algorithm].model_fields)
    others = [other for other, fields in LOSS_SETTINGS.items() if name in fields.model_fields]
    if not others:
        return f"unknown setting loss.{name}{did_you_mean(name, known)}"
    return (
        f"loss.{name} is a setting of {', '.join(others)}; loss.algorithm={algorithm} has "
        f"{', '.join(known)}"
    )


def _wrong_value(first: ErrorDetails, where: str) -> str:
    value = first.get("input")
    shown = "" if isinstance(value, dict) or first["type"] == "missing" else f" (got {value!r})"
    return f"{where}: {first['msg'].lower()}{shown}"
