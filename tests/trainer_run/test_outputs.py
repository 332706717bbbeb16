"""What a run hands over loads in plain diffusers; anything can be evaluated."""

import contextlib
import json
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image as PilImage

from tests.trainer_run.fake_service import service_with
from tests.trainer_run.test_cli import call
from tests.trainer_run.tiny import SIDE_PX, settings_table
from trainer.config.load import load, parse
from trainer.config.preset import read
from trainer.config.settings import Settings
from trainer.config.toml import differences, toml
from trainer.errors import CheckpointError, ConfigError
from trainer.evaluation.held_out import draw_images
from trainer.report.card import _command, write_card
from trainer.report.snippets import CALLS, snippet
from trainer.run.checkpoint import present
from trainer.run.open import train_run
from trainer.tools import offline
from trainer.tools.artifacts import Choice, find, measuring
from trainer.tools.offline import export_run, sample_target
from trainer.types import Prompt

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

CPU = torch.device("cpu")
PROMPT = Prompt("a red star")


def _run(folder: Path, pipeline: Path, finetune: str) -> Path:
    folder.mkdir()
    table = settings_table(folder, pipeline)
    table["run"] = {**table["run"], "epochs": 2, "keep_checkpoints": 9}
    table["model"]["finetune"] = finetune
    table["optim"]["lr"] = 5e-2 if finetune == "lora" else 5e-3
    outcome = train_run(
        parse(table), environment={}, open_service=service_with(), say=lambda text: None
    )
    write_card(outcome.run_dir, outcome.run_dir / "model")
    return outcome.run_dir


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, pipeline: Path) -> dict[str, Path]:
    """A finished run with a LoRA, and one of the whole transformer."""
    root = tmp_path_factory.mktemp("outputs")
    return {kind: _run(root / kind, pipeline, kind) for kind in ("lora", "full")}


def drawn(place: Path | str, **choice: Any) -> np.ndarray:
    """One image with a model, as evaluations draw it."""
    target = find(str(place), Choice(**choice))
    return draw_images(target.load(CPU), [PROMPT], [(0, 0)], target.settings)


def execute(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Run code in a folder; the image that it saves."""
    monkeypatch.chdir(folder)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(code, "card", "exec"), {})
    with PilImage.open(folder / "image.png") as image:
        return np.asarray(image)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_card_is_the_hubs_and_its_code_draws_with_the_weights(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    folder = runs[kind] / "model"
    card = ModelCard.load(folder / "README.md")
    front = card.data.to_dict()
    assert front["library_name"] == "diffusers"
    assert {"flow-grpo", "text-to-image"} <= set(front["tags"])
    assert ("lora" in front["tags"]) == (kind == "lora")
    assert "license" not in front
    for widget in front["widget"]:
        assert (folder / widget["output"]["url"]).is_file()
    for picture in re.findall(r"!\[.*?\]\((.*?)\)", card.text):
        assert (folder / picture).stat().st_size > 100
    assert "| contrast |" in card.text
    assert "| brightness | `fake`" in card.text
    assert torch.__version__ in card.text
    # The code, word for word.
    (code,) = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    trained = execute(code, tmp_path, monkeypatch)
    assert trained.shape == (SIDE_PX, SIDE_PX, 3)
    untrained = re.sub(r"pipe\.load_lora_weights.*|    transformer=transformer,", "", code)
    assert untrained != code
    assert not np.array_equal(trained, execute(untrained, tmp_path, monkeypatch))


def test_the_command_of_the_card_gives_the_same_settings() -> None:
    changes = ["run.seed=7", "optim.lr=1e-5", "task.category_weights={counting = 2.5}"]
    settings = load("mini_ocr", changes)
    assert set(differences(settings, "mini_ocr")) == {change.split("=")[0] for change in changes}
    program, verb, preset, *options = shlex.split(_command(settings).replace("\\\n", ""))
    assert (program, verb, preset) == ("flow-train", "train", "mini_ocr")
    assert load(preset, [text for text in options if text != "--set"]) == settings


def test_a_run_without_a_preset_has_its_settings_on_the_card(runs: dict[str, Path]) -> None:
    card = (runs["lora"] / "model" / "README.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", card, re.DOTALL)
    table = json.loads((runs["lora"] / "config.json").read_text(encoding="utf-8"))["settings"]
    assert parse(tomllib.loads(text)) == Settings.model_validate(table)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_every_form_of_a_result_draws_the_same_image(
    runs: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    run_dir = runs[kind]
    from_run = drawn(run_dir)
    newest = present(run_dir)[0]
    assert np.array_equal(from_run, drawn(newest))
    assert np.array_equal(from_run, drawn(run_dir / "model"))
    assert not np.array_equal(from_run, drawn(run_dir, base=True))
    assert not np.array_equal(from_run, drawn(run_dir, checkpoint="epoch_000000"))
    # Elsewhere the weights need a preset that says how they are loaded.
    out = tmp_path / "moved"
    export_run(run_dir, out)
    with pytest.raises(ConfigError, match="--preset"):
        find(str(out), Choice())
    preset = tmp_path / "mine.toml"
    preset.write_text(as_toml(run_dir), encoding="utf-8")
    assert np.array_equal(from_run, drawn(out, preset=str(preset)))
    with pytest.raises(ConfigError, match="there is something already"):
        export_run(run_dir, out)
    # A complete pipeline is a base of its own; merging rounds.
    whole = tmp_path / "whole"
    export_run(run_dir, whole, whole=True)
    merged = drawn(whole, preset=str(preset)).astype(int)
    assert np.abs(merged - from_run.astype(int)).max() <= 1
    card = ModelCard.load(whole / "README.md").text
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert "load_lora_weights" not in code
    assert f'"{whole}"' in code


def as_toml(run_dir: Path) -> str:
    table = json.loads((run_dir / "config.json").read_text(encoding="utf-8"))["settings"]
    kept = {k: v for k, v in table["model"].items() if not k.startswith("lora")}
    sections = {**table, "model": kept}
    return "".join(
        f"[{name}]\n" + "".join(f"{k} = {toml(v)}\n" for k, v in values.items() if v is not None)
        for name, values in sections.items()
    )


def test_an_export_of_an_early_checkpoint_tells_its_own_numbers(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "early"
    export_run(runs["lora"], out, checkpoint="epoch_000000")
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "after 0 epochs" in text
    assert "after 2 epochs" in (runs["lora"] / "model" / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("/nowhere", "holds no run"),
        ("nowhere/at/all", "holds no run"),
        ("somebody/some-model", "--preset"),
    ],
)
def test_what_is_no_model_is_one_line(place: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        find(place, Choice())
    assert "\n" not in str(error.value)


def test_a_lora_in_another_format_is_one_line(runs: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"lora_unet_x.alpha": torch.ones(1)}, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(CheckpointError, match="format of diffusers"):
        find(str(tmp_path), Choice(preset="mini_geneval"))


def test_another_task_brings_its_prompts_and_rewards() -> None:
    table = measuring(read("mini_geneval"), Choice(task="ocr"))
    settings = parse(table)
    assert settings.task.name == "ocr"
    assert settings.rewards.train[0].scorer == "ocr"
    real = parse(measuring(read("ocr_sd35m_1gpu"), Choice(task="geneval")))
    assert real.task.test == "dataset/geneval/test_metadata.jsonl"
    assert real.eval.metrics[0].component == "official"
    mine = parse(measuring(table, Choice(prompts="mine.jsonl", scorers=["jpeg", "geneval.soft"])))
    assert mine.task.test == "mine.jsonl"
    assert [term.name for term in mine.eval.metrics] == ["jpeg", "geneval.soft"]
    assert mine.rewards.watch == ()
    with pytest.raises(ConfigError, match="did you mean 'geneval'"):
        measuring(table, Choice(task="genval"))


def test_every_family_has_a_call() -> None:
    from trainer.models.registry import MODELS

    assert set(MODELS) <= set(CALLS)
    for family in CALLS:
        settings = load("mini_geneval", ["sampling.num_frames=1"])
        table = settings.model_dump(mode="json")
        table["model"]["family"] = family
        compile(snippet(Settings.model_validate(table), "x", 'a "star"'), "card", "exec")


@contextlib.contextmanager
def fake_service(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Evaluations ask the fake service instead of a network."""
    opener = service_with()
    monkeypatch.setattr(offline, "connect", lambda settings, environment: opener(settings))
    yield


def test_evaluate_prints_the_table_and_writes_everything(
    runs: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "found.json"
    with fake_service(monkeypatch):
        asked = ["evaluate", str(runs["lora"]), "--images", "3", "--json", str(file)]
        assert call(monkeypatch, *asked) == 0
    out = capsys.readouterr().out
    assert "brightness: 2 prompts, 6 images" in out
    assert "run, epoch 2" in out
    assert "as published" not in out
    for heading in ("overall", "one", "many", "images", "failed"):
        assert heading in out
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["outputs"].keys() == {"brightness", "contrast"}
    assert found["kl"]["mean"] > 0
    assert found["images"] == 6
    assert found["failed"] == 0
    assert found["scorers"] == {"brightness": ["fake"], "contrast": ["fake"]}
    row = found["metrics"]["brightness"]
    assert f"{row['mean']:.3f}" in out
    assert f"({row['low']:.3f} to {row['high']:.3f})" in out


def test_a_pipeline_is_evaluated_without_a_run(
    runs: dict[str, Path],
    pipeline: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text(as_toml(runs["lora"]), encoding="utf-8")
    file, base = tmp_path / "found.json", tmp_path / "base.json"
    with fake_service(monkeypatch):
        assert call(monkeypatch, "evaluate", str(pipeline), "--preset", str(preset),
                    "--json", str(file), "--scorer", "contrast") == 0  # fmt: skip
        assert call(monkeypatch, "evaluate", str(runs["lora"]), "--base", "--json", str(base)) == 0
    found, same = (json.loads(path.read_text(encoding="utf-8")) for path in (file, base))
    assert found["kl"] is None
    assert found["outputs"].keys() == {"contrast"}
    assert found["outputs"]["contrast"] == same["outputs"]["contrast"]


def test_samples_of_a_checkpoint_and_of_the_base(runs: dict[str, Path], tmp_path: Path) -> None:
    def paths(name: str, **choice: Any) -> list[bytes]:
        drawn_paths = sample_target(
            str(runs["lora"]), Choice(**choice), ["a red star"], tmp_path / name, images=2, seed=3
        )
        return [path.read_bytes() for path in drawn_paths]

    trained = paths("trained")
    assert trained == paths("again", checkpoint="epoch_000002")
    assert trained != paths("base", base=True)
    assert paths("first", checkpoint="epoch_000000") == paths("base", base=True)
