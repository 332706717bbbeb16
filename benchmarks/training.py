"""CPU seconds of training the miniature, against a plain rendering of the official loop.

Run: OMP_NUM_THREADS=1 python -m benchmarks.training [--epochs 3]

1. The same settings in both: guidance 4.5, nine of ten steps trained one after the other, a KL with
   a forward pass of the reference per step, an adapter of rank 32. The losses of the first epoch
   are compared, so that both do the same work.
2. The presets as they are, per image, against that official setting: other algorithms, fewer
   evaluations of the network.
3. Waiting for a scorer that takes as long as sampling does.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reward_client import FakeTransport, Item, RewardClient
from reward_client.codec import decode
from trainer.algorithm.sde import log_prob, sample, transition
from trainer.commands.common import quiet_libraries
from trainer.config.load import load
from trainer.config.settings import RewardSettings, Settings
from trainer.data import category_probabilities
from trainer.models.base import Conditioning, Decoded
from trainer.models.precision import has_bfloat16, mixed_precision
from trainer.rewards import RewardService
from trainer.rollout.noise import draw, initial_noise
from trainer.rollout.prompts import Draw, draw_prompts, draws
from trainer.run.inputs import load_model, load_prompts
from trainer.run.log import read
from trainer.run.open import train_run
from trainer.types import Prompt

GROUPS, PER_GROUP, BATCH = 2, 8, 8
SCORER = (
    'rewards.train=[{ scorer = "brightness" }]',
    "rewards.watch=[]",
    "eval.metrics=[]",
    "eval.every_epochs=0",
    "sampling.eval_num_steps=2",
    "eval.num_prompts=2",
    "eval.images_per_prompt=1",
    "logging.tensorboard=false",
)
# config/grpo.py of the official code for Stable Diffusion 3.5, at the miniature's size.
OFFICIAL = (
    "model.finetune=lora",
    "model.trained_layers=[]",
    "model.lora_rank=32",
    "model.lora_alpha=64",
    "model.dtype=float32",
    "sampling.guidance_scale=4.5",
    "sampling.window_size=0",
    "sampling.window_start=0",
    "sampling.window_end=0",
    "sampling.group_noise=independent",
    f"batch.prompts_per_epoch={GROUPS}",
    f"batch.images_per_prompt={PER_GROUP}",
    f"batch.rollout_batch_size={BATCH}",
    "batch.optimizer_steps_per_epoch=2",
    "loss.kl_form=mean",
    "loss.kl_beta=0.04",
    "loss.step_weights=uniform",
    "advantage.std=global",
    "ema.enabled=false",
)


def brightness(picture: np.ndarray) -> float:
    """A score that costs nothing and differs from image to image."""
    return float(picture.astype(np.float64).mean() / 255)


class AsSlowAsSampling(RewardService):
    """A service whose one worker takes as long for a batch as sampling it has taken.

    Attributes:
        taken_s: seconds of scoring, in all.
    """

    def __init__(self, rewards: RewardSettings) -> None:
        self.taken_s = 0.0
        self._each_s: dict[str, float] = {}
        self._before_s = time.perf_counter()
        self._worker = threading.Lock()
        transport = FakeTransport(self._score, ("brightness",))
        super().__init__(RewardClient("fake://", attempts=1, transport=transport), rewards)

    def submit(self, decoded: Decoded, prompts: Sequence[Prompt], *rest: Any, **named: Any) -> Any:
        """Remember what sampling took."""
        now_s = time.perf_counter()
        self._each_s[named["tag"]] = (now_s - self._before_s) / len(prompts)
        self._before_s = now_s
        return super().submit(decoded, prompts, *rest, **named)

    def start(self) -> None:
        """Sampling begins."""
        self._before_s, self.taken_s = time.perf_counter(), 0.0

    def _score(self, _: str, item: Item) -> float:
        with self._worker:
            # Items of evaluations and of the trial at the start have other names.
            if item.id.startswith("e") and (tag := item.id.rpartition("-")[0]) in self._each_s:
                time.sleep(self._each_s[tag])
                self.taken_s += self._each_s[tag]
        return brightness(decode(item.images[0]))


def at_once(rewards: RewardSettings) -> RewardService:
    """A service in this process that takes no time."""

    def score(_: str, item: Item) -> float:
        return brightness(decode(item.images[0]))

    transport = FakeTransport(score, ("brightness",))
    return RewardService(RewardClient("fake://", attempts=1, transport=transport), rewards)


@dataclass(frozen=True)
class Epochs:
    """What a run wrote about its epochs, and the CPU seconds of all but the first."""

    rows: list[dict[str, Any]]
    cpu_s: list[float]

    def per_image(self) -> list[float]:
        """CPU seconds per image, by epoch."""
        return [seconds / self.rows[0]["images"] for seconds in self.cpu_s]


def train(
    chosen: Settings,
    connect: Callable[[RewardSettings], RewardService] = at_once,
    over: Callable[[], None] = lambda: None,
) -> Epochs:
    """Run it; `over` is called after every epoch."""
    marks: list[float] = []

    def say(text: str) -> None:
        # One line per epoch, when it is over.
        if text.startswith("epoch"):
            marks.append(time.process_time())
            over()

    train_run(chosen, environment={}, open_service=connect, say=say)
    rows = [row for row in read(Path(chosen.run.out_dir)) if row["kind"] == "train"]
    assert len(marks) == len(rows), "an epoch has no line of its own any more"
    return Epochs(rows, np.diff(marks).tolist())


def settings(folder: Path, preset: str, epochs: int, *overrides: str) -> Settings:
    run = (f"run.out_dir={folder}", f"run.epochs={epochs}", f"run.save_every_epochs={epochs}")
    return load(preset, [*run, *SCORER, *overrides])


class PlainLoop:
    """The official loop's structure around the same network: one thing after the other.

    Prompts are encoded for every image of every batch; steps are trained one by one, each with a
    forward pass of the reference; all rewards are awaited before the first step is trained.
    """

    def __init__(self, chosen: Settings, autocast: torch.dtype = torch.float32) -> None:
        torch.set_num_threads(1)
        self.settings, self.autocast = chosen, autocast
        self.model: Any = load_model(chosen, torch.device("cpu"))
        self.prompts, _ = load_prompts(chosen, lambda text: None)
        self.weights = list(self.model.trainable_parameters().values())
        optim = chosen.optim
        self.optimizer = torch.optim.AdamW(
            self.weights, optim.lr, optim.betas, optim.eps, optim.weight_decay
        )
        self.shape = self.model.latent_shape(*chosen.sampling.size)
        self.sigmas = self.model.sigmas(chosen.sampling.num_steps, self.shape)
        self.negative = self.encode([""])

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Conditioning:
        """Run the text encoders, whatever has been encoded before."""
        embeds, _, pooled, _ = self.model._family.pipe.encode_prompt(
            prompt=list(texts),
            prompt_2=None,
            prompt_3=None,
            device="cpu",
            do_classifier_free_guidance=False,
            max_sequence_length=self.settings.model.max_sequence_length,
        )
        return Conditioning({"prompt_embeds": embeds, "pooled": pooled})

    def step(self, x: Tensor, index: int, cond: Conditioning, kind: str = "flow_sde") -> Any:
        """One evaluation with guidance, and the transition that it gives."""
        sampling = self.settings.sampling
        sigma, after = self.sigmas[index], self.sigmas[index + 1]
        # The base stays in float32, and is cast again in every pass.
        with mixed_precision("cpu", self.autocast):
            v = self.model.velocity(x, sigma, cond, sampling.guidance_scale, self.negative)
        rows = torch.ones(len(x))
        return transition(
            kind,
            x,
            v,
            sigma * rows,
            after * rows,
            noise_level=sampling.noise_level,
            sigma_max=float(self.sigmas[1]),
        )

    @torch.no_grad()
    def sample(self, images: Sequence[Draw]) -> dict[str, Any]:
        """One batch; the last step is Euler's, as it is not trained."""
        cond = self.encode([self.prompts[image.prompt].text for image in images])
        steps = len(self.sigmas) - 1
        x = initial_noise([image.key for image in images], self.shape, "cpu")
        latents, log_probs = [x], []
        for index in range(steps - 1):
            found = self.step(x, index, cond)
            x = sample(found, draw([image.key.step(index) for image in images], self.shape, "cpu"))
            log_probs.append(log_prob(x, found))
            latents.append(x)
        final = self.step(x, steps - 1, cond, "ode").mean
        pictures = self.model.decode(final).uint8
        return {"cond": cond, "latents": latents, "log_probs": log_probs, "pictures": pictures}

    def epoch(self, number: int) -> dict[str, float]:
        """Sample everything, wait for all rewards, train step by step; seconds and mean losses."""
        batch, seed = self.settings.batch, self.settings.run.seed
        chances = category_probabilities(self.prompts, self.settings.task.category_weights)
        groups = [prompt.group for prompt in self.prompts]
        chosen = draw_prompts(chances, groups, batch.prompts_per_epoch, seed=seed, epoch=number)
        images = draws(chosen, batch.images_per_prompt, seed=seed, epoch=number)
        begin = time.process_time()
        scored: list[Future[list[float]]] = []
        batches = []
        with ThreadPoolExecutor(8) as pool:
            for start in range(0, len(images), BATCH):
                batches.append(self.sample(images[start : start + BATCH]))
                pictures = batches[-1]["pictures"]
                scored.append(pool.submit(lambda p=pictures: [brightness(one) for one in p]))
            rewards = np.array([value for future in scored for value in future.result()])
        by_group = rewards.reshape(-1, batch.images_per_prompt)
        centred = by_group - by_group.mean(1, keepdims=True)
        advantages = (centred / (rewards.std() + self.settings.advantage.eps)).flatten()
        half = len(batches) // batch.optimizer_steps_per_epoch
        losses, kls = [], []
        for place, record in enumerate(batches):
            advantage = torch.tensor(advantages[place * BATCH : (place + 1) * BATCH]).float()
            bound = self.settings.advantage.clip
            for loss, kl in self.terms(record, advantage.clamp(-bound, bound)):
                (loss / (half * len(record["log_probs"]))).backward()
                losses.append(float(loss.detach() - self.settings.loss.kl_beta * kl))
                kls.append(float(kl))
            if (place + 1) % half == 0:
                torch.nn.utils.clip_grad_norm_(self.weights, self.settings.optim.max_grad_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
        return {
            "cpu_s": time.process_time() - begin,
            "policy_loss": statistics.fmean(losses),
            "kl": statistics.fmean(kls),
        }

    def terms(self, record: dict[str, Any], advantage: Tensor) -> Any:
        """Loss and KL of every step of a batch."""
        loss: Any = self.settings.loss
        for index, old in enumerate(record["log_probs"]):
            x, after = record["latents"][index], record["latents"][index + 1]
            found = self.step(x, index, record["cond"])
            with torch.no_grad(), self.model.reference():
                reference = self.step(x, index, record["cond"])
            ratio = (log_prob(after, found) - old).exp()
            bounded = ratio.clamp(1 - loss.clip_low, 1 + loss.clip_high)
            policy = torch.maximum(-advantage * ratio, -advantage * bounded).mean()
            sigma, first = float(self.sigmas[index]), float(self.sigmas[1])
            std = (
                self.settings.sampling.noise_level
                * (sigma / (1 - (first if sigma == 1 else sigma))) ** 0.5
            )
            kl = ((found.mean - reference.mean) ** 2).mean() / (2 * std**2)
            yield policy + loss.kl_beta * kl, kl.detach()


def same_settings(folder: Path, epochs: int) -> float:
    """Both loops; CPU seconds per image of the plain one, in the type that is faster."""
    images, fastest = GROUPS * PER_GROUP, math.inf
    half = has_bfloat16(torch.device("cpu"))
    for dtype in (torch.float32, torch.bfloat16) if half else (torch.float32,):
        name = str(dtype).removeprefix("torch.")
        official = settings(folder / "unused", "mini_geneval", 1, *OFFICIAL)
        plain = PlainLoop(official, dtype)
        network_s = network_alone(plain)
        theirs = [plain.epoch(number) for number in range(epochs + 1)]
        changed = (*OFFICIAL, f"model.dtype={name}")
        ours = train(settings(folder / name, "mini_geneval", epochs + 1, *changed))
        for loss in ("policy_loss", "kl"):
            found = theirs[0][loss], ours.rows[0]["policy"][loss]
            print(f"  {name}, first epoch, {loss}: plain {found[0]:.4e}, ours {found[1]:.4e}")
        their_s = [row["cpu_s"] / images for row in theirs[1:]]
        show(f"plain loop, {name}", their_s)
        show(f"ours, {name}", ours.per_image())
        middle = statistics.median(their_s)
        print(
            f"  ratio {middle / statistics.median(ours.per_image()):.2f}; the network alone is "
            f"{network_s / middle:.0%} of the plain loop"
        )
        fastest = min(fastest, middle)
    return fastest


def network_alone(plain: PlainLoop) -> float:
    """CPU seconds per image of the passes that the setting asks for, and of nothing else."""
    x = torch.randn(BATCH, *plain.shape)
    cond, steps = plain.encode(["a photo of a red star"] * BATCH), len(plain.sigmas) - 1

    def seconds(work: Callable[[], object]) -> float:
        work()
        begin = time.process_time()
        for _ in range(4):
            work()
        return (time.process_time() - begin) / 4 / BATCH

    with torch.no_grad():
        forward = seconds(lambda: plain.step(x, 1, cond))
    both = seconds(lambda: plain.step(x, 1, cond).mean.square().mean().backward())
    plain.optimizer.zero_grad()
    return steps * forward + (steps - 1) * (both + forward)


def show(name: str, seconds: Sequence[float]) -> None:
    low, middle, high = (1e3 * f(seconds) for f in (min, statistics.median, max))
    print(f"  {name:32}{middle:9.1f} CPU ms/image ({low:.1f} to {high:.1f})", flush=True)


def presets(folder: Path, epochs: int, official_s: float) -> None:
    """The presets as they are, with a scorer that costs nothing."""
    for name in ("mini_geneval", "mini_geneval_nft"):
        seconds = train(settings(folder / name, name, epochs + 1)).per_image()
        show(name, seconds)
        print(f"  ratio to the official setting: {official_s / statistics.median(seconds):.2f}")


def overlap(folder: Path, epochs: int) -> None:
    """How much of the time of a scorer as slow as sampling is not waited for."""
    services: list[AsSlowAsSampling] = []
    taken_s: list[float] = []

    def connect(rewards: RewardSettings) -> RewardService:
        services.append(AsSlowAsSampling(rewards))
        return services[0]

    def over() -> None:
        taken_s.append(services[0].taken_s)
        services[0].start()

    sizes = ("batch.prompts_per_epoch=6", "batch.rollout_batch_size=8")
    rows = train(settings(folder, "mini_geneval_nft", epochs + 1, *sizes), connect, over).rows
    for row, scoring_s in list(zip(rows, taken_s, strict=True))[1:]:
        seconds = row["seconds"]
        print(
            f"  {row['images']} images in batches of 8: sampling {seconds['rollout']:.2f} s, "
            f"scoring {scoring_s:.2f} s, waiting {seconds['score_wait']:.2f} s: "
            f"{1 - seconds['score_wait'] / scoring_s:.0%} hidden",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds of training the miniature.")
    parser.add_argument("--epochs", type=int, default=3, help="measured, after one to warm up")
    parser.add_argument("--parts", default="same,presets,overlap")
    arguments = parser.parse_args()
    quiet_libraries()
    parts, official_s = arguments.parts.split(","), float("nan")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "same" in parts:
            print("Same settings, one thread:")
            official_s = same_settings(folder, arguments.epochs)
        if "presets" in parts:
            print("Presets as they are:")
            presets(folder, arguments.epochs, official_s)
        if "overlap" in parts:
            print("A scorer as slow as sampling:")
            overlap(folder / "overlap", arguments.epochs)


if __name__ == "__main__":
    main()
