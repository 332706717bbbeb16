"""Python code that draws with the result of a run in plain diffusers."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.config.load import resolve_path
from trainer.config.settings import Settings

INDEX = "model_index.json"


@dataclass(frozen=True, slots=True)
class Call:
    """How a family's pipeline is called.

    Attributes:
        guidance: arguments for the guidance scale of evaluations.
        video: whether it makes videos.
    """

    guidance: Callable[[Settings, float], Mapping[str, float]]
    video: bool = False


# By `model.family`; pipelines disagree about what their guidance_scale is.
CALLS: Mapping[str, Call] = {
    "sd3": Call(lambda settings, scale: {"guidance_scale": scale}),
    "flux": Call(
        lambda settings, scale: {
            "guidance_scale": scale,
            **_unless(1.0, true_cfg_scale=getattr(settings.model, "true_cfg_scale", 1.0)),
        }
    ),
    "qwen_image": Call(lambda settings, scale: {"true_cfg_scale": scale}),
    "z_image": Call(lambda settings, scale: {"guidance_scale": scale - 1}),
    "wan": Call(lambda settings, scale: {"guidance_scale": scale}, video=True),
}


def base_of(settings: Settings) -> str:
    """The base model as code names it: a hub id, or a path as seen from where training ran."""
    return settings.model.path.replace("@mini/", "miniature/")


def is_hub_id(settings: Settings) -> bool:
    """Whether the base model is on the hub rather than in a folder."""
    path = settings.model.path
    return not path.startswith("@mini/") and not Path(path).exists() and path.count("/") == 1


def snippet(
    settings: Settings,
    folder: str,
    prompt: str,
    networks: tuple[str, ...] = (),
    *,
    whole: bool = False,
) -> str:
    """Code that loads the weights in `folder` and draws a prompt as evaluations do.

    Args:
        settings: of the run.
        folder: where the weights are: a LoRA, or a folder per network.
        prompt: what is drawn.
        networks: names of the networks that were trained in full; empty for a LoRA.
        whole: the folder holds a complete pipeline.
    """
    networks = () if whole else networks
    dtype = "float32" if settings.model.dtype == "auto" else settings.model.dtype
    lines = ["import torch", "from diffusers import DiffusionPipeline", ""]
    if networks:
        lines[1] = "from diffusers import AutoModel, DiffusionPipeline"
    loaded = [json.dumps(folder if whole else base_of(settings))]
    for name in networks:
        lines.append(
            f"{name} = AutoModel.from_pretrained("
            f'{json.dumps(folder)}, subfolder="{name}", torch_dtype=torch.{dtype})'
        )
        loaded.append(f"{name}={name}")
    loaded += [f"{name}=None" for name in absent_components(settings)]
    lines += _call(
        "pipe = DiffusionPipeline.from_pretrained", [*loaded, f"torch_dtype=torch.{dtype}"]
    )
    if not networks and not whole:
        lines.append(f"pipe.load_lora_weights({json.dumps(folder)})")
    lines += [
        'pipe.to("cuda" if torch.cuda.is_available() else "cpu")',
        *_drawing(settings, prompt),
    ]
    return "\n".join(lines)


def _drawing(settings: Settings, prompt: str) -> list[str]:
    sampling = settings.sampling
    scale = sampling.eval_guidance_scale
    scale = sampling.guidance_scale if scale is None else scale
    call = CALLS.get(settings.model.family, CALLS["sd3"])
    height, width, frames = sampling.size
    arguments: dict[str, Any] = {"height": height, "width": width}
    if call.video:
        arguments["num_frames"] = frames
    arguments["num_inference_steps"] = sampling.eval_num_steps
    arguments |= call.guidance(settings, scale)
    if sampling.negative_prompt:
        arguments["negative_prompt"] = sampling.negative_prompt
    if settings.model.max_sequence_length or settings.model.family == "sd3":
        arguments["max_sequence_length"] = settings.model.max_sequence_length
    parts = [json.dumps(prompt)]
    parts += [f"{name}={_literal(value)}" for name, value in arguments.items()]
    out = _call(f"{'video' if call.video else 'image'} = pipe", parts)
    if call.video:
        out[-1] += ".frames[0]"
        return [
            *out,
            "from diffusers.utils import export_to_video",
            'export_to_video(video, "video.mp4")',
        ]
    out[-1] += ".images[0]"
    return [*out, 'image.save("image.png")']


def absent_components(settings: Settings) -> list[str]:
    """Components that a local base was saved without; diffusers wants to be told so."""
    index = resolve_path(settings.model.path) / INDEX
    if not index.is_file():
        return []
    entries = json.loads(index.read_text(encoding="utf-8"))
    return [name for name, entry in entries.items() if entry == [None, None]]


def load_pipeline(settings: Settings, **components: Any) -> Any:
    """The base pipeline as the snippet loads it, in float32, with some components replaced."""
    from diffusers import DiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]

    place = resolve_path(settings.model.path)
    absent = dict.fromkeys(absent_components(settings))
    return DiffusionPipeline.from_pretrained(
        str(place if place.exists() else settings.model.path),
        torch_dtype=torch.float32,
        **{**absent, **components},
    )


def _call(head: str, arguments: list[str]) -> list[str]:
    one = f"{head}({', '.join(arguments)})"
    if len(one) <= 90:
        return [one]
    return [f"{head}(", *(f"    {argument}," for argument in arguments), ")"]


def _literal(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else json.dumps(value)


def _unless(default: float, **arguments: float) -> dict[str, float]:
    return {name: value for name, value in arguments.items() if value != default}
