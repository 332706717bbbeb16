"""Python code that draws with the result of a run in plain diffusers."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.load import resolve_path
from trainer.config.settings import Settings
from trainer.models.loading import INDEX, in_cache, looks_like_path
from trainer.report.data import environment
from trainer.types import EXPERTS, HIGH, LOW, guides

UNIPC = "UniPCMultistepScheduler"
Guidance = tuple[dict[str, float], float]


@dataclass(frozen=True, slots=True)
class Call:
    """How a family's pipeline is called."""

    # The arguments for a guidance scale of evaluations, and the scale of the classifier-free
    # guidance among them.
    guidance: Callable[[Settings, float], Guidance]
    video: bool = False
    pipeline: str = "DiffusionPipeline"  # another where the base may name one without pictures
    # Further arguments for a height and width, where it edits pictures.
    edit: Callable[[int, int], dict[str, Any]] | None = None
    marks: bool = False  # its encoder has to be told which tokens are a picture's


def _plain(settings: Settings, scale: float) -> Guidance:
    return {"guidance_scale": scale}, scale


def _flux(settings: Settings, scale: float) -> Guidance:
    """FLUX.1-dev has its guidance embedded and takes the classifier-free one on top of it."""
    config = _base_file(settings, "transformer/config.json")
    schnell = "schnell" in settings.model.path.lower()
    if not config.get("guidance_embeds", not schnell):
        return {"true_cfg_scale": scale}, scale
    further = settings.model.true_cfg_scale
    arguments = {"guidance_scale": scale}
    return ({**arguments, "true_cfg_scale": further} if guides(further) else arguments), further


QWEN_EDIT = Call(
    lambda settings, scale: ({"true_cfg_scale": scale}, scale),
    edit=lambda height, width: {},
    marks=True,
)

# Their negative prompt is empty, or there is none.
FLUX2 = Call(
    lambda settings, scale: ({"guidance_scale": scale}, 1.0), edit=lambda height, width: {}
)

# By `model.family`; pipelines disagree about what their guidance_scale is.
CALLS: Mapping[str, Call] = {
    "sd3": Call(_plain),
    "flux": Call(_flux),
    "qwen_image": Call(lambda settings, scale: ({"true_cfg_scale": scale}, scale)),
    "qwen_image_edit": QWEN_EDIT,
    "qwen_image_edit_plus": QWEN_EDIT,
    # Its scale is added to the conditional prediction: 0 is none.
    "z_image": Call(lambda settings, scale: ({"guidance_scale": max(scale - 1, 0.0)}, scale)),
    "wan": Call(_plain, video=True),
    "wan_i2v": Call(
        _plain, video=True, pipeline="WanImageToVideoPipeline", edit=lambda height, width: {}
    ),
    "flux2_klein": FLUX2,
    "flux2_dev": FLUX2,
    # Without these, the pipeline makes and reads pictures of a megapixel.
    "flux_kontext": Call(
        _flux, edit=lambda height, width: {"max_area": height * width, "_auto_resize": False}
    ),
}


def base_of(settings: Settings) -> str:
    """The base model as code names it: a hub id, or a path as seen from where training ran."""
    return settings.model.path.replace("@mini/", "miniature/")


def is_hub_id(settings: Settings) -> bool:
    """Whether the base model is on the hub rather than in a folder."""
    path = settings.model.path
    return not (path.startswith("@mini/") or Path(path).exists() or looks_like_path(path))


def snippet(
    settings: Settings,
    folder: str,
    prompt: str,
    references: Sequence[str] = (),
    *,
    whole: bool = False,
) -> str:
    """Code that loads the weights in `folder` and draws a prompt as evaluations do.

    `folder` holds a LoRA, or a folder per network; with `whole`, a complete pipeline. `references`
    are the files that the prompt is about.
    """
    lora, call = settings.model.finetune == "lora", CALLS[settings.model.family]
    networks = () if whole else trained_networks(settings)
    dtype = "float32" if settings.model.dtype == "auto" else settings.model.dtype
    loaded = [json.dumps(folder if whole else base_of(settings))]
    loaded += [f"{name}={name}" for name in networks if name != LOW and not lora]
    loaded += [f"{name}=None" for name in absent_components(settings)]
    scheduler = _base_file(settings, "scheduler/scheduler_config.json").get("_class_name")
    sources = list(references)
    if call.edit is not None and settings.task.name == "edit":
        sources = sources or ["source.png"]
    height, width, _ = settings.sampling.size
    return (
        environment(html=False)
        .get_template("snippet.txt")
        .render(
            networks=() if lora else networks,
            folder=json.dumps(folder),
            dtype=dtype,
            load=_call(
                f"pipe = {call.pipeline}.from_pretrained", [*loaded, f"torch_dtype=torch.{dtype}"]
            ),
            adapters=[_adapter(folder, name) for name in networks if lora],
            unipc=scheduler == UNIPC,
            steps=settings.sampling.eval_num_steps,
            call=call,
            sources=sources,
            size=(width, height),
            draw=_drawing(settings, call, prompt, len(sources)),
        )
    )


def _adapter(folder: str, network: str) -> str:
    """The line that loads the LoRA of a network; each expert of Wan 2.2 has a file of its own."""
    if network == HIGH:
        return f"pipe.load_lora_weights({json.dumps(folder)})"
    return _call("pipe.load_lora_weights", [json.dumps(f"{folder}/{LOW}"), f"load_into_{LOW}=True"])


def _drawing(settings: Settings, call: Call, prompt: str, sources: int) -> str:
    sampling = settings.sampling
    scale = sampling.eval_guidance_scale
    scale = sampling.guidance_scale if scale is None else scale
    height, width, frames = sampling.size
    arguments: dict[str, Any] = {"height": height, "width": width}
    if call.edit is not None:
        arguments |= call.edit(height, width)
    if call.video:
        arguments["num_frames"] = frames
    arguments["num_inference_steps"] = sampling.eval_num_steps
    guidance, free = call.guidance(settings, scale)
    arguments |= guidance
    if guides(free):
        # Also where it is empty: some pipelines leave guidance out without one.
        arguments["negative_prompt"] = sampling.negative_prompt
    if settings.model.max_sequence_length or settings.model.family == "sd3":
        arguments["max_sequence_length"] = settings.model.max_sequence_length
    parts = [json.dumps(prompt)]
    if call.edit is not None:
        # The picture is the first argument of these pipelines.
        pictures = ["source" if sources == 1 else "sources"] if sources else []
        parts = [*pictures, f"prompt={parts[0]}"]
    parts += [f"{name}={_literal(value)}" for name, value in arguments.items()]
    return _call(f"{'video' if call.video else 'image'} = pipe", parts)


def absent_components(settings: Settings) -> list[str]:
    """Components that the base was saved without; diffusers wants to be told so."""
    entries = _base_file(settings, INDEX)
    return [name for name, entry in entries.items() if entry == [None, None]]


def has_two_experts(settings: Settings) -> bool:
    """Whether the base is a Wan 2.2 with a second network for low noise."""
    return _base_file(settings, INDEX).get(LOW, [None])[0] is not None


def trained_networks(settings: Settings) -> tuple[str, ...]:
    """Names of the base's components that are trained."""
    experts = settings.model.experts if has_two_experts(settings) else "high_noise"
    return EXPERTS[experts]


def _base_file(settings: Settings, name: str) -> dict[str, Any]:
    """A JSON file of the base model, in its folder or the hub's cache; empty if it is not there."""
    place = resolve_path(settings.model.path)
    folder = place if place.is_dir() else in_cache(settings.model.path)
    file = (folder or place) / name
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _call(head: str, arguments: list[str]) -> str:
    one = f"{head}({', '.join(arguments)})"
    if len(one) <= 90:
        return one
    return "\n".join([f"{head}(", *(f"    {argument}," for argument in arguments), ")"])


def _literal(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if isinstance(value, str) else repr(value)
