"""What processes do together is what one does, also where their work differs."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer.tiny_wan import build
from tests.trainer_run import two_ranks
from tests.trainer_run.fake_service import service_with
from tests.trainer_run.nursery import Nursery, meeting
from trainer.config.load import parse
from trainer.run.inputs import load_model
from trainer.run.open import train_run

# The boundary of the tiny Wan 2.2 is 0.875.
HIGH, LOW = 0.9, 0.5


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "sigmas",
    [
        pytest.param([[HIGH, HIGH], [LOW, LOW]], id="one_expert_each"),
        pytest.param([[HIGH, LOW], [HIGH, HIGH]], id="both_and_one", marks=pytest.mark.exhaustive),
        pytest.param([[LOW, LOW], [LOW, LOW]], id="one_is_not_used", marks=pytest.mark.exhaustive),
    ],
)
def test_sharded_experts_predict_and_learn_as_whole_ones(
    nursery: Nursery, tmp_path: Path, sigmas: list[list[float]]
) -> None:
    table = {
        "run": {"parallel": "fsdp"},
        "model": {
            "family": "wan",
            "path": str(build(tmp_path / "wan", "wan2.2")),
            "finetune": "full",
            "max_sequence_length": 24,
        },
        "rewards": {"train": [{"scorer": "brightness"}]},
    }
    out, guidance = tmp_path / "found", 2.0
    order = ("experts", table, sigmas, guidance, str(out))
    ranks = [nursery.start(*order, **rank) for rank in meeting(2)]
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].log.read_text()
    model = load_model(parse(table), torch.device("cpu"))
    for own, found in zip(sigmas, two_ranks.read(out, 2), strict=True):
        v = two_ranks.predict(model, own, guidance)
        v.square().mean().backward()
        for name in ("silent", "reference", "v"):
            torch.testing.assert_close(found[name], v.detach(), rtol=1e-5, atol=1e-5, msg=name)
    expected = two_ranks.gradients(model)
    for found in two_ranks.read(out, 2):
        # An expert that no process has used has no gradient at all: the optimiser leaves it alone.
        assert found["gradients"].keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(
                found["gradients"][name], gradient, rtol=1e-4, atol=1e-6, msg=name
            )


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_parameter_without_a_gradient_stays_on_any_number_of_processes(
    nursery: Nursery, tmp_path: Path
) -> None:
    results = []
    for size in (1, 2):
        out = tmp_path / str(size)
        ranks = [nursery.start("unused", str(out), **rank) for rank in meeting(size)]
        assert [rank.wait() for rank in ranks] == [0] * size, ranks[0].log.read_text()
        results += two_ranks.read(out, size)
    for found in results[1:]:
        torch.testing.assert_close(found, results[0], rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_no_process_waits_for_one_that_cannot_reach_the_service(
    nursery: Nursery, table: dict[str, Any]
) -> None:
    table["run"]["epochs"] = 1
    run_dir = train_run(
        parse(table), environment={}, open_service=service_with(), say=lambda _: None
    ).run_dir
    ranks = [nursery.start("evaluate_without_service", str(run_dir), **rank) for rank in meeting(2)]
    assert [rank.wait(60) for rank in ranks] == [3, 3]
    assert all("another scorer" in rank.log.read_text() for rank in ranks)
