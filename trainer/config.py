"""Read settings: preset or file, then environment, then `--set section.key=value`; and check them.

Everything that can be wrong with the settings alone is found here, before anything is loaded.
"""

import copy
import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from trainer.errors import ConfigError
from trainer.losses.base import LossConfig
from trainer.rollout import RolloutConfig
from trainer.settings import Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

PRESETS = Path(__file__).parent / "presets"
MINI = Path(__file__).parent / "mini"


@dataclass(frozen=True, slots=True)
class Geometry:
    """The batch arithmetic of one epoch, for one of `world_size` processes.

    Attributes:
        images: images per epoch, all processes together.
        images_per_rank: images per epoch of this process.
        rollout_batches: sampling batches of this process.
        micro_batches: training forwards of this process per window step.
        micro_batch_size: images of one training forward.
        micro_per_update: training micro-batches between two updates.
    """

    images: int
    images_per_rank: int
    rollout_batches: int
    micro_batches: int
    micro_batch_size: int
    micro_per_update: int


def geometry(settings: Settings, world_size: int = 1) -> Geometry:
    """Derive the batch arithmetic.

    Raises:
        ConfigError: sizes that do not divide each other; the message says which and what fits.
    """
    batch = settings.batch
    images = batch.prompts_per_epoch * batch.images_per_prompt
    product = f"{batch.prompts_per_epoch} prompts x {batch.images_per_prompt} images = {images}"
    if images % world_size:
        raise ConfigError(f"batch: {product} do not divide by {world_size} processes")
    per_rank = images // world_size
    if per_rank % batch.rollout_batch_size:
        fits = [n for n in range(1, per_rank + 1) if per_rank % n == 0]
        near = min(fits, key=lambda n: abs(n - batch.rollout_batch_size))
        raise ConfigError(
            f"batch.rollout_batch_size={batch.rollout_batch_size} does not divide the {per_rank} "
            f"images per process ({product}, {world_size} processes); the nearest that does is "
            f"{near}"
        )
    micro = batch.train_batch_size or batch.rollout_batch_size
    if batch.rollout_batch_size % micro:
        raise ConfigError(
            f"batch.train_batch_size={micro} does not divide "
            f"batch.rollout_batch_size={batch.rollout_batch_size}"
        )
    count = per_rank // micro
    if count % batch.optimizer_steps_per_epoch:
        raise ConfigError(
            f"batch.optimizer_steps_per_epoch={batch.optimizer_steps_per_epoch} does not divide "
            f"the {count} training batches per process ({per_rank} images / {micro})"
        )
    return Geometry(
        images=images,
        images_per_rank=per_rank,
        rollout_batches=per_rank // batch.rollout_batch_size,
        micro_batches=count,
        micro_batch_size=micro,
        micro_per_update=count // batch.optimizer_steps_per_epoch,
    )


def rollout_config(settings: Settings) -> RolloutConfig:
    """The sampling settings as the rollout takes them.

    Raises:
        ConfigError: a window that does not fit, or another contradiction.
    """
    sampling = settings.sampling
    deterministic = sampling.sde == "ode"
    if deterministic != (settings.loss.algorithm == "nft"):
        raise ConfigError(
            "sampling.sde=ode and loss.algorithm=nft belong together: nft learns from finished "
            f"images, the others from stochastic steps (got {sampling.sde} and "
            f"{settings.loss.algorithm})"
        )
    if deterministic and sampling.shared_noise:
        raise ConfigError(
            "sampling.shared_noise=true with sampling.sde=ode: all images of a group would be the "
            "same; set one of them otherwise"
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
            keep_means=settings.loss.algorithm == "grpo_guard",
        )
    except ValueError as error:
        raise ConfigError(f"sampling: {error}") from None


def loss_config(settings: Settings) -> LossConfig:
    """The loss settings as the losses take them.

    Raises:
        ConfigError: a value out of range.
    """
    loss = settings.loss
    try:
        return LossConfig(
            name=loss.algorithm,
            clip_low=loss.clip_low,
            clip_high=loss.clip_high,
            kl_beta=loss.kl_beta,
            kl_form=loss.kl_form,
            fold=settings.batch.fold_steps,
            nft_beta=loss.nft_beta,
            nft_times=loss.nft_times,
            advantage_max=settings.advantage.clip,
        )
    except ValueError as error:
        raise ConfigError(f"loss: {error}") from None


def resolve_path(text: str) -> Path:
    """A path of the settings; `@mini/` stands for the miniature's folder."""
    return MINI / text.removeprefix("@mini/") if text.startswith("@mini/") else Path(text)


def preset_names() -> list[str]:
    """The presets that are shipped."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def preset_path(name_or_path: str) -> Path:
    """The file of a preset's name, or the file itself.

    Raises:
        ConfigError: there is no such preset or file.
    """
    if name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        if not path.is_file():
            raise ConfigError(f"there is no settings file {name_or_path}")
        return path
    if name_or_path not in preset_names():
        raise ConfigError(
            f"unknown preset {name_or_path!r}{_nearest(name_or_path, preset_names())}; "
            f"there are {', '.join(preset_names())}, or give a .toml file"
        )
    return PRESETS / f"{name_or_path}.toml"


def load(
    name_or_path: str,
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Settings:
    """Read and check the settings of a run.

    Args:
        name_or_path: name of a preset, or a .toml file.
        overrides: `section.key=value` texts; values as in TOML, bare words are strings.
        environment: process environment; REWARD_URL is used.

    Raises:
        ConfigError: anything unknown, malformed or contradictory, in one line.
    """
    path = preset_path(name_or_path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} is not valid TOML: {error}") from None
    url = (environment or {}).get("REWARD_URL")
    if url:
        table.setdefault("rewards", {})["url"] = url
    return parse(apply_overrides(table, overrides), source=path.name)


def apply_overrides(table: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of a nested table with `section.key=value` texts applied.

    Raises:
        ConfigError: a text of another form.
    """
    changed = copy.deepcopy(table)
    for text in overrides:
        _override(changed, text)
    return changed


def parse(table: Mapping[str, Any], *, source: str = "settings") -> Settings:
    """Check a nested table of settings.

    Raises:
        ConfigError: see `load`.
    """
    try:
        settings = Settings.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_explain(error)}") from None
    _check(settings)
    return settings


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


def _check(settings: Settings) -> None:
    from trainer.losses import LOSSES
    from trainer.models import MODELS
    from trainer.tasks import TASKS

    for name, value, known in (
        ("task.name", settings.task.name, TASKS),
        ("model.family", settings.model.family, MODELS),
        ("loss.algorithm", settings.loss.algorithm, LOSSES),
    ):
        if value not in known:
            raise ConfigError(
                f"{name}: unknown {value!r}{_nearest(value, list(known))}; "
                f"one of {', '.join(known)}"
            )
    if not settings.rewards.train:
        raise ConfigError("rewards.train is empty: name at least one scorer to train on")
    names = [term.name for term in settings.rewards.train]
    if len(set(names)) < len(names):
        raise ConfigError(f"rewards.train: {names} repeat a name; give them different labels")
    transforms: dict[str, str] = {}
    terms = (*settings.rewards.train, *settings.rewards.watch, *settings.eval.metrics)
    for term in terms:
        if term.component:
            continue
        other = transforms.setdefault(term.scorer, term.transform)
        if other != term.transform:
            raise ConfigError(
                f"rewards: {term.scorer} is asked for with transform {other!r} and "
                f"{term.transform!r}; use component= for further values of one scorer"
            )
    if any(weight < 0 for weight in settings.task.category_weights.values()):
        raise ConfigError("task.category_weights must not be negative")
    geometry(settings)
    rollout_config(settings)
    loss_config(settings)


def _explain(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        name = str(first["loc"][-1])
        known = _fields_at(Settings, first["loc"][:-1])
        return f"unknown setting {where}{_nearest(name, known)}"
    value = first.get("input")
    shown = "" if isinstance(value, dict) or first["type"] == "missing" else f" (got {value!r})"
    return f"{where}: {first['msg'].lower()}{shown}"


def _fields_at(model: type[BaseModel], path: Sequence[Any]) -> list[str]:
    """The names allowed at a place of the settings, for the suggestion."""
    current: Any = model
    for part in path:
        if isinstance(part, int):
            continue
        annotation = current.model_fields[part].annotation
        inner = [item for item in getattr(annotation, "__args__", ()) if isinstance(item, type)]
        current = annotation if isinstance(annotation, type) else inner[0]
    return list(current.model_fields)


def _nearest(name: str, known: Sequence[str]) -> str:
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""
