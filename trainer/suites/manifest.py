"""A suite is data: a TOML file in `manifests/` says what is drawn, who judges it, how it counts.

`unsupported.toml` names the suites that need models which no scorer here has, and why.
"""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from prompt_sets.official import OfficialFile, catalog
from trainer.config.load import resolve_path
from trainer.config.section import Count, Positive, Scale, Section
from trainer.config.settings import RewardTerm
from trainer.errors import ConfigError, did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

MANIFESTS = Path(__file__).parent / "manifests"
UNSUPPORTED = "unsupported"
FORMAT = 1

Reduce = Literal[
    "score", "mean", "gmean", "product", "deps_once", "deps_ordered", "weights", "min_sqrt",
    "ratio", "edits",
]  # fmt: skip
Fidelity = Literal["official", "substitute-judge", "own"]


class Published(Section):
    """A number that someone else published."""

    model: str
    path: str = ""
    """The pipeline it belongs to; a run of that very model is compared by its settings."""
    measure: str
    value: float
    settings: dict[str, Any] = Field(default_factory=dict)
    """What it was drawn with: steps, guidance, negative_prompt, width_px, height_px."""
    source: str
    how: Literal["measured", "copied"]
    """`measured` by the authors of the source, or `copied` by them from elsewhere."""


class File(Section):
    """A file of prompts, and what proves that it is the one."""

    path: str
    """Below the folder of the data; `@mini/` stands for the miniature's folder."""
    url: str = ""
    """Empty where it is shipped."""
    bytes: Count = 0
    sha256: str = ""
    git_blob: str = ""

    @property
    def official(self) -> OfficialFile:
        return OfficialFile(self.path, self.url, self.bytes, self.sha256, self.git_blob)

    def place(self, data: Path) -> Path:
        """Where it lies, or is fetched to."""
        return resolve_path(self.path) if self.path.startswith("@mini/") else data / self.path


class Prompts(Section):
    """Where the prompts come from."""

    files: Annotated[tuple[File, ...], Field(min_length=1)]
    source: str
    licence: str
    adapter: str
    """Key of `cases.ADAPTERS`."""
    options: dict[str, Any] = Field(default_factory=dict)
    rows: Positive
    """Prompts that there have to be; each is drawn once, however often a file repeats it."""


class Images(Section):
    """What is drawn."""

    per_prompt: Positive
    seed: int = 1234


class Judge(Section):
    """The judge behind `vqa`, as the suite defines it."""

    model: str = ""
    """Name of its weights; a judge that is served under another name is a substitute."""
    template: str = "{question}"
    """The text of a question, or of all of them."""
    system: str = ""
    text_first: bool = False


class Measure(Section):
    """One number that the suite reports; the first is its headline."""

    name: str
    scorer: str
    component: str = ""
    transform: str = ""
    reduce: Reduce = "score"
    """From the answers about one image to its value; `score` takes what the scorer says."""
    floor: Scale = 0.0
    """`gmean`: no answer counts as less."""
    by: Literal["prompt", "question"] = "prompt"
    """Whether groups are those of the prompts or of the questions."""
    total: Literal["prompts", "groups", "weights", "gap", "oneig_text"] = "prompts"
    """From groups to the number: pooled prompts, the mean of groups, `group_weights`, what the
    group `original` has more than the mean of the others, or OneIG's formula for text."""
    group_weights: dict[str, Scale] = Field(default_factory=dict)
    scale: float = 1.0
    pins: tuple[str, ...] = ()
    """Fingerprints of the builds of the scorer with which the number is official; empty: any."""
    bounds: tuple[float, ...] = (0.0, 1.0)
    """The least and the largest that an image can be worth, before `scale`, for the worst and the
    best case of images without a score; empty: there are none."""

    @property
    def term(self) -> RewardTerm:
        """What the service is asked for."""
        return RewardTerm(
            scorer=self.scorer, component=self.component, transform=self.transform, label=self.name
        )


class Manifest(Section):
    """A suite."""

    format: int
    version: Positive
    title: str
    what: str
    fidelity: Fidelity
    """`official`: the definition is the published one. `substitute-judge`: the judge is another
    one, or which it is cannot be told. `own`: a metric of its own, whoever wrote the prompts."""
    note: str = ""
    prompts: Prompts
    images: Images
    judge: Judge = Judge()
    measures: Annotated[tuple[Measure, ...], Field(min_length=1)]
    published: tuple[Published, ...] = ()

    @property
    def terms(self) -> tuple[RewardTerm, ...]:
        return tuple(measure.term for measure in self.measures)

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides a number; published rows and words do not."""
        words = {"published", "note", "what", "title"}
        table = self.model_dump(mode="json", exclude=words, exclude_defaults=True)
        text = json.dumps(table, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def names() -> list[str]:
    return sorted(path.stem for path in MANIFESTS.glob("*.toml") if path.stem != UNSUPPORTED)


def unsupported() -> dict[str, str]:
    """Suites that are not supported, and why."""
    return tomllib.loads((MANIFESTS / f"{UNSUPPORTED}.toml").read_text(encoding="utf-8"))


def load(name: str) -> Manifest:
    """A shipped suite, or one in a .toml file.

    Raises:
        ConfigError: there is none, it is not supported, malformed, or of another format.
    """
    if name in (reasons := unsupported()):
        raise ConfigError(f"suite {name} is not supported: {reasons[name]}")
    path = Path(name) if name.endswith(".toml") else MANIFESTS / f"{name}.toml"
    if not path.is_file() or path.stem == UNSUPPORTED:
        near = did_you_mean(name, [*names(), *reasons])
        raise ConfigError(
            f"unknown suite {name!r}{near}; `flow-train benchmark --list` names all; a file of "
            "your own ends in .toml"
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name} is not valid TOML: {error}") from None
    return parse(table, path.name)


def parse(table: dict[str, Any], source: str) -> Manifest:
    """A manifest from nested tables; ConfigError if it is malformed or of another format."""
    if (found := table.get("format")) != FORMAT:
        raise ConfigError(
            f"{source} is a manifest of format {found}, this version reads {FORMAT}: use the "
            "version of flow-train that wrote it"
        )
    try:
        return Manifest.model_validate(_with_catalogue(table, source))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{source}: {where}: {first['msg'].lower()}") from None


def _with_catalogue(table: dict[str, Any], source: str) -> dict[str, Any]:
    """Files that are named as texts are those of `prompt_sets/official.toml`."""
    known = {file.path: file for one in catalog().values() for file in one.files}
    prompts = dict(table.get("prompts", {}))
    files: Sequence[Any] = prompts.get("files", ())
    if missing := [file for file in files if isinstance(file, str) and file not in known]:
        raise ConfigError(f"{source}: prompts.files: no published set has {missing[0]!r}")
    prompts["files"] = [
        {k: getattr(known[file], k) for k in ("path", "url", "bytes", "sha256", "git_blob")}
        if isinstance(file, str)
        else file
        for file in files
    ]
    return {**table, "prompts": prompts}
