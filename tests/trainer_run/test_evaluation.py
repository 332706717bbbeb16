"""Evaluation: every prompt once, the same on any number of processes, all outputs, the KL."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reward_client import Code, Item, ItemError
from tests.trainer_run.evaluate_tiny import evaluations, moved, score
from tests.trainer_run.fake_service import service_with
from tests.trainer_run.nursery import Nursery, meeting
from tests.trainer_run.tiny import TEXTS, write_prompts
from trainer.config.load import parse
from trainer.evaluation.held_out import draw_images, evaluate_run
from trainer.evaluation.sampling import plan, sample_and_compare, spread, spread_steps
from trainer.parallel.world import World
from trainer.run.inputs import load_model
from trainer.types import Prompt

CPU = torch.device("cpu")


@given(
    st.lists(st.integers(0, 10_000), min_size=1, max_size=60, unique=True),
    st.integers(1, 9),
    st.integers(1, 20),
    st.integers(1, 70),
)
def test_every_prompt_is_evaluated_once_whatever_the_number_of_processes(
    indices: list[int], images: int, batch_size: int, size: int
) -> None:
    shares = [plan(indices, images, batch_size, rank=rank, size=size) for rank in range(size)]
    kept = [batch for share in shares for batch in share if batch.kept]
    made = Counter(job for batch in kept for job in batch.jobs)
    assert made == {(index, image): 1 for index in indices for image in range(images)}
    # Sharded weights are gathered by all processes in every forward pass.
    assert len({len(share) for share in shares}) == 1
    assert all(0 < len(batch.jobs) <= batch_size for share in shares for batch in share)
    # A batch is the same one on any number of processes.
    alone = plan(indices, images, batch_size, rank=0, size=1)
    assert sorted(kept, key=lambda batch: batch.number) == alone
    owners = {
        index: {rank for rank, share in enumerate(shares) for b in share if b.kept
                for job in b.jobs if job[0] == index}
        for index in indices
    }  # fmt: skip
    assert all(len(ranks) == 1 for ranks in owners.values())


@given(st.integers(1, 60), st.integers(1, 80))
def test_compared_steps_are_even_and_inside(num_steps: int, count: int) -> None:
    steps = spread_steps(num_steps, count)
    assert len(set(steps)) == len(steps) == min(num_steps, count)
    assert 0 <= min(steps) <= max(steps) < num_steps
    gaps = np.diff(steps)
    assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_a_spread_takes_every_category_alike() -> None:
    prompts = [Prompt(f"{group} {i}", group=group) for group in "abc" for i in range(10)]
    picked = Counter(prompts[index].group for index in spread(prompts, 6))
    assert picked == {"a": 2, "b": 2, "c": 2}
    assert spread(prompts, 0) == list(range(30))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_processes_find_the_same_numbers_as_one(
    nursery: Nursery, table: dict[str, Any], tmp_path: Path
) -> None:
    table["task"]["test"] = str(write_prompts(tmp_path / "six.jsonl", TEXTS))
    table["task"]["overlap"] = "allow"
    table["eval"]["batch_size"] = 4
    cases = [
        {"indices": [0, 1, 2, 4, 5], "images_per_prompt": 2},
        {"indices": [3], "images_per_prompt": 6},  # more processes than prompts
    ]
    alone = evaluations(table, cases, World())
    file, answer = tmp_path / "order.json", tmp_path / "answer.json"
    file.write_text(json.dumps({"table": table, "cases": cases}), encoding="utf-8")
    files = (str(file), str(answer))
    ranks = [nursery.start("evaluate", *files, **rank) for rank in meeting(2)]
    assert [rank.wait() for rank in ranks] == [0, 0]
    assert json.loads(answer.read_text(encoding="utf-8")) == json.loads(json.dumps(alone))
    assert [one["images"] for one in alone] == [10, 6]
    assert [one["progress_of"] for one in alone] == [[10], [6]]
    assert alone[0]["kl"]["mean"] > 0


def test_all_outputs_are_kept_and_failures_are_counted_and_in_no_mean(
    table: dict[str, Any],
) -> None:
    table["rewards"]["train"] = [{"scorer": "brightness", "component": "half"}]
    table["eval"]["metrics"] = [{"scorer": "brightness", "label": "light"}]
    settings = parse(table)
    asked: list[tuple[float, float] | None] = []

    def noted(scorer: str, item: Item) -> "tuple[float, dict[str, float]] | ItemError":
        found = score(scorer, item)
        if scorer == "brightness":
            if item.id.endswith("-1"):
                found = ItemError(Code.INTERNAL, "worker crashed")
            asked.append(None if isinstance(found, ItemError) else (found[0], found[1]["red"]))
        return found

    service = service_with(noted)(settings.rewards)
    prompts = [Prompt(text) for text in TEXTS[:3]]
    found = evaluate_run(
        load_model(settings, CPU), prompts, service, settings, World(),
        indices=[0, 1, 2], images_per_prompt=2,
    )  # fmt: skip
    service.close()
    kept = [pair for pair in asked if pair is not None]
    assert found.failed == 6 - len(kept) >= 3
    assert found.metrics.keys() == {"light"}
    assert found.rewards.keys() == {"brightness.half"}
    names = {f"{scorer}{tail}" for scorer in ("brightness", "contrast")
             for tail in ("", ".red", ".half")}  # fmt: skip
    assert found.outputs.keys() == names
    light = found.metrics["light"]
    assert light["n"] == len(kept)
    assert light["mean"] == pytest.approx(np.mean([value for value, _ in kept]))
    assert found.outputs["brightness.red"]["mean"] == pytest.approx(
        np.mean([red for _, red in kept])
    )
    assert found.rewards["brightness.half"]["mean"] == pytest.approx(light["mean"] / 2)
    assert sum(found.errors.values()) >= 3


def test_nothing_scored_is_no_number(table: dict[str, Any]) -> None:
    settings = parse(table)
    failing = service_with(lambda scorer, item: ItemError(Code.INTERNAL, "worker crashed"))
    service = failing(settings.rewards)
    found = evaluate_run(
        load_model(settings, CPU), [Prompt("a star")], service, settings, World(),
        indices=[0], images_per_prompt=2,
    )  # fmt: skip
    service.close()
    assert found.failed == found.images == 2
    assert found.metrics["brightness"]["mean"] is None
    assert found.metrics["brightness"]["n"] == 0


@pytest.mark.parametrize("finetune", ["lora", "full"])
def test_the_kl_is_0_for_the_base_and_the_velocity_distance_along_the_path(
    table: dict[str, Any], finetune: str
) -> None:
    table["model"]["finetune"] = finetune
    model = load_model(parse(table), CPU)
    cond, negative = model.encode_prompts(TEXTS[:3]), model.encode_prompts([""])
    x = torch.randn(3, *model.latent_shape(16, 16), generator=torch.Generator().manual_seed(1))
    guided: dict[str, Any] = {"guidance_scale": 2.0, "negative": negative}
    final, distance = sample_and_compare(model, cond, x, 6, compared_steps=3, **guided)
    assert distance.tolist() == [0.0] * 3
    assert torch.equal(final, sample_and_compare(model, cond, x, 6, **guided)[0])
    moved(model)
    final, distance = sample_and_compare(model, cond, x, 6, compared_steps=6, **guided)
    # By hand: the path of the policy, both velocities at every step.
    sigmas, expected, at = model.sigmas(6, tuple(x.shape[1:])), torch.zeros(3), x
    with torch.no_grad():
        for index in range(6):
            v = model.velocity(at, sigmas[index], cond, 2.0, negative)
            with model.reference():
                base = model.velocity(at, sigmas[index], cond, 2.0, negative)
            expected += (v - base).pow(2).mean(dim=(1, 2, 3)) / 6
            at = at + (sigmas[index + 1] - sigmas[index]) * v
    assert torch.allclose(distance, expected)
    assert torch.allclose(final, at, atol=1e-5)
    assert distance.min() > 0


@pytest.mark.parametrize(
    "changes",
    [{"model": {"finetune": "full"}, "loss": {"kl_beta": 0.0}}, {"eval": {"kl_steps": 0}}],
    ids=["no reference is kept", "turned off"],
)
def test_without_a_base_to_compare_with_the_kl_is_absent(
    table: dict[str, Any], changes: dict[str, Any]
) -> None:
    for section, values in changes.items():
        table[section] = {**table[section], **values}
    (found,) = evaluations(table, [{"indices": [0], "images_per_prompt": 1}], World())
    assert found["kl"] is None


def test_an_image_does_not_depend_on_what_else_is_drawn(table: dict[str, Any]) -> None:
    settings = parse(table)
    model = load_model(settings, CPU)
    prompts = [Prompt(text) for text in TEXTS[:3]]
    keys = [(1, 0), (1, 1)]
    pair = draw_images(model, [prompts[1]] * 2, keys, settings)
    other = draw_images(model, [prompts[2], prompts[1]], [(2, 0), (1, 0)], settings)
    assert np.array_equal(pair[0], other[1])
    assert not np.array_equal(pair[0], pair[1])


def test_the_training_sampler_is_evaluated_with_its_own_steps_and_noise(
    table: dict[str, Any],
) -> None:
    table["sampling"] |= {"num_steps": 4, "eval_num_steps": 9}
    settings = parse(table)
    prompts = [Prompt(text) for text in TEXTS[:3]]
    service = service_with(score)(settings.rewards)
    model = load_model(settings, CPU)
    calls: list[float] = []
    velocity = model.velocity

    def counted(x: Any, sigma: Any, *rest: Any, **named: Any) -> Any:
        calls.append(float(torch.as_tensor(sigma).flatten()[0]))
        return velocity(x, sigma, *rest, **named)

    model.velocity = counted
    found = [
        evaluate_run(
            model, prompts, service, settings, World(), indices=[0, 1, 2], images_per_prompt=2,
            shown=[0, 1, 2], training_sampler=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert len(calls) == 2 * 3 * 4  # evaluations, batches, steps
    assert found[0].kl is None
    assert found[0].metrics == found[1].metrics
    plain = evaluate_run(
        model, prompts, service, settings, World(), indices=[0, 1, 2], images_per_prompt=2,
        shown=[0, 1, 2],
    )  # fmt: skip
    service.close()
    assert any((plain.shown[i] != found[0].shown[i]).any() for i in range(3))
