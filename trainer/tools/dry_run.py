"""`train --dry-run`: everything that can be known before weights are loaded."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from trainer.config.load import resolve_path
from trainer.config.settings import Settings
from trainer.data import category_probabilities
from trainer.errors import TrainerError
from trainer.evaluation.held_out import all_terms
from trainer.models.architecture import Architecture, find
from trainer.models.registry import TARGETS
from trainer.rewards import connect
from trainer.run import checkpoint as checkpoints
from trainer.run.inputs import load_prompts
from trainer.run.progress import finished
from trainer.tools import estimate

_PATIENCE_S = 2.0
_GB = 1e9


@dataclass(frozen=True, slots=True)
class Found:
    """One thing that was looked at.

    Attributes:
        what: its name.
        text: what was found.
        ok: nothing to say about it.
        stops: a run would end with it at once.
    """

    what: str
    text: str
    ok: bool = True
    stops: bool = False


def checks(
    settings: Settings, environment: Mapping[str, str], shape: Architecture | None, broken: str
) -> Iterator[Found]:
    """Look at prompts, model, service and folder.

    Args:
        settings: of the run.
        environment: of the process.
        shape: of the model, where it is known.
        broken: why it is not, if its folder is damaged.
    """
    yield _prompts(settings)
    yield _model(settings, shape, broken)
    yield _service(settings, environment)
    yield _folder(settings)


def shape_of(settings: Settings) -> tuple[Architecture | None, str]:
    """The model's shapes, or why there are none."""
    place = resolve_path(settings.model.path)
    try:
        return find(place if place.is_dir() else settings.model.path), ""
    except ValueError as error:
        return None, str(error)


def estimates(
    settings: Settings, shape: Architecture, *, gpu: str, gpus: int
) -> Iterator[tuple[str, str]]:
    """Rows of (what, how much), memory first; blank rows part them."""
    targets = settings.model.lora_targets or TARGETS[settings.model.family]()
    needed = estimate.memory(settings, shape, targets, gpus)
    for name, size in needed.resident.items():
        if size:
            yield name, _bytes(size)
    largest = max(needed.passing, key=lambda name: needed.passing[name])
    for name, size in needed.passing.items():
        if size:
            aside = "" if name == largest else ", not at the same time"
            yield name, _bytes(size) + aside
    yield "memory per GPU", f"about {_bytes(needed.peak)}"
    yield "", ""
    took = estimate.time(settings, shape, gpu, gpus)
    yield "one evaluation of the network", f"{took.flop_per_evaluation / 1e12:.3g} TFLOP"
    yield "one epoch, per GPU", f"{took.flop / 1e15:.3g} PFLOP"
    yield "time per epoch", f"about {_duration(took.seconds)}"
    total = took.seconds * settings.run.epochs
    yield f"{settings.run.epochs} epochs", f"about {_duration(total)}"


def assumptions(gpu: str, shape: Architecture) -> str:
    """What the estimates rest on, in one sentence."""
    speed = estimate.GPUS[gpu] / 1e12
    return (
        f"Estimates from {shape.source}: {gpu} at {estimate.USED_SHARE:.0%} of {speed:,.3g} "
        "TFLOP/s; decoding, text encoders, scoring, evaluations and communication are not counted, "
        "nor is what PyTorch reserves beyond what it uses."
    )


def _prompts(settings: Settings) -> Found:
    said: list[str] = []
    try:
        train, test = load_prompts(settings, said.append)
        category_probabilities(train, settings.task.category_weights)
    except TrainerError as error:
        return Found("prompts", str(error), stops=True)
    rows = sum(prompt.rows for prompt in train)
    text = f"{len(train):,} to train on ({rows:,} rows), {len(test):,} held out"
    return Found("prompts", "; ".join([text, *said]))


def _model(settings: Settings, shape: Architecture | None, broken: str) -> Found:
    name = settings.model.path
    if broken:
        return Found("model", broken, stops=True)
    if shape is None:
        return Found("model", f"{name}: not here, and its shapes are not known", ok=False)
    height, width, _ = settings.sampling.size
    side = shape.patch * shape.scale
    if height % side or width % side:
        return Found("model", f"sampling: image sides must be multiples of {side} px", stops=True)
    text = f"{name}: {shape.parameters / 1e9:.3g} billion parameters in the network"
    here = Path(shape.source).is_dir()
    if not here:
        text += (
            "; not on this machine: accept its licence on the hub if it has one, run `hf auth "
            f"login`, then `hf download {name}`, or set model.path to a folder"
        )
    return Found("model", text, ok=here)


def _service(settings: Settings, environment: Mapping[str, str]) -> Found:
    quick = settings.rewards.model_copy(update={"patience_s": _PATIENCE_S})
    try:
        service = connect(quick, environment)
        try:
            service.check(all_terms(settings))
        finally:
            service.close()
    except TrainerError as error:
        return Found("rewards", str(error), ok=False)
    return Found("rewards", f"{settings.rewards.url} is ready with every scorer")


def _folder(settings: Settings) -> Found:
    run_dir = Path(settings.run.out_dir)
    result = finished(run_dir, settings)
    if result is not None:
        return Found("folder", f"{run_dir} holds a finished run ({result['reason']})")
    found = checkpoints.present(run_dir)
    if found:
        return Found("folder", f"{run_dir} would be resumed from {found[0].name}")
    return Found("folder", f"{run_dir} is new")


def _bytes(size: float) -> str:
    return f"{size / _GB:.2f} GB" if size >= 1e7 else f"{size / 1e6:.2f} MB"


def _duration(seconds: float) -> str:
    for size, name in ((86400.0, "days"), (3600.0, "hours"), (60.0, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.1f} seconds"
