"""Pictures that overflowed: failed items in training and evaluation, never a score."""

import json
from pathlib import Path
from typing import Any

import pytest
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from tests.trainer_run.fake_service import service_with
from trainer.config.load import parse
from trainer.errors import ModelError
from trainer.run.open import train_run
from trainer.tools.artifacts import Choice
from trainer.tools.offline import sample_target


@pytest.fixture
def overflowing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The autoencoder gives NaN for the first picture of every batch of two or more."""
    whole = AutoencoderKL.decode

    def decode(self: Any, latents: Any, **options: Any) -> Any:
        (pictures,) = whole(self, latents, **options)
        if len(pictures) > 1:
            pictures[0] = float("nan")
        return (pictures,)

    monkeypatch.setattr(AutoencoderKL, "decode", decode)


@pytest.mark.usefixtures("overflowing")
@pytest.mark.parametrize("algorithm", ["grpo", "nft"])
def test_a_run_scores_only_what_is_finite(table: dict[str, Any], algorithm: str) -> None:
    table["run"]["epochs"] = 1
    table["batch"]["rollout_batch_size"] = 4
    table["rewards"]["max_failed_fraction"] = 0.5
    table["loss"]["algorithm"] = algorithm
    if algorithm == "nft":
        table["sampling"] |= {"sde": "ode", "window_size": 0}
    settings = parse(table)
    scored: list[int] = []

    def score(name: str, item: Any) -> float:
        data = item.images[0].data
        if not item.id.startswith("trial"):
            scored.append(len(set(data)))
        return float(sum(data) % 97)

    said: list[str] = []
    train_run(settings, environment={}, open_service=service_with(score), say=said.append)
    assert any("2 failed (NaN or infinity in the picture" in line for line in said)
    lines = (Path(settings.run.out_dir) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    epoch = next(row for row in rows if row["kind"] == "train")
    assert epoch["failed"] == 2
    assert any("NaN or infinity" in reason for reason in epoch["errors"])
    assert all(value is not None for value in epoch["policy"].values())
    for row in rows:
        if row["kind"] == "eval" and row["images"] > 1:
            assert row["failed"] > 0
    # A picture of NaN would be black: one value only.
    assert min(scored) > 1


@pytest.mark.usefixtures("overflowing")
def test_sampling_says_so(table: dict[str, Any], pipeline: Path, tmp_path: Path) -> None:
    own = tmp_path / "tiny.toml"
    own.write_text(
        'extends = "mini_jpeg"\n[model]\nmax_sequence_length = 0\n[sampling]\nresolution_px = 16\n'
    )
    with pytest.raises(ModelError, match="NaN or infinity"):
        list(sample_target(str(pipeline), Choice(str(own)), ["a star"], tmp_path, images=2, seed=0))
