"""What would stop a run, before it loads anything: prompts, model, memory, service, folder."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.config.load import resolve_path
from trainer.config.settings import Settings
from trainer.data import category_probabilities
from trainer.errors import ConfigError, ServiceError, TrainerError
from trainer.models.loading import in_cache, looks_like_path
from trainer.rewards import connect
from trainer.run import checkpoint as checkpoints
from trainer.run.inputs import load_prompts, starting_lora
from trainer.run.progress import finished
from trainer.run.resume import check_same
from trainer.run.trial import trial
from trainer.tools.cost import (
    PEAK_FLOPS,
    RELEASED,
    Network,
    least_bytes,
    least_seconds,
    network_of,
    passes,
)
from trainer.types import Prompt

_PATIENCE_S = 2.0
_GB = 1e9


@dataclass(frozen=True, slots=True)
class Found:
    """What a check found: `ok` unless there is something to note; `stops` if a run would end."""

    what: str
    text: str
    ok: bool = True
    stops: bool = False


def checks(
    settings: Settings, environment: Mapping[str, str], *, gpus: int, gpu_gb: float
) -> Iterator[Found]:
    """Look at prompts, model, service and folder; `gpu_gb` is of one GPU, 0: of this machine's."""
    found, prompts = _prompts(settings)
    yield found
    yield from _model(settings, gpus, gpu_gb)
    yield _service(settings, environment, prompts)
    yield _folder(settings)


def _prompts(settings: Settings) -> tuple[Found, list[Prompt]]:
    said: list[str] = []
    try:
        train, test = load_prompts(settings, said.append)
        category_probabilities(train, settings.task.category_weights)
    except TrainerError as error:
        return Found("prompts", str(error), stops=True), []
    rows = sum(prompt.rows for prompt in train)
    text = f"{len(train):,} to train on ({rows:,} rows), {len(test):,} held out"
    return Found("prompts", "; ".join([text, *said])), [*train, *test]


def _model(settings: Settings, gpus: int, gpu_gb: float) -> Iterator[Found]:
    name = settings.model.path
    folder = resolve_path(name)
    if not folder.is_dir() and (folder.exists() or looks_like_path(name)):
        yield Found("model", f"model.path={name} is no folder of a pipeline", stops=True)
        return
    cached = folder if folder.is_dir() else in_cache(name)
    if cached is None:
        yield Found(
            "model",
            f"{name} is not on this machine: accept its licence on the hub if it has one, run "
            f"`hf auth login`, then `hf download {name}`, or set model.path to a folder",
            ok=False,
        )
        network = RELEASED.get(name)
    else:
        try:
            network = network_of(cached)
            starting_lora(settings)
        except (ValueError, ConfigError) as error:
            yield Found("model", str(error), stops=True)
            return
        experts = f"each of {network.count} networks" if network.count > 1 else "the network"
        size = f"{network.parameters / 1e9:.3g} billion parameters in {experts}"
        yield Found("model", f"{name}: {size}")
    available_gb = gpu_gb or _gpu_gb()
    if network and available_gb:
        yield from _cost(settings, network, gpus, available_gb)


def _cost(settings: Settings, network: Network, gpus: int, available_gb: float) -> Iterator[Found]:
    """Memory and time of a model."""
    held = network.count if settings.model.experts == "both" else 1
    least_gb = least_bytes(settings, network.parameters * held, gpus) / _GB
    text = (
        f"weights, gradients and moments alone take {least_gb:.3g} GB of {available_gb:.3g} GB per "
        "GPU; activations come on top"
    )
    yield Found("memory", text, stops=least_gb > available_gb)
    forward, back = passes(settings)
    epoch_s = least_seconds(settings, network, gpus)
    text = (
        f"{forward} passes forward and {back} back per image: at the least {_span(epoch_s)} per "
        f"epoch and {_span(epoch_s * settings.run.epochs)} for {settings.run.epochs} epochs at the "
        f"peak of an H100, {PEAK_FLOPS / 1e12:.0f} TFLOP/s, which nothing reaches; attention, "
        "decoding, scores and evaluations come on top"
    )
    yield Found("time", text)


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"


def _gpu_gb() -> float:
    if not torch.cuda.is_available():
        return 0.0
    return torch.cuda.get_device_properties(0).total_memory / _GB


def _service(
    settings: Settings, environment: Mapping[str, str], prompts: Sequence[Prompt]
) -> Found:
    quick = settings.rewards.model_copy(update={"patience_s": _PATIENCE_S})
    try:
        with closing(connect(quick, environment)) as service:
            service.check(settings.terms)
            if prompts:
                trial(service, settings, prompts)
    except ServiceError as error:
        return Found("rewards", str(error), ok=False)
    except ConfigError as error:
        return Found("rewards", str(error), stops=True)
    return Found("rewards", f"{settings.rewards.url} is ready with every scorer")


def _folder(settings: Settings) -> Found:
    run_dir = Path(settings.run.out_dir)
    if result := finished(run_dir, settings):
        return Found("folder", f"{run_dir} holds a finished run ({result['reason']})")
    if found := checkpoints.present(run_dir):
        with suppress(OSError, ValueError, KeyError):  # a resume needs no config.json
            config = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))
            try:
                check_same(settings, config["settings"], run_dir)
            except ConfigError as error:
                return Found("folder", str(error), stops=True)
        return Found("folder", f"{run_dir} would be resumed from {found[0].name}")
    return Found("folder", f"{run_dir} is new")
