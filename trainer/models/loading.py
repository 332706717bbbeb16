"""Pipelines from a folder or the Hugging Face hub."""

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open

from trainer.types import HIGH, LOW

if TYPE_CHECKING:  # the report and checks before a run look at folders without loading torch
    from trainer.models.base import ModelOptions

INDEX = "model_index.json"
# model.safetensors, model.fp16.safetensors, and shards of both in the old and the new naming.
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_|pytorch_)?model(?:-\d+-of-\d+)?(?:\.(?P<variant>\w+))?(?:-\d+-of-\d+)?"
    r"\.(?:safetensors|bin)"
)


def load_pipeline(
    pipeline: Any,
    path_or_id: str | Path,
    options: "ModelOptions",
    *,
    networks: tuple[str, ...] = (HIGH,),
    also: tuple[str, ...] = (),
) -> Any:
    """Load a pipeline folder (never from the network) or a hub id.

    ``networks``, the components that are trained, come in float32 under full fine-tuning, else in
    the compute dtype as the encoders do; the VAE always in float32. ``also`` names pipelines that
    may be loaded as this one.

    Raises:
        FileNotFoundError: There are no weights; the message says how to get them.
        ValueError: They are another pipeline's, or damaged.
    """
    import torch

    folder = Path(path_or_id).expanduser()
    names = (pipeline.__name__, *also)
    absent = _check_index(names, path_or_id, _find_index(path_or_id, folder))
    trained = torch.float32 if options.finetune == "full" else options.compute_dtype
    dtypes = {
        "default": options.compute_dtype,
        "vae": torch.float32,
        **dict.fromkeys(networks, trained),
    }
    try:
        return pipeline.from_pretrained(
            str(folder if folder.is_dir() else path_or_id),
            local_files_only=folder.is_dir(),
            variant=_variant(folder) if folder.is_dir() else None,
            dtype=dtypes,
            **absent,
        )
    # diffusers, transformers, safetensors and the hub each have errors of their own.
    except Exception as error:
        raise ValueError(_reason(path_or_id, error)) from error


def weight_files(component: Path) -> tuple[str | None, list[Path]]:
    """The weights in a component's folder as loading takes them, and their variant.

    Files without a variant come before those with one (``fp16``), safetensors before others.

    Raises:
        ValueError: There are none, or only those of several variants.
    """
    found: dict[str | None, list[Path]] = {}
    for path in sorted(component.glob("*")):
        if match := _WEIGHTS.fullmatch(path.name):
            found.setdefault(match["variant"], []).append(path)
    if not found:
        raise ValueError(f"{component} holds no weights (model.safetensors)")
    variant = None if None in found else next(iter(found))
    if variant is not None and len(found) > 1:
        raise ValueError(
            f"{component} holds weights of several variants: {', '.join(map(str, found))}"
        )
    files = found[variant]
    return variant, [path for path in files if path.suffix == ".safetensors"] or files


def model_folders(folder: Path) -> list[Path]:
    """The components of a pipeline folder that are networks."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    folders = [folder / name for name in index if not name.startswith("_")]
    return [path for path in folders if (path / "config.json").is_file()]


def network_parameters(folder: Path, *, both: bool = True) -> int:
    """Parameters of a pipeline's networks, of one or both experts, without loading them.

    Raises:
        ValueError: A component, its configuration or its weights are missing or damaged.
    """
    try:
        parts = model_folders(folder)
        for name in (HIGH, "vae"):
            if folder / name not in parts:
                raise ValueError(f"no {name}/config.json")
        files = {part: weight_files(part)[1] for part in parts}
        return sum(
            _elements(path)
            for part in parts
            if part.name == HIGH or (both and part.name == LOW)
            for path in files[part]
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} is not a whole pipeline folder ({error})") from error


def _elements(path: Path) -> int:
    if path.suffix == ".safetensors":
        with safe_open(path, "np") as file:
            names = file.keys()
            return sum(math.prod(file.get_slice(name).get_shape()) for name in names)
    import torch

    stored = torch.load(path, map_location="meta", mmap=True, weights_only=True)
    return sum(tensor.numel() for tensor in stored.values())


def in_cache(name: str) -> Path | None:
    """The folder of a hub id that has been downloaded; never reaches the network."""
    try:
        found = try_to_load_from_cache(name, INDEX)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def _variant(folder: Path) -> str | None:
    """The variant that some component has only weights of; None where all have plain ones."""
    found = (weight_files(component)[0] for component in model_folders(folder))
    return next((variant for variant in found if variant), None)


def looks_like_path(path_or_id: str | Path) -> bool:
    """Whether it is a path on this machine rather than a hub id."""
    # Hub ids are OWNER/NAME.
    text = str(path_or_id)
    return isinstance(path_or_id, Path) or text.startswith((".", "/", "~")) or text.count("/") != 1


def _how_to_get(path_or_id: str | Path) -> str:
    if looks_like_path(path_or_id):
        return "download the pipeline with `hf download OWNER/NAME --local-dir FOLDER`"
    return (
        f"accept the licence on the model's page if it has one, run `hf auth login`, then "
        f"`hf download {path_or_id} --local-dir FOLDER` where there is a network, "
        "and set model.path=FOLDER"
    )


def _find_index(path_or_id: str | Path, folder: Path) -> Path:
    """The index of a folder, or of a hub id: the first file asked for, so errors come early."""
    if folder.is_dir():
        if not (folder / INDEX).is_file():
            raise FileNotFoundError(
                f"{folder} is not a pipeline folder (no {INDEX}); {_how_to_get(folder)}"
            )
        return folder / INDEX
    if looks_like_path(path_or_id):
        raise FileNotFoundError(f"{folder}: no such folder; {_how_to_get(path_or_id)}")
    try:
        return Path(hf_hub_download(str(path_or_id), INDEX))
    # The hub has a dozen errors: no such id, no licence accepted, no network, no answer.
    except Exception as error:
        raise FileNotFoundError(_reason(path_or_id, error)) from error


def _check_index(
    names: tuple[str, ...], path_or_id: str | Path, index_file: Path
) -> dict[str, None]:
    """Check whose pipeline it is; return the components that it was saved without."""
    try:
        index = json.loads(index_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{index_file} is damaged ({error}); {_how_to_get(path_or_id)}") from error
    found = index.get("_class_name")
    if found not in names:
        raise ValueError(f"{path_or_id} holds a {found}, this model.family needs a {names[0]}")
    # diffusers saves a pipeline without a component but loads it only when told so.
    return {name: None for name, entry in index.items() if entry == [None, None]}


def _reason(path_or_id: str | Path, error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    first = text if len(text) <= 200 else f"{text[:200]}..."
    return f"cannot load {path_or_id} ({first}); {_how_to_get(path_or_id)}"
