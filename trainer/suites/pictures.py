"""The pictures of a suite: lossless files in a folder, drawn once, resumed where it stopped."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from trainer.config.settings import Settings
from trainer.data.files import fingerprint
from trainer.errors import ConfigError
from trainer.run.log import read_json, write_json
from trainer.run.storage import storing
from trainer.suites.cases import Case

MADE = "made.json"
Job = tuple[int, int]  # prompt number, image number


@dataclass(frozen=True, slots=True)
class Pictures:
    """Where the pictures of a suite are."""

    folder: Path
    per_prompt: int

    def path(self, job: Job) -> Path:
        """The file of (prompt number, image number)."""
        return self.folder / "pictures" / f"{job[0]:06d}_{job[1]:02d}.png"

    def broken(self, job: Job) -> Path:
        """What marks a picture with NaN or infinity, which has no file."""
        return self.path(job).with_suffix(".not_finite")

    def missing(self, prompts: Sequence[int]) -> list[int]:
        """The prompts that lack a picture."""
        return [p for p in prompts if any(not self._there((p, i)) for i in range(self.per_prompt))]

    def _there(self, job: Job) -> bool:
        return self.path(job).is_file() or self.broken(job).is_file()


def claim(pictures: Pictures, made: Mapping[str, Any]) -> None:
    """Write down what the pictures of a folder are made from, or check that it is the same.

    Raises:
        ConfigError: it holds pictures of another model, other settings or other prompts.
    """
    place = pictures.folder / MADE
    before = read_json(place)
    if before is None:
        with storing(str(place)):
            place.parent.mkdir(parents=True, exist_ok=True)
            write_json(place, made)
        return
    unlike = [name for name in made if before.get(name) != made[name]]
    if unlike:
        raise ConfigError(
            f"{pictures.folder} holds pictures made otherwise ({', '.join(unlike)}): name another "
            "--out, or remove that folder"
        )


def drawn_with(settings: Settings) -> dict[str, Any]:
    """The settings that decide a picture of an evaluation."""
    sampling = settings.sampling
    scale = sampling.eval_guidance_scale
    height, width, _ = sampling.size
    return {
        "steps": sampling.eval_num_steps,
        "guidance": sampling.guidance_scale if scale is None else scale,
        "negative_prompt": sampling.negative_prompt,
        "width_px": width,
        "height_px": height,
    }


def made_from(
    identity: Mapping[str, Any], settings: Settings, cases: Sequence[Case]
) -> dict[str, Any]:
    """Everything that decides the pictures of a suite, as plain values."""
    kept = {"dtype", "family", "max_sequence_length", "true_cfg_scale"}
    return {
        "model": {**identity, **settings.model.model_dump(mode="json", include=kept)},
        "sampling": drawn_with(settings),
        "seed": settings.eval.seed,
        "texts": fingerprint([replace(case.prompt, spec=None) for case in cases]),
    }
