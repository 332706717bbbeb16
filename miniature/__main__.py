"""`python -m miniature build|continue|editor`: render, train the VAE, pretrain, save."""

from __future__ import annotations

import logging
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import torch.multiprocessing as mp
import typer

from miniature.data import SceneStream, read_mixture, write_prompt_files
from miniature.denoiser import Denoiser
from miniature.editor import EDITOR_DIR, Editor
from miniature.editor import assemble as assemble_editor
from miniature.pipeline import WEIGHTS_DIR, assemble, save
from miniature.pretrain import PretrainConfig, Trainee, pretrain
from miniature.vae import build_vae, polish_decoder, train_vae

log = logging.getLogger("miniature")
_DEFAULTS = PretrainConfig()
_EDITOR = PretrainConfig(steps=2800, batch_size=128, caption_noise=0.35, bf16=True)
app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@app.callback()
def _commands() -> None:
    """Build the miniature."""


Work = Annotated[Path, typer.Option(help="where parts in progress are kept")]
Processes = Annotated[int, typer.Option(help="processes of one thread each")]
Steps = Annotated[int, typer.Option(help="optimiser steps of the transformer")]
Seed = Annotated[int, typer.Option(help="of weights, scenes and noise")]
Bf16 = Annotated[bool, typer.Option(help="fast where the CPU has bfloat16 instructions")]
Rate = Annotated[float, typer.Option(help="peak learning rate")]
Decay = Annotated[float, typer.Option(help="last share of the steps over which the rate falls")]
EmaDecay = Annotated[float, typer.Option(help="of the average of the weights that is saved")]
Mixture = Annotated[str, typer.Option(help="kinds of scenes, e.g. color_attr=2,colors=1")]
CaptionNoise = Annotated[
    float,
    typer.Option(min=0.0, max=0.99, help="share of captions that are wrong in one attribute"),
]


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="where the pipeline goes")] = WEIGHTS_DIR,
    work: Work = Path("runs/mini_build"),
    processes: Processes = 2,
    vae_steps: Annotated[int, typer.Option(help="optimiser steps of the VAE")] = 4800,
    steps: Steps = _DEFAULTS.steps,
    bf16: Bf16 = _DEFAULTS.bf16,
    seed: Seed = 0,
) -> None:
    """Render, train the VAE, pretrain the transformer, and save a StableDiffusion3Pipeline.

    A VAE that `work` already holds is kept, so an interrupted build goes on from there.
    """
    _prepare(work)
    write_prompt_files()
    vae_dir = work / "vae"
    if not vae_dir.exists():
        torch.manual_seed(seed)
        vae = build_vae().to(memory_format=torch.channels_last)  # pyright: ignore
        draw = SceneStream(seed=seed).images
        train_vae(vae, draw, steps=vae_steps, batch_size=16)
        # The rate-limited latents are worth a decoder of their own: it brings the accuracy of
        # decoded scenes from about 0.9 to nearly 1.
        polish_decoder(vae, draw, steps=vae_steps // 5, batch_size=12)
        vae.save_pretrained(vae_dir)
    config = replace(PretrainConfig(), steps=steps, bf16=bf16, seed=seed)
    _pretrain(config, Denoiser, processes, vae_dir, work, None)
    save(assemble(vae_dir, work / "denoiser.pt"), out)


@app.command("continue")
def go_on(
    pipeline: Annotated[Path, typer.Option(help="a pipeline of the miniature")] = WEIGHTS_DIR,
    out: Annotated[Path, typer.Option(help="where the result goes")] = Path("runs/continued"),
    work: Work = Path("runs/mini_continue"),
    processes: Processes = 2,
    steps: Steps = 1000,
    learning_rate: Rate = _DEFAULTS.learning_rate,
    decay_fraction: Decay = _DEFAULTS.decay_fraction,
    ema_decay: EmaDecay = _DEFAULTS.ema_decay,
    mixture: Mixture = "",
    caption_noise: CaptionNoise = _DEFAULTS.caption_noise,
    bf16: Bf16 = _DEFAULTS.bf16,
    seed: Seed = 1,
) -> None:
    """Go on with pretraining: a longer build, or the control of an RL run."""
    _prepare(work)
    start = _start(Denoiser, pipeline, work)
    try:
        read_mixture(mixture)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    config = PretrainConfig(
        steps=steps,
        learning_rate=learning_rate,
        decay_fraction=decay_fraction,
        ema_decay=ema_decay,
        mixture=mixture,
        caption_noise=caption_noise,
        bf16=bf16,
        seed=seed,
    )
    _pretrain(config, Denoiser, processes, pipeline / "vae", work, start)
    save(assemble(pipeline / "vae", work / "denoiser.pt"), out)


@app.command()
def editor(
    out: Annotated[Path, typer.Option(help="where the pipeline goes")] = EDITOR_DIR,
    work: Work = Path("runs/mini_editor"),
    processes: Processes = 2,
    start: Annotated[Path | None, typer.Option(help="go on from this pipeline")] = None,
    steps: Steps = _EDITOR.steps,
    learning_rate: Rate = _EDITOR.learning_rate,
    decay_fraction: Decay = _EDITOR.decay_fraction,
    caption_noise: Annotated[
        float, typer.Option(min=0.0, max=0.99, help="share of targets that are another edit")
    ] = _EDITOR.caption_noise,
    bf16: Bf16 = _EDITOR.bf16,
    seed: Seed = 0,
) -> None:
    """Pretrain the miniature that edits on the VAE of the other, and save a FluxKontextPipeline."""
    _prepare(work)
    config = replace(
        _EDITOR,
        steps=steps,
        learning_rate=learning_rate,
        decay_fraction=decay_fraction,
        caption_noise=caption_noise,
        bf16=bf16,
        seed=seed,
    )
    first = None if start is None else _start(Editor, start, work)
    _pretrain(config, Editor, processes, WEIGHTS_DIR / "vae", work, first)
    save(assemble_editor(WEIGHTS_DIR / "vae", work / "denoiser.pt"), out)


def _prepare(work: Path) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)


def _start(kind: type[Trainee], pipeline: Path, work: Path) -> Path:
    """The networks of a pipeline as a checkpoint to go on from."""
    torch.save(kind.of_pipeline(pipeline).state_dict(), work / "start.pt")
    return work / "start.pt"


def _pretrain(
    config: PretrainConfig,
    kind: type[Trainee],
    processes: int,
    vae_dir: Path,
    work: Path,
    start: Path | None,
) -> None:
    """Run the pretraining processes; the weights are in `work`/denoiser.pt."""
    started = time.monotonic()
    arguments = (processes, _free_port(), config, kind, vae_dir, work, start)
    mp.spawn(pretrain, args=arguments, nprocs=processes)  # pyright: ignore
    log.info("pretrained in %.0f minutes", (time.monotonic() - started) / 60)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    app()
