"""Every family of models with a tiny pipeline of its real diffusers class; one line each.

`test_models.py` holds them all to the same contract.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import tiny_flux
import tiny_flux2
import tiny_qwen_image
import tiny_qwen_image_edit
import tiny_sd3
import tiny_wan
import tiny_z_image
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.flux.pipeline_flux_kontext import FluxKontextPipeline
from diffusers.pipelines.flux2.pipeline_flux2 import Flux2Pipeline
from diffusers.pipelines.flux2.pipeline_flux2_klein import Flux2KleinPipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage import QwenImagePipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit import QwenImageEditPipeline
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import QwenImageEditPlusPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)
from diffusers.pipelines.wan.pipeline_wan import WanPipeline
from diffusers.pipelines.wan.pipeline_wan_i2v import WanImageToVideoPipeline
from diffusers.pipelines.z_image.pipeline_z_image import ZImagePipeline

from trainer.models.qwen_image_edit import mark_pictures

GUIDANCE = 4.5


@dataclass(frozen=True)
class Case:
    """A family, or a variant of one.

    Attributes:
        name: names the tests.
        family: key of `trainer.models.registry.MODELS`.
        pipeline: class of the diffusers pipeline.
        build: saves a tiny pipeline in a folder.
        plain: what the pipeline is called with where the trainer has no guidance.
        guided: what it is called with where the trainer's guidance_scale is `GUIDANCE`.
        size: height and width in px and frames, and another that is not square.
        wrong_sizes: what the family cannot make, with a part of its message.
        tokens: of the language encoder.
        options: changes to `ModelOptions`.
        prepare: changes a loaded pipeline, where sampling differs from the trainer's Euler steps.
        load_lora: loads what the trainer saved into a pipeline.
        references: how many pictures a prompt is about.
        rare: only `make test-all` looks at it.
        at_size: further arguments of the pipeline for a height and width.
    """

    name: str
    family: str
    pipeline: Any
    build: Callable[[Path], object]
    plain: Mapping[str, Any]
    guided: Mapping[str, Any]
    size: tuple[int, int, int] = (32, 32, 1)
    wide: tuple[int, int, int] = (32, 48, 1)
    wrong_sizes: Mapping[tuple[int, int, int], str] = field(
        default_factory=lambda: {
            (30, 32, 1): "multiples of 8 px, not 30x32",
            (32, 0, 1): "multiples of 8 px, not 32x0",
            (32, 32, 5): "not videos of 5 frames",
        }
    )
    tokens: int = 16
    options: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Any], object] = lambda pipe: None
    load_lora: Callable[[Any, Path], object] = lambda pipe, folder: pipe.load_lora_weights(
        str(folder)
    )
    references: int = 0
    rare: bool = False
    at_size: Callable[[int, int], Mapping[str, Any]] = lambda height, width: {}


def _sd3(name: str, **changes: Any) -> Case:
    return Case(
        name,
        "sd3",
        StableDiffusion3Pipeline,
        partial(tiny_sd3.build, **changes),
        plain={"guidance_scale": 1.0},
        guided={"guidance_scale": GUIDANCE},
    )


def _wan(name: str, kind: tiny_wan.Kind, *, pictures: bool = False, **changes: Any) -> Case:
    return Case(
        name,
        "wan_i2v" if pictures else "wan",
        WanImageToVideoPipeline if pictures else WanPipeline,
        partial(tiny_wan.build, kind=kind, pictures=pictures and kind != "wan2.2-5b"),
        plain={"guidance_scale": 1.0},
        guided={"guidance_scale": GUIDANCE, "negative_prompt": [""] * (1 if pictures else 4)},
        references=int(pictures),
        size=(16, 16, 5),
        wide=(16, 32, 9),
        wrong_sizes={
            (24, 16, 5): "multiples of 16 px, not 24x16",
            (16, 0, 5): "multiples of 16 px, not 16x0",
            (16, 16, 6): "num_frames must be a multiple of 4 and one more, not 6",
        },
        tokens=32,
        **changes,
    )


def _qwen_edit(name: str, pipeline: Any, family: str, **changes: Any) -> Case:
    return Case(
        name,
        family,
        pipeline,
        partial(tiny_qwen_image_edit.build, pipeline=pipeline, **changes),
        plain={"true_cfg_scale": 1.0},
        guided={"true_cfg_scale": GUIDANCE, "negative_prompt": ""},
        tokens=48,
        # What the trainer adds, the pipeline lacks (`mark_pictures`).
        prepare=lambda pipe: pipe.text_encoder.register_forward_pre_hook(
            mark_pictures, with_kwargs=True
        ),
        references=1 if family == "qwen_image_edit" else 2,
    )


def _flux2(name: str, *, dev: bool = False, **changes: Any) -> Case:
    return Case(
        name,
        "flux2_dev" if dev else "flux2_klein",
        Flux2Pipeline if dev else Flux2KleinPipeline,
        partial(tiny_flux2.build, dev=dev),
        plain={"guidance_scale": 1.0},
        guided={"guidance_scale": GUIDANCE},
        size=(64, 64, 1),
        wide=(64, 80, 1),
        tokens=48,
        **changes,
    )


def _load_experts(pipe: Any, folder: Path) -> None:
    pipe.load_lora_weights(str(folder))
    pipe.load_lora_weights(str(folder / "transformer_2"), load_into_transformer_2=True)


# One of each architecture: the whole contract.
CASES: tuple[Case, ...] = (
    _sd3("sd3.5-medium", with_t5=True, dual_attention_layers=(0,)),
    Case(
        "flux.1-dev",
        "flux",
        FluxPipeline,
        partial(tiny_flux.build, guidance_embeds=True),
        plain={"guidance_scale": 1.0},
        guided={"guidance_scale": GUIDANCE},
    ),
    Case(
        "qwen-image",
        "qwen_image",
        QwenImagePipeline,
        tiny_qwen_image.build,
        plain={"true_cfg_scale": 1.0},
        guided={"true_cfg_scale": GUIDANCE, "negative_prompt": [""] * 4},
        # Prompts of this length are not cut, so they differ in theirs.
        tokens=48,
    ),
    Case(
        "z-image",
        "z_image",
        ZImagePipeline,
        tiny_z_image.build,
        plain={"guidance_scale": 0.0},
        # The pipeline's scale counts from 0.
        guided={"guidance_scale": GUIDANCE - 1.0, "negative_prompt": [""] * 4},
        tokens=48,
    ),
    _wan("wan2.1", "wan2.1"),
    _wan("wan2.2-a14b", "wan2.2", load_lora=_load_experts),
    _qwen_edit("qwen-image-edit-2509", QwenImageEditPlusPipeline, "qwen_image_edit_plus"),
    Case(
        "flux.1-kontext",
        "flux_kontext",
        FluxKontextPipeline,
        partial(tiny_flux.build, guidance_embeds=True, pipeline=FluxKontextPipeline),
        plain={"guidance_scale": 1.0},
        guided={"guidance_scale": GUIDANCE},
        references=1,
        at_size=lambda height, width: {"max_area": height * width, "_auto_resize": False},
    ),
    _flux2("flux.2-klein-base", references=2),
    _wan("wan2.2-5b-i2v", "wan2.2-5b", pictures=True),
    _wan("wan2.2-i2v-a14b", "wan2.2", pictures=True, load_lora=_load_experts, rare=True),
    _wan("wan2.1-i2v", "wan2.1", pictures=True, rare=True),
    _flux2("flux.2-dev", dev=True, references=2, rare=True),
)

# What differs in its forward pass or schedule only: equality with the pipeline.
VARIANTS: tuple[Case, ...] = (
    _sd3("sd3-medium", with_t5=True, qk_norm=None),
    _sd3("sd3.5-large", with_t5=True),
    _sd3("miniature", with_t5=False),
    _sd3("sd3-shifted-by-resolution", with_t5=False, dynamic_shift=True),
    Case(
        "flux.1-dev-true-cfg",
        "flux",
        FluxPipeline,
        partial(tiny_flux.build, guidance_embeds=True),
        plain={"guidance_scale": 1.0, "true_cfg_scale": 2.5, "negative_prompt": [""] * 4},
        guided={"guidance_scale": GUIDANCE, "true_cfg_scale": 2.5, "negative_prompt": [""] * 4},
        options={"true_cfg_scale": 2.5},
    ),
    Case(
        "flux.1-schnell",
        "flux",
        FluxPipeline,
        partial(tiny_flux.build, guidance_embeds=False),
        plain={},
        guided={"true_cfg_scale": GUIDANCE, "negative_prompt": [""] * 4},
    ),
    Case(
        "flux.1-kontext-true-cfg",
        "flux_kontext",
        FluxKontextPipeline,
        partial(tiny_flux.build, guidance_embeds=True, pipeline=FluxKontextPipeline),
        plain={"guidance_scale": 1.0, "true_cfg_scale": 2.5, "negative_prompt": ""},
        guided={"guidance_scale": GUIDANCE, "true_cfg_scale": 2.5, "negative_prompt": ""},
        options={"true_cfg_scale": 2.5},
        references=1,
        at_size=lambda height, width: {"max_area": height * width, "_auto_resize": False},
    ),
    _flux2("flux.2-klein-base-text"),
    _flux2("flux.2-dev-text", dev=True),
    _qwen_edit("qwen-image-edit", QwenImageEditPipeline, "qwen_image_edit"),
    _qwen_edit(
        "qwen-image-edit-2511", QwenImageEditPlusPipeline, "qwen_image_edit_plus", zero_cond_t=True
    ),
    _wan("wan2.2-5b", "wan2.2-5b"),
)
