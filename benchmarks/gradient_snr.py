"""Signal to noise of the policy gradient on the miniature, for samplers, steps and shared noise.

A gradient that is an average over few images is mostly noise. This measures how much of it is not:
the gradient of every group of images is compared with a reference direction, the mean gradient of
DiffusionNFT's loss on other images, whose noise is far smaller. For each variant:

    alignment   mean of <g, d> / rms |g| over groups, d the reference of length 1, +- its error
    images      images whose mean gradient has half its squared length along the reference:
                (1 - alignment^2) / alignment^2 groups of G
    passes      the same in passes of the network, a backward pass counted as two

A variant with half the passes learns as much in half the time, as far as the reference direction is
what is to be learnt. All variants see the same prompts. The same by kind of layer follows, for the
first variant: its share of the gradient's norm, and its alignment.

    python benchmarks/gradient_snr.py --epochs 4

`--weights runs/x/model/transformer/diffusion_pytorch_model.safetensors`: after some training.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from trainer.algorithm.advantages import advantages
from trainer.algorithm.ema import Ema
from trainer.algorithm.losses import LOSSES, LossContext, TrainBatch
from trainer.config.load import load, rollout_config
from trainer.config.settings import Settings
from trainer.data import category_probabilities
from trainer.models.model import FlowModel
from trainer.rewards import RewardService, connect
from trainer.rollout.policy import draw_window
from trainer.rollout.prompts import draw_prompts, draws
from trainer.rollout.rollout import rollout
from trainer.run.inputs import load_model, load_prompts

PRESET = "mini_geneval"
REFERENCE = (
    "loss.algorithm=nft",
    "sampling.sde=ode",
    "sampling.group_noise=independent",
    "sampling.window_size=0",
)
WINDOW = "sampling.window_start={0}", "sampling.window_end={1}", "sampling.window_size={2}"
ALONE = ("sampling.group_noise=independent",)
PAIRS = ("sampling.group_noise=antithetic_pairs",)
CPS = ("sampling.sde=cps", "sampling.noise_level=0.8")


def window(first: int, end: int) -> tuple[str, ...]:
    """Settings of a window that is all of [first, end)."""
    return tuple(text.format(first, end, end - first) for text in WINDOW)


VARIANTS: dict[str, tuple[str, ...]] = {
    "flow_sde, steps 0-2": (*window(0, 3), *ALONE),
    "flow_sde, steps 2-4": (*window(2, 5), *ALONE),
    "steps 2-4, pairs": (*window(2, 5), *PAIRS),
    "steps 2-4, pairs, weighted by noise": (*window(2, 5), *PAIRS, "loss.step_weights=noise"),
    "step 1, pairs": (*window(1, 2), *PAIRS),
    "step 3": (*window(3, 4), *ALONE),
    "step 3, pairs": (*window(3, 4), *PAIRS),
    "step 3, shared start": (*window(3, 4), "sampling.group_noise=shared_start"),
    "step 5, pairs": (*window(5, 6), *PAIRS),
    "step 3, pairs, a = 1.2": (*window(3, 4), *PAIRS, "sampling.noise_level=1.2"),
    "cps 0.8, step 3, pairs": (*window(3, 4), *PAIRS, *CPS),
    "cps 0.8, steps 2-4, pairs": (*window(2, 5), *PAIRS, *CPS),
}


def main() -> None:
    """Print one line per variant."""
    parser = argparse.ArgumentParser(description="Signal to noise of the policy gradient")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of 12 groups per variant")
    parser.add_argument("--weights", default="", help="a .safetensors file of trained weights")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    with served(dict(os.environ)) as environment:
        measure(args, environment)


@contextmanager
def served(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """The environment with a reward service in it, one of our own if there is none."""
    if environment.get("REWARD_URL"):
        yield environment
        return
    with tempfile.TemporaryDirectory() as folder:
        ports = Path(folder) / "ports.json"
        command = [sys.executable, "-m", "reward_server", "serve", "--scorers"]
        command += ["geneval,shapes_quality", "--port-file", str(ports)]
        command += ["--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
        service = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not ports.exists():
                if service.poll() is not None:
                    raise SystemExit("the reward service ended at start")
                time.sleep(0.1)
            port = json.loads(ports.read_text())["grpc"]
            yield {**environment, "REWARD_URL": f"grpc://127.0.0.1:{port}"}
        finally:
            service.terminate()
            service.wait()


def measure(args: argparse.Namespace, environment: dict[str, str]) -> None:
    """Measure every variant."""
    base = load(PRESET, ("model.trained_layers=[]",), environment)
    device = torch.device(args.device)
    model = load_model(base, device)
    parameters = dict(model.trainable_parameters())
    if args.weights:
        for name, value in load_file(args.weights).items():
            parameters[name].data.copy_(value)
    service = connect(base.rewards, environment)
    layers = ""
    try:
        reference = load(PRESET, REFERENCE, environment)
        # Epochs that no variant sees: a shared draw would be agreement without a signal.
        direction = gradients(reference, model, service, range(1000, 1000 + args.epochs)).mean(0)
        print(f"{'variant':38}  alignment   +-       norm     images    passes")
        for name in args.only:
            settings = load(PRESET, VARIANTS[name], environment)
            found = gradients(settings, model, service, range(args.epochs))
            print(row(name, found, direction, settings), flush=True)
            if name == args.only[0]:
                layers = by_layer(found, direction, parameters)
        print("\n" + layers)
    finally:
        service.close()


def gradients(
    settings: Settings, model: FlowModel, service: RewardService, epochs: Sequence[int]
) -> Tensor:
    """The gradient of every group of some epochs without its KL term, (groups, parameters)."""
    config, entry = rollout_config(settings), LOSSES[settings.loss.algorithm]
    parameters = dict(model.trainable_parameters())
    old = Ema(parameters) if entry.old_decay else None
    loss = settings.loss.model_copy(update={"kl_beta": 0.0})
    context = LossContext(model, config, loss, old)
    found: list[Tensor] = []
    for epoch in epochs:
        batches = sampled(settings, model, service, epoch)
        for batch in batches:
            for parameter in parameters.values():
                parameter.grad = None
            for term in entry.terms(context, batch):
                term.loss.backward()
            parts = (torch.zeros_like(p) if p.grad is None else p.grad for p in parameters.values())
            # Half the memory; its rounding is far below the noise.
            found.append(torch.cat([part.flatten() for part in parts]).bfloat16())
    return torch.stack(found).float()


def sampled(
    settings: Settings, model: FlowModel, service: RewardService, epoch: int
) -> list[TrainBatch]:
    """One epoch of scored groups, a batch each."""
    config, size = rollout_config(settings), settings.batch.images_per_prompt
    prompts, _ = load_prompts(settings, lambda text: None)
    weights = category_probabilities(prompts, settings.task.category_weights)
    categories, count = [prompt.group for prompt in prompts], settings.batch.prompts_per_epoch
    numbers = draw_prompts(weights, categories, count, seed=0, epoch=epoch)
    images = draws(numbers, size, seed=0, epoch=epoch, group_noise=settings.sampling.group_noise)
    shape = model.latent_shape(*settings.sampling.size)
    records, conds, pending = [], [], []
    for place, number in enumerate(numbers):
        group = [image.key for image in images[place * size : (place + 1) * size]]
        chosen = [prompts[number]] * size
        conds.append(model.encode_prompts([prompt.text for prompt in chosen]))
        steps = draw_window(config, 0, epoch)
        records.append(rollout(model, conds[-1], group, config, latent_shape=shape, window=steps))
        pixels = model.decode(records[-1].final)
        tag = f"e{epoch}-{place}"
        pending.append(service.submit(pixels, chosen, settings.rewards.train, tag=tag))
    scores = [future.result() for future in pending]
    names = [term.name for term in settings.rewards.train]
    values = {name: np.concatenate([part.values[name].data for part in scores]) for name in names}
    valid = np.concatenate([part.valid(names) for part in scores])
    found = advantages(values, [image.group for image in images], valid=valid)
    return [
        TrainBatch(
            record,
            cond,
            torch.as_tensor(found.values[rows], dtype=torch.float32, device=model.device),
            torch.as_tensor(found.used[rows], device=model.device),
        )
        for place, (record, cond) in enumerate(zip(records, conds, strict=True))
        for rows in [slice(place * size, (place + 1) * size)]
    ]


def row(name: str, found: Tensor, direction: Tensor, settings: Settings) -> str:
    """One line of the table."""
    rms = float((found**2).sum(1).mean().sqrt())
    along = found @ (direction / direction.norm()) / rms
    alignment, error = float(along.mean()), float(along.std() / len(along) ** 0.5)
    size = settings.batch.images_per_prompt
    images = (1 - alignment**2) / alignment**2 * size
    shown = f"{images:9.0f} {images * passes(settings):9.0f}" if alignment > 2 * error else " " * 19
    return f"{name:38} {alignment:10.4f} {error:7.4f} {rms:9.4f} {shown}"


def by_layer(found: Tensor, direction: Tensor, parameters: Mapping[str, Tensor]) -> str:
    """One line per kind of layer: parameters, share of the norm, alignment there."""
    spans: dict[str, list[Tensor]] = {}
    numbers = torch.arange(found.shape[1])
    first = 0
    for name, parameter in parameters.items():
        kind = ".".join(part for part in name.split(".")[:-1] if not part.isdigit())
        spans.setdefault(kind, []).append(numbers[first : first + parameter.numel()])
        first += parameter.numel()
    rms = float((found**2).sum(1).mean().sqrt())
    lines = []
    for kind, parts in spans.items():
        index = torch.cat(parts).to(found.device)
        here, along = found[:, index], direction[index]
        norm = float((here**2).sum(1).mean().sqrt())
        alignment = float((here @ along).mean() / along.norm().clamp_min(1e-20)) / max(norm, 1e-20)
        lines.append((norm / rms, f"{kind:50} {len(index):8} {norm / rms:6.3f} {alignment:8.4f}"))
    head = f"{'layers':50} {'weights':>8}  share alignment"
    return "\n".join([head, *(line for _, line in sorted(lines, reverse=True))])


def passes(settings: Settings) -> float:
    """Passes of the network per image: sampling, and per trained step one pass and its backward."""
    config = rollout_config(settings)
    steps = draw_window(config, 0, 0)
    alike = {"independent": 1, "antithetic_pairs": 2, "shared_start": 16}
    share = 1 / alike[settings.sampling.group_noise]
    return steps[0] * share + config.num_steps - steps[0] + 3 * len(steps)


if __name__ == "__main__":
    main()
