"""Evaluate a tiny pipeline in one process or several; what `test_evaluation` compares.

The weights are moved away from the base by a fixed amount, so that the KL is a number.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from reward_client import Code, Item, ItemError
from reward_client.codec import decode
from tests.trainer_run.fake_service import service_with
from trainer.config.load import parse, resolve_path
from trainer.config.settings import RunSettings
from trainer.data import TASKS
from trainer.evaluation.held_out import Evaluation, evaluate_run
from trainer.models.model import FlowModel
from trainer.parallel.world import World, setup_torch
from trainer.run.inputs import load_model


def score(scorer: str, item: Item) -> "tuple[float, dict[str, float]] | ItemError":
    """Statistics of the image; images whose mean is in a certain band fail."""
    pixels = decode(item.images[0]).astype("float64") / 255
    if int(pixels.mean() * 1e4) % 5 == 0:
        return ItemError(Code.INTERNAL, "worker crashed")
    value = float(pixels.mean() if scorer == "brightness" else pixels.std())
    return value, {"red": float(pixels[..., 0].mean()), "half": value / 2}


def moved(model: FlowModel) -> FlowModel:
    """The model, away from its base."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.trainable_parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


def evaluations(table: dict[str, Any], cases: list[dict[str, Any]], world: World) -> list[Any]:
    """One evaluation per case (`indices` and `images_per_prompt`), as plain values."""
    settings = parse(table)
    device = setup_torch(RunSettings(device="cpu"))
    model = moved(load_model(settings, device))
    prompts = TASKS[settings.task.name](resolve_path(settings.task.test), print)
    service = service_with(score)(settings.rewards)
    totals: list[set[int]] = []

    def show(done: int, total: int) -> None:
        totals[-1].add(total)

    def evaluated(case: dict[str, Any]) -> Evaluation:
        totals.append(set())
        return evaluate_run(model, prompts, service, settings, world, shown=(0,), show=show, **case)

    try:
        found = [evaluated(case) for case in cases]
    finally:
        service.close()
    return [
        {
            **asdict(one),
            "shown": {k: v.tolist() for k, v in one.shown.items()},
            "progress_of": list(total),
        }
        for one, total in zip(found, totals, strict=True)
    ]


def one_rank(order_file: str, answer_file: str) -> int:
    """The process of one rank, which the environment names; the first writes the answer."""
    order = json.loads(Path(order_file).read_text(encoding="utf-8"))
    world = World.join(os.environ, "cpu")
    result = evaluations(order["table"], order["cases"], world)
    if world.is_main:
        Path(answer_file).write_text(json.dumps(result), encoding="utf-8")
    world.leave()
    return 0
