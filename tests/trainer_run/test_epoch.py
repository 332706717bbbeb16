"""What holds within an epoch: one window, one sampling policy."""

from pathlib import Path
from typing import Any

import torch

from tests.trainer_run.fake_service import service_with
from trainer.algorithm.losses.matching import old_decay
from trainer.config.load import parse
from trainer.parallel.world import World
from trainer.run.checkpoint import find
from trainer.run.epoch import sample_epoch
from trainer.run.log import read
from trainer.run.open import opened, train_run


def test_all_images_of_an_epoch_have_the_same_stochastic_steps(
    table: dict[str, Any], tmp_path: Path
) -> None:
    # Groups of four in batches of three: the batches straddle groups.
    table["batch"] = {
        "prompts_per_epoch": 3,
        "images_per_prompt": 4,
        "rollout_batch_size": 3,
        "optimizer_steps_per_epoch": 2,
    }
    epochs = windows_of(table, tmp_path)
    assert all(len({steps for _, steps in epoch}) == 1 for epoch in epochs)
    # Two of the first three steps.
    assert {epoch[0][1] for epoch in epochs} == {(0, 1), (1, 2)}


def test_each_group_may_have_stochastic_steps_of_its_own(
    table: dict[str, Any], tmp_path: Path
) -> None:
    table["sampling"]["window_per"] = "prompt"
    several = 0
    for epoch in windows_of(table, tmp_path):
        chosen = dict(epoch)
        # Two batches of a group have the same; not all groups have.
        assert set(epoch) == set(chosen.items())
        several += len(set(chosen.values())) > 1
    assert 0 < several < 8


def windows_of(table: dict[str, Any], run_dir: Path) -> list[list[tuple[int, tuple[int, ...]]]]:
    """For every sampling batch of eight epochs its prompt and its stochastic steps."""
    with opened(
        parse(table),
        run_dir=run_dir,
        world=World(),
        device=torch.device("cpu"),
        open_service=service_with(),
        say=lambda text: None,
        stop=lambda: False,
    ) as run:
        prompts = range(len(run.train))
        found = []
        for epoch in range(8):
            run.progress.epoch = epoch
            updates = sample_epoch(run, prompts[: run.settings.batch.prompts_per_epoch])
            batches = [item.batch for sampled in updates for item in sampled]
            found.append([(batch.keys[0].prompt, batch.steps) for batch in batches])
        return found


def test_the_window_of_an_epoch_is_in_its_metrics(table: dict[str, Any]) -> None:
    table["run"]["epochs"] = 2
    run_dir = train_run(
        parse(table), environment={}, open_service=service_with(), say=lambda text: None
    ).run_dir
    rows = [row for row in read(run_dir) if row["kind"] == "train"]
    assert all(row["window"] in ([0, 1], [1, 2]) for row in rows)


def test_nft_s_sampling_policy_follows_once_after_all_updates_of_an_epoch(
    table: dict[str, Any],
) -> None:
    table["run"] |= {"epochs": 2, "keep_checkpoints": 9}
    table["sampling"] |= {"sde": "ode", "window_size": 0}
    table["loss"] = {"algorithm": "nft"}
    run_dir = train_run(
        parse(table), environment={}, open_service=service_with(), say=lambda text: None
    ).run_dir
    before, after, last = (find(run_dir, f"epoch_{epoch:06d}").tensors for epoch in range(3))
    assert after["old"].keys() == after["trained"].keys()
    moved = False
    for name, policy in after["trained"].items():
        # Two updates an epoch, as in the reference's loop.
        kept = old_decay(2)
        expected = kept * before["old"][name] + (1 - kept) * policy
        torch.testing.assert_close(after["old"][name], expected, rtol=1e-6, atol=1e-8)
        kept = old_decay(4)
        expected = kept * after["old"][name] + (1 - kept) * last["trained"][name]
        torch.testing.assert_close(last["old"][name], expected, rtol=1e-6, atol=1e-8)
        moved = moved or bool((policy - before["trained"][name]).abs().max() > 1e-3)
    assert moved
