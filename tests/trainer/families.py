"""Every family of models with a tiny pipeline of its real diffusers class; one line each.

`test_models.py` holds them all to the same contract.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import tiny_flux
import tiny_sd3
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)

GUIDANCE = 4.5


@dataclass(frozen=True)
class Case:
    """A family, or a variant of one.

    Attributes:
        name: names the tests.
        family: key of `trainer.models.MODELS`.
        pipeline: class of the diffusers pipeline.
        build: saves a tiny pipeline in a folder.
        plain: what the pipeline is called with where the trainer has no guidance.
        guided: what it is called with where the trainer's guidance_scale is `GUIDANCE`.
        size: height and width in px and frames, and another that is not square.
        wrong_sizes: what the family cannot make, with a part of its message.
        options: changes to `ModelOptions`.
        prepare: changes a loaded pipeline, where sampling differs from the trainer's Euler steps.
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
    options: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Any], object] = lambda pipe: None


def _sd3(name: str, **changes: Any) -> Case:
    return Case(
        name,
        "sd3",
        StableDiffusion3Pipeline,
        partial(tiny_sd3.build, **changes),
        plain={"guidance_scale": 1.0},
        guided={"guidance_scale": GUIDANCE},
    )


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
)
