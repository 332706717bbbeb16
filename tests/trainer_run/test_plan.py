"""What is said before a run, with nothing loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer_run.test_cli import call, to_toml
from trainer.config import load as config
from trainer.config.preset import preset_names
from trainer.config.toml import to_toml as to_toml_file
from trainer.run.inputs import load_model
from trainer.run.log import write_json
from trainer.tools import plan as explain
from trainer.tools.cost import RELEASED, Network, least_bytes, least_seconds, network_of, passes

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("finetune", ["full", "lora"])
def test_the_least_memory_is_less_than_what_training_holds(finetune: str) -> None:
    changes = [f"model.finetune={finetune}", "model.trained_layers=[]", "model.dtype=float32"]
    settings = config.load("mini_geneval", changes)
    model = load_model(settings, torch.device("cpu"))
    trained = sum(p.numel() for p in model.trainable_parameters().values())
    network = sum(p.numel() for p in model.transformer.parameters())
    count = network if finetune == "full" else network - trained
    said = least_bytes(settings, count, 1)
    # Weights, gradients, two moments, the average and the reference; frozen weights alone.
    assert said == (6 * 4 * network if finetune == "full" else 4 * count)
    if finetune == "full":
        assert least_bytes(settings, count, 4) == said / 4


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # Ten guided steps; nine trained ones, guided, of the policy and of the reference.
        ("geneval_sd35m", (20 + 2 * 18, 18)),
        # Guidance is an input of FLUX; five trained steps of six, and no KL.
        ("edit_flux_kontext", (6 + 5, 5)),
        # Finished images at four levels, policy and reference; all weights are trained.
        ("mini_geneval_nft", (10 + 2 * 4, 2 * 4)),
    ],
)
def test_passes_through_the_network_per_image(name: str, expected: tuple[int, int]) -> None:
    assert passes(config.load(name)) == expected


def test_the_least_time_is_that_of_the_products() -> None:
    settings = config.load("geneval_sd35m_8gpu")
    # 144 images of 32 x 32 tokens per GPU, 74 passes, two operations per parameter and token.
    flops = 144 * 1024 * 74 * 2 * 2.24e9
    assert least_seconds(settings, Network(2.24e9), 8) == pytest.approx(flops / 989e12)
    kontext = config.load("edit_flux_kontext_1gpu")
    assert least_seconds(kontext, Network(1e9), 1) == pytest.approx(64 * 2048 * 16 * 2e9 / 989e12)


def test_the_network_of_a_folder_is_that_of_its_files() -> None:
    found = network_of(ROOT / "miniature" / "weights_edit")
    assert found == Network(2_904_512, count=1, token_px=16)


def test_every_released_model_of_a_preset_has_its_parameters() -> None:
    paths = {config.load(name).model.path for name in preset_names()}
    assert {path for path in paths if not path.startswith("@mini")} == set(RELEASED)


@pytest.mark.parametrize(
    ("name", "gpus", "expected"),
    [
        ("geneval_sd35m", 32, ""),
        (
            "geneval_sd35m",
            1,
            "128 sampling batches per GPU instead of 4: 32 times as long. geneval",
        ),
        ("geneval_sd35m", 1, "geneval_sd35m_1gpu is made for 1 GPU"),
        ("geneval_sd35m", 64, "2 times as fast"),
        ("ocr_sd35m_1gpu", 2, "written for 1 GPU and runs on 2: the same 64 images and 2 updates"),
        ("mini_geneval", 4, ""),
    ],
)
def test_another_number_of_gpus_is_explained(name: str, gpus: int, expected: str) -> None:
    note = explain.size_note(name, config.load(name), gpus)
    assert expected in note
    assert bool(note) == bool(expected)


@pytest.mark.parametrize(
    ("gpus", "preset"),
    [(1, "_1gpu"), (2, "_1gpu"), (3, ""), (4, "_4gpu"), (8, "_8gpu"), (16, "_8gpu"), (32, "")],
)
def test_the_best_size_is_chosen_for_a_number_of_gpus(gpus: int, preset: str) -> None:
    assert explain.for_gpus("geneval_sd35m", gpus) == f"geneval_sd35m{preset}"


@pytest.mark.parametrize("name", ["geneval_sd35m", "pickscore_flux", "ocr_wan21_1b"])
def test_any_number_of_gpus_can_train(name: str) -> None:
    for gpus in (*range(1, 10), 12, 24, 31, 32):
        chosen, used = explain.fitting(name, gpus)
        assert 1 <= used <= gpus
        config.load(chosen, world_size=used)
        assert used == gpus or explain.fitting(name, used) == (chosen, used)
    assert [explain.fitting("geneval_sd35m", gpus)[1] for gpus in (1, 2, 4, 8, 16)] == [
        1, 2, 4, 8, 16,
    ]  # fmt: skip


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_can_be_explained_and_written_out(name: str, tmp_path: Path) -> None:
    settings = config.load(name)
    text = "\n".join(explain.explain(name, settings, settings.run.gpus or 1))
    batch = settings.batch
    assert f"{batch.prompts_per_epoch} prompts x {batch.images_per_prompt} images" in text
    file = tmp_path / "mine.toml"
    file.write_text(to_toml_file(settings), encoding="utf-8")
    assert config.load(str(file)) == settings


def test_the_difference_to_the_published_size_is_listed() -> None:
    lines = explain.explain("ocr_sd35m_4gpu", config.load("ocr_sd35m_4gpu"), 4)
    differs = lines[lines.index("Differs from ocr_sd35m") + 1 :]
    assert differs == [
        "  run.gpus: 32 -> 4",
        "  batch.prompts_per_epoch: 48 -> 16",
        "  batch.images_per_prompt: 24 -> 16",
        "  batch.rollout_batch_size: 9 -> 8",
    ]


def test_presets_show_explains_and_prints_every_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "presets", "show", "geneval_sd35m", "--gpus", "8") == 0
    out = capsys.readouterr().out
    assert "144 images per GPU, sampled and scored in 16 batches of 9" in out
    assert call(monkeypatch, "presets", "show", "geneval_sd35m", "--gpus", "7") == 2
    assert "do not divide by 7 processes; use 2, 4 or 8" in capsys.readouterr().err
    assert call(monkeypatch, "presets", "show", "mini_ocr", "--all", "--set", "optim.lr=5e-5") == 0
    assert "lr = 5e-05  # Learning rate." in capsys.readouterr().out
    assert call(monkeypatch, "presets", "show", "mini_ocr", "--toml") == 0
    assert capsys.readouterr().out == to_toml_file(config.load("mini_ocr")) + "\n"


def test_a_dry_run_finds_what_would_stop_the_run_and_loads_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REWARD_URL", "grpc://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    arguments = ["train", "geneval_sd35m", "--dry-run", "--gpus", "8", "--gpu-gb", "80"]
    assert call(monkeypatch, *arguments) == 2
    out = capsys.readouterr().out
    assert "STOPS prompts  there is no prompt file dataset/geneval/train_metadata.jsonl;" in out
    assert "flow-train data pull geneval" in out
    assert "`hf download stabilityai/stable-diffusion-3.5-medium`" in out
    assert "alone take 4.48 GB of 80 GB per GPU" in out
    assert "56 passes forward and 18 back per image: at the least 49.4 s per epoch" in out
    assert "no usable reward service at grpc://127.0.0.1:9" in out
    assert "runs/geneval_sd35m is new" in out
    assert not list(tmp_path.iterdir())
    assert call(monkeypatch, "train", "mini_ocr", "--gpus", "2") == 2
    assert "torchrun --nproc-per-node N" in capsys.readouterr().err


def test_a_dry_run_of_a_run_that_could_start(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    table: dict[str, Any],
    tmp_path: Path,
) -> None:
    table["rewards"]["url"] = "grpc://127.0.0.1:9"
    file = tmp_path / "mine.toml"
    file.write_text(to_toml(table), encoding="utf-8")
    monkeypatch.delenv("REWARD_URL", raising=False)
    assert call(monkeypatch, "train", str(file), "--dry-run") == 0
    out = capsys.readouterr().out
    assert "ok    prompts  6 to train on (6 rows), 2 held out" in out
    assert "note  rewards" in out
    assert call(monkeypatch, "train", str(file), "--dry-run", "--gpu-gb", "1e-6") == 2
    assert "STOPS memory   weights, gradients and moments alone take" in capsys.readouterr().out
    run_dir = Path(table["run"]["out_dir"])
    (run_dir / "checkpoints" / "epoch_000003").mkdir(parents=True)
    settings = config.load(str(file)).model_dump(mode="json")
    write_json(run_dir / "config.json", {"settings": settings})
    assert call(monkeypatch, "train", str(file), "--dry-run") == 0
    assert "would be resumed from epoch_000003" in capsys.readouterr().out
    assert call(monkeypatch, "train", str(file), "--dry-run", "--set", "optim.lr=1.0") == 2
    assert "STOPS folder" in (out := capsys.readouterr().out)
    assert "was started with optim.lr=" in out
    (Path(table["model"]["path"]) / "vae" / "config.json").rename(tmp_path / "away.json")
    try:
        assert call(monkeypatch, "train", str(file), "--dry-run") == 2
        assert "is not a whole pipeline folder" in capsys.readouterr().out
    finally:
        (tmp_path / "away.json").rename(Path(table["model"]["path"]) / "vae" / "config.json")
