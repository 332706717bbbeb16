"""Python code that draws with the result of a run in plain diffusers."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.config.load import resolve_path
from trainer.config.settings import Settings
from trainer.models.base import HIGH, LOW
from trainer.models.family import guides
from trainer.models.loading import INDEX, in_cache

UNIPC = "UniPCMultistepScheduler"
Guidance = tuple[dict[str, float], float]


@dataclass(frozen=True, slots=True)
class Call:
    """How a family's pipeline is called.

    Attributes:
        guidance: the arguments for a guidance scale of evaluations, and the scale of the
            classifier-free guidance among them.
        video: whether it makes videos.
        edit: further arguments for a height and width, where it edits pictures.
        before: lines that the pipeline needs first.
    """

    guidance: Callable[[Settings, float], Guidance]
    video: bool = False
    edit: Callable[[int, int], dict[str, Any]] | None = None
    before: tuple[str, ...] = ()


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


MARK_PICTURES = (
    "",
    "# Which tokens are a picture's: the pipeline does not tell the encoder (diffusers #14194).",
    "def mark_pictures(module, args, kwargs):",
    '    marks = (kwargs["input_ids"] == module.config.image_token_id).int()',
    '    return args, {"mm_token_type_ids": marks, **kwargs}',
    "",
    "pipe.text_encoder.register_forward_pre_hook(mark_pictures, with_kwargs=True)",
)
QWEN_EDIT = Call(
    lambda settings, scale: ({"true_cfg_scale": scale}, scale),
    edit=lambda height, width: {},
    before=MARK_PICTURES,
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
    # Its negative prompt is always empty.
    "flux2_klein": Call(
        lambda settings, scale: ({"guidance_scale": scale}, 1.0), edit=lambda height, width: {}
    ),
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
    return not path.startswith("@mini/") and not Path(path).exists() and path.count("/") == 1


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
    lora = settings.model.finetune == "lora"
    networks = () if whole or lora else trained_networks(settings)
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
        if name != LOW:
            loaded.append(f"{name}={name}")
    loaded += [f"{name}=None" for name in absent_components(settings)]
    lines += _call(
        "pipe = DiffusionPipeline.from_pretrained", [*loaded, f"torch_dtype=torch.{dtype}"]
    )
    if LOW in networks:
        lines += [
            "# Optional in this pipeline, so `from_pretrained` ignores one that is passed to it.",
            f"pipe.register_modules({LOW}={LOW})",
        ]
    if lora and not whole:
        lines += _adapters(settings, folder)
    lines += _solver(settings)
    lines += CALLS.get(settings.model.family, CALLS["sd3"]).before
    lines += [
        'pipe.to("cuda" if torch.cuda.is_available() else "cpu")',
        *_drawing(settings, prompt, references),
    ]
    return "\n".join(lines)


def _adapters(settings: Settings, folder: str) -> list[str]:
    """Lines that load the LoRA, or that of each trained expert of Wan 2.2."""
    networks = trained_networks(settings)
    lines = [f"pipe.load_lora_weights({json.dumps(folder)})"] if HIGH in networks else []
    if LOW in networks:
        place = json.dumps(f"{folder}/{LOW}")
        lines += _call("pipe.load_lora_weights", [place, f"load_into_{LOW}=True"])
    return lines


def _solver(settings: Settings) -> list[str]:
    if _base_file(settings, "scheduler/scheduler_config.json").get("_class_name") != UNIPC:
        return []
    steps = settings.sampling.eval_num_steps
    return [
        "# Euler steps, as in evaluations; without these lines, the pipeline's own solver.",
        "pipe.scheduler = pipe.scheduler.from_config(",
        f"    pipe.scheduler.config, solver_order=1, disable_corrector=list(range({steps}))",
        ")",
    ]


def _drawing(settings: Settings, prompt: str, references: Sequence[str]) -> list[str]:
    sampling = settings.sampling
    scale = sampling.eval_guidance_scale
    scale = sampling.guidance_scale if scale is None else scale
    call = CALLS.get(settings.model.family, CALLS["sd3"])
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
    parts += [f"{name}={_literal(value)}" for name, value in arguments.items()]
    sources: list[str] = []
    if call.edit is not None and settings.task.name == "edit":
        sources = _sources(references, (width, height))
        # The picture is the first argument of these pipelines.
        parts[0] = f"prompt={parts[0]}"
        parts.insert(0, "source" if len(references) < 2 else "sources")
    out = _call(f"{'video' if call.video else 'image'} = pipe", parts)
    if call.video:
        out[-1] += ".frames[0]"
        return [
            *out,
            "from diffusers.utils import export_to_video",
            'export_to_video(video, "video.mp4")',
        ]
    out[-1] += ".images[0]"
    return [*sources, *out, 'image.save("image.png")']


def _sources(references: Sequence[str], size: tuple[int, int]) -> list[str]:
    """Lines that read the pictures to edit, in the size that they were trained in."""
    lines = ["from diffusers.utils import load_image", "from PIL import Image, ImageOps", ""]
    fitted = "ImageOps.fit(load_image({}), {}, Image.Resampling.LANCZOS)"
    if len(references) < 2:
        name = json.dumps(next(iter(references), "source.png"))
        return [*lines, f"source = {fitted.format(name, size)}"]
    return [
        *lines,
        f"names = {json.dumps(list(references))}",
        f"sources = [{fitted.format('name', size)} for name in names]",
    ]


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
    return {"both": (HIGH, LOW), "high_noise": (HIGH,), "low_noise": (LOW,)}[experts]


def _base_file(settings: Settings, name: str) -> dict[str, Any]:
    """A JSON file of the base model, in its folder or the hub's cache; empty if it is not there."""
    place = resolve_path(settings.model.path)
    folder = place if place.is_dir() else in_cache(settings.model.path)
    file = (folder or place) / name
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def load_pipeline(settings: Settings, **components: Any) -> Any:
    """The base pipeline as the snippet loads it, in float32, with some components replaced."""
    from diffusers import DiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]

    place = resolve_path(settings.model.path)
    absent = dict.fromkeys(absent_components(settings))
    pipe = DiffusionPipeline.from_pretrained(
        str(place if place.exists() else settings.model.path),
        torch_dtype=torch.float32,
        **{**absent, **components},
    )
    # The generic class ignores components that are optional in the pipeline's own, as Wan's
    # second expert is.
    pipe.register_modules(**components)
    return pipe


def _call(head: str, arguments: list[str]) -> list[str]:
    one = f"{head}({', '.join(arguments)})"
    if len(one) <= 90:
        return [one]
    return [f"{head}(", *(f"    {argument}," for argument in arguments), ")"]


def _literal(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value) if isinstance(value, str) else repr(value)
