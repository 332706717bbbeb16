"""`flow-train benchmark`: pictures, then scores, then one JSON, a table and a page."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from prompt_sets.download import pull
from prompt_sets.official import OfficialSet
from trainer.config.load import resolve_path
from trainer.config.settings import RewardSettings, Settings
from trainer.errors import ConfigError
from trainer.evaluation.sampling import spread
from trainer.models.network import base_fingerprint, sampled_fingerprint
from trainer.models.precision import resolve
from trainer.parallel.world import World, setup_torch
from trainer.rewards import RewardService, connect
from trainer.run.inputs import check_for
from trainer.run.log import read_json, versions, write_json
from trainer.run.storage import storing
from trainer.suites import manifest as manifests
from trainer.suites.cases import Case, load
from trainer.suites.draw import draw_missing
from trainer.suites.manifest import FORMAT, Manifest
from trainer.suites.pictures import MADE, Pictures, claim, made_from
from trainer.suites.result import Scored, suite_result
from trainer.suites.scoring import score_missing
from trainer.terminal import Show, silent
from trainer.tools.artifacts import Choice, Target, find
from trainer.types import Prompt

RESULT = "benchmark.json"
Connect = Callable[[RewardSettings], RewardService]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do: `limit` prompts (of paraphrases: scenes) of each suite, and one step alone."""

    suites: Sequence[str]
    out: Path
    data: Path
    limit: int = 0
    only: Literal["", "draw", "score"] = ""


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite that is ready to be drawn."""

    name: str
    manifest: Manifest
    cases: Sequence[Case]
    prompts: Sequence[int]  # which of the cases
    pictures: Pictures

    @property
    def jobs(self) -> list[tuple[int, int]]:
        return [(p, image) for p in self.prompts for image in range(self.pictures.per_prompt)]


def benchmark(
    place: str,
    choice: Choice,
    plan: Plan,
    environment: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
    show: Show = silent,
    open_service: Connect | None = None,
) -> dict[str, Any] | None:
    """Draw, score and write down; what `benchmark.json` holds, or None if nothing was scored.

    Raises:
        TrainerError: anything that a user can mend.
    """
    environment = os.environ if environment is None else environment
    wanted = [(name, manifests.load(name)) for name in dict.fromkeys(plan.suites)]
    target = find(place, with_url(choice, environment))
    settings = target.settings
    if settings.sampling.num_frames > 1:
        raise ConfigError("suites judge pictures; for videos there is none (--list says why)")
    device = setup_torch(settings.run)
    world = World.join(environment, device.type)
    connected = open_service or (lambda rewards: connect(rewards, environment))
    try:
        world.on_main(lambda: fetch([m for _, m in wanted], plan.data, say))
        suites = [
            opened(name, m, plan, settings, say if world.is_main else quiet) for name, m in wanted
        ]
        if plan.only != "score":
            _draw(target, suites, world, device, show if world.is_main else silent)
        if plan.only == "draw" or not world.is_main:
            return None
        return _scored(target, suites, plan, connected, show)
    finally:
        world.leave()


def with_url(choice: Choice, environment: Mapping[str, str]) -> Choice:
    url = environment.get("REWARD_URL")
    named = [f"rewards.url={url}"] if url else []
    return replace(choice, overrides=[*named, *choice.overrides])


def quiet(text: str) -> None:
    """Say nothing: another process says it."""


def fetch(chosen: Sequence[Manifest], data: Path, say: Callable[[str], None]) -> None:
    """Fetch the prompt files that are not there, after their source and licence.

    Raises:
        DataError: one cannot be had, or is not the one of the manifest.
    """
    for manifest in chosen:
        files = [file for file in manifest.prompts.files if file.url]
        missing = [file.official for file in files if not file.place(data).is_file()]
        if missing:
            say(f"{manifest.title}: {manifest.prompts.source}; licence: {manifest.prompts.licence}")
            pull([OfficialSet(manifest.title, manifest.what, tuple(missing))], data, say)


def opened(
    name: str, manifest: Manifest, plan: Plan, settings: Settings, say: Callable[[str], None]
) -> Suite:
    """A suite with its cases, checked against what the model takes."""
    cases = load(manifest, plan.data, say)
    check_for([case.prompt for case in cases], settings, say)
    pictures = Pictures(plan.out / Path(name).stem, manifest.images.per_prompt)
    return Suite(Path(name).stem, manifest, cases, chosen(cases, plan.limit), pictures)


def chosen(cases: Sequence[Case], limit: int) -> list[int]:
    """The cases of `limit` units, evenly over the strata; 0 takes all."""
    strata = {case.unit: case.stratum for case in cases}
    units = [Prompt(str(unit), group=stratum) for unit, stratum in strata.items()]
    kept = {int(units[place].text) for place in spread(units, limit)}
    return [place for place, case in enumerate(cases) if case.unit in kept]


def identity(target: Target) -> dict[str, Any]:
    """Which model it is, as far as that is known without loading it."""
    path = target.settings.model.path
    return {
        "path": path,
        "revision": _revision(path),
        "epoch": target.epoch,
        "trained_sha256": sampled_fingerprint(sorted(target.weights.items()))
        if target.weights
        else None,
    }


def _revision(path: str) -> str | None:
    """The commit of a model of the hub that is in the cache; None for a folder."""
    if resolve_path(path).exists():
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(path, "model_index.json")
    return Path(found).parent.name if isinstance(found, str) else None


def _seeded(settings: Settings, suite: Suite) -> Settings:
    seeded = settings.eval.model_copy(update={"seed": suite.manifest.images.seed})
    return settings.model_copy(update={"eval": seeded})


def _draw(
    target: Target, suites: Sequence[Suite], world: World, device: torch.device, show: Show
) -> None:
    """Draw what is missing; the model is loaded only if something is."""
    for suite in suites:
        made = made_from(identity(target), _seeded(target.settings, suite), suite.cases)
        world.on_main(lambda suite=suite, made=made: claim(suite.pictures, made))
    todo = world.broadcast([suite.pictures.missing(suite.prompts) for suite in suites])
    if not any(todo):
        return
    show(f"loading {target.title}", 0, 0)
    model = target.load(device)
    sampling = target.settings.sampling
    sigmas = model.sigmas(sampling.eval_num_steps, tuple(model.latent_shape(*sampling.size)))
    loaded = {
        "base_sha256": base_fingerprint(model.networks()),
        "computed_in": str(resolve(target.settings.model.dtype, device)).removeprefix("torch."),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "sampler": "Euler steps along sigmas",
        "sigmas": [round(float(sigma), 6) for sigma in sigmas],
    }
    for suite, prompts in zip(suites, todo, strict=True):
        if prompts:
            world.on_main(lambda suite=suite: _note(suite.pictures, loaded))
            settings = _seeded(target.settings, suite)
            draw_missing(model, suite.pictures, suite.cases, prompts, settings, world, show)
    world.any(False)  # the others have written theirs


def _note(pictures: Pictures, loaded: Mapping[str, Any]) -> None:
    """Write down what is known once the model is loaded, or refuse another than before."""
    made = read_json(pictures.folder / MADE)
    if made.get("base_sha256", loaded["base_sha256"]) != loaded["base_sha256"]:
        raise ConfigError(
            f"{pictures.folder} holds pictures of other base weights "
            f"({made['base_sha256'][:12]}, now {loaded['base_sha256'][:12]}): name another --out"
        )
    with storing(str(pictures.folder / MADE)):
        write_json(pictures.folder / MADE, {**made, **loaded})


def _scored(
    target: Target,
    suites: Sequence[Suite],
    plan: Plan,
    connected: Connect,
    show: Show,
) -> dict[str, Any]:
    settings = target.settings
    for suite in suites:
        if missing := suite.pictures.missing(suite.prompts):
            raise ConfigError(
                f"{suite.pictures.folder} lacks the pictures of {len(missing)} of "
                f"{len(suite.prompts)} prompts: run it without --only score first"
            )
        wanted = made_from(identity(target), _seeded(settings, suite), suite.cases)
        made = read_json(suite.pictures.folder / MADE)
        # Who only scores need not have the hub's files.
        wanted["model"]["revision"] = made["model"]["revision"]
        claim(suite.pictures, wanted)
    made = read_json(suites[0].pictures.folder / MADE)
    model = {"title": target.title, "preset": target.preset or None, **made["model"]}
    before = read_json(plan.out / RESULT) or {}
    alike = before.get("format") == FORMAT and before.get("model") == model
    results = dict(before["suites"]) if alike else {}
    service = connected(settings.rewards)
    try:
        for suite in suites:
            scored = _ask(service, suite, show)
            made = read_json(suite.pictures.folder / MADE)
            results[suite.name] = suite_result(
                suite.name, suite.manifest, suite.cases, suite.prompts, scored,
                suite.pictures, made, settings,
            )  # fmt: skip
    finally:
        service.close()
    document = {
        "format": FORMAT,
        "model": model,
        "suites": results,
        "settings": settings.model_dump(mode="json"),
        "versions": versions(),
    }
    with storing(str(plan.out / RESULT)):
        write_json(plan.out / RESULT, document)
    return document


def _ask(service: RewardService, suite: Suite, show: Show) -> Scored:
    terms = suite.manifest.terms
    fingerprints = service.check(terms)
    return score_missing(
        service,
        suite.pictures,
        suite.cases,
        suite.jobs,
        terms,
        fingerprints,
        lambda done, total: show(f"scoring {suite.name}", done, total),
    )
