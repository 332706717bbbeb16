"""Presets: how files extend each other, and which sizes fit."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.config import load as config
from trainer.config import preset
from trainer.config.geometry import geometry, world_sizes
from trainer.errors import ConfigError

SCRIPT = Path(__file__).parents[2] / "scripts" / "train.py"
SIZES = ("", "_8gpu", "_4gpu", "_1gpu")
FULL = [name for name in preset.preset_names() if not name.startswith("mini_")]


@pytest.mark.parametrize("name", FULL)
def test_a_preset_is_whole_for_the_number_of_gpus_it_names(name: str) -> None:
    settings = config.load(name)
    assert settings.run.gpus > 0
    found = config.load(name, world_size=settings.run.gpus)
    assert found == settings
    assert settings.run.out_dir == f"runs/{name}"
    first = preset.header(name)[0]
    assert first.endswith((".", ","))
    assert "GPU" in " ".join(preset.header(name))


@pytest.mark.parametrize("task", ["geneval", "ocr", "pickscore"])
def test_every_task_has_four_sizes(task: str) -> None:
    names = [f"{task}_sd35m{size}" for size in SIZES]
    whole = config.load(names[0])
    gpus = [config.load(name).run.gpus for name in names]
    assert gpus == [32, 8, 4, 1]
    assert sorted(preset.siblings(names[0])) == sorted(names[1:])
    eight = config.load(names[1])
    assert eight.batch == whole.batch  # the same global batch
    assert geometry(eight, 8).images == geometry(whole, 32).images == 48 * 24
    for name in names:
        assert config.load(name).task == whole.task


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(files))}.toml"


def test_a_file_of_ones_own_extends_a_preset(tmp_path: Path) -> None:
    mine = write(
        tmp_path,
        mine='extends = ["common.toml"]\n[optim]\nlr = 1e-5\n',
        common='extends = "ocr_sd35m_1gpu"\n[optim]\nlr = 2e-5\nweight_decay = 0.5\n',
    )
    settings = config.load(str(mine))
    parent = config.load("ocr_sd35m_1gpu")
    assert settings.optim.lr == 1e-5
    assert settings.optim.weight_decay == 0.5
    assert settings.batch == parent.batch
    assert settings.run.out_dir == "runs/mine"
    assert preset.parents(str(mine)) == ["common.toml"]


def test_what_comes_later_replaces_the_setting_and_keeps_the_section(tmp_path: Path) -> None:
    rewards = "[rewards]\ntrain = [{ scorer = 'a' }]\n[task]\ncategory_weights = {x = 1, y = 2}\n"
    mine = write(
        tmp_path,
        mine='extends = ["a.toml", "b.toml"]\n[task]\ncategory_weights = {y = 3}\n',
        a=rewards + "[run]\nseed = 1\nepochs = 7\n",
        b="[run]\nseed = 2\nout_dir = 'inherited'\n",
    )
    settings = config.load(str(mine))
    assert (settings.run.seed, settings.run.epochs) == (2, 7)
    assert settings.task.category_weights == {"y": 3.0}
    assert settings.run.out_dir == "runs/mine"  # two runs never share a folder by inheritance


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('extends = "mine.toml"', r"mine\.toml extends itself: mine\.toml -> mine\.toml"),
        ('extends = "other.toml"', r"extends itself: mine\.toml -> other\.toml -> mine\.toml"),
        ('extends = "genval_sd35m"', r"unknown preset 'genval_sd35m' \(did you mean 'geneval_sd3"),
        ('extends = "parts/sd35"', r"unknown preset 'parts/sd35' \(did you mean 'parts/sd35m'"),
        ('extends = "gone.toml"', r"mine\.toml extends gone\.toml: there is no such file"),
        ("extends = 3", r"extends must be the name of a preset, or a list of names"),
        ("extends = [3]", r"extends must be the name of a preset, or a list of names"),
        ("run = 3", r"run: .*\(got 3\)"),
        ("extend = 'ocr_sd35m'", r"unknown setting extend$"),
    ],
)
def test_a_wrong_extension_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    mine = write(tmp_path, mine=text, other='extends = "mine.toml"')
    with pytest.raises(ConfigError, match=message) as caught:
        config.load(str(mine))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "gpus", "message"),
    [
        (
            "batch.rollout_batch_size=10",
            8,
            r"rollout_batch_size=10 does not divide the 72 images per process and update "
            r"\(48 prompts x 24 images = 1152, 8 processes, 2 updates\); use 8, 9 or 12$",
        ),
        (
            "run.seed=1",
            7,
            r"48 prompts x 24 images = 1152, in 2 updates, do not divide by 7 processes; "
            r"use 2, 4 or 8 processes, or batch\.prompts_per_epoch = 21, 42 or 63$",
        ),
        ("batch.train_batch_size=2", 8, r"train_batch_size=2 does not divide .*=9; use 1, 3 or 9$"),
        ("batch.optimizer_steps_per_epoch=5", 8, r"steps_per_epoch=5 does not .*; use 3, 4 or 6$"),
    ],
)
def test_sizes_that_do_not_fit_say_what_does(override: str, gpus: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config.load("geneval_sd35m", [override], world_size=gpus)
    assert "\n" not in str(caught.value)


def test_the_suggestions_fit() -> None:
    settings = config.load("geneval_sd35m")
    assert world_sizes(settings) == [1, 2, 4, 8, 16, 32, 64]
    for size in (8, 9, 12):
        config.load("geneval_sd35m", [f"batch.rollout_batch_size={size}"], world_size=8)
    for prompts in (21, 42, 63):
        config.load("geneval_sd35m", [f"batch.prompts_per_epoch={prompts}"], world_size=7)


def test_torchruns_number_of_processes_is_what_is_checked() -> None:
    config.load("ocr_sd35m_1gpu", [], {"WORLD_SIZE": "4"})
    with pytest.raises(ConfigError, match="do not divide by 3 processes; use 1, 2 or 4"):
        config.load("ocr_sd35m_1gpu", [], {"WORLD_SIZE": "3"})


@pytest.mark.parametrize(
    ("model", "task", "processes", "expected"),
    [
        ("mini", "geneval", 4, "mini_geneval"),
        ("sd3.5-medium", "geneval", 1, "geneval_sd35m_1gpu"),
        ("SD3.5-Medium", "ocr", 8, "ocr_sd35m_8gpu"),
        ("sd35m", "pickscore", 32, "pickscore_sd35m"),
        ("flux.1-dev", "pickscore", 8, "pickscore_flux_8gpu"),
        ("flux.1-kontext", "edit", 8, "edit_flux_kontext_8gpu"),
        ("flux.2-klein", "edit", 1, "edit_flux2_klein_1gpu"),
        ("flux.2-dev", "pickscore", 8, "pickscore_flux2_dev"),
        ("wan2.2-5b", "i2v", 1, "i2v_wan22_5b_1gpu"),
        ("wan2.2-i2v-a14b", "i2v", 8, "i2v_wan22_a14b"),
        ("qwen-image-edit", "edit", 1, "edit_qwen_image_edit_1gpu"),
        ("qwen-image", "pickscore", 32, "pickscore_qwen_image"),
        ("wan2.1-1.3b", "ocr", 2, "ocr_wan21_1b"),
        ("sd35m_guard", "ocr", 16, "ocr_sd35m_guard"),
        ("sd4", "geneval", 1, "geneval_sd4"),
    ],
)
def test_make_train_finds_the_preset(model: str, task: str, processes: int, expected: str) -> None:
    script = runpy.run_path(str(SCRIPT))
    assert script["preset_of"](model, task, processes) == expected


def test_a_dry_run_for_several_gpus_is_said_once(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--model", "sd3.5-medium", "--processes", "8"]
    command += ["--reward-url", "grpc://127.0.0.1:9", "--dry-run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr  # there is no prompt file
    assert done.stdout.count("One epoch on 8 GPUs") == 1
    assert not done.stderr


@pytest.mark.parametrize(
    ("named", "gpus", "chosen", "used"),
    [
        ("geneval_sd35m", 1, "geneval_sd35m_1gpu", 1),
        ("geneval_sd35m", 2, "geneval_sd35m_1gpu", 2),
        ("geneval_sd35m", 3, "geneval_sd35m_1gpu", 2),
        ("ocr_sd35m", 3, "ocr_sd35m_1gpu", 2),
        *(("ocr_sd35m", gpus, "ocr_sd35m_4gpu", 4) for gpus in (4, 5, 6, 7)),
        ("ocr_sd35m", 8, "ocr_sd35m_8gpu", 8),
        ("geneval_sd35m", 12, "geneval_sd35m_8gpu", 8),
        *(("ocr_wan21_1b", gpus, "ocr_wan21_1b", 4) for gpus in (4, 5, 7)),
        ("ocr_wan21_1b", 3, "ocr_wan21_1b", 2),
        ("pickscore_flux", 7, "pickscore_flux", 6),
        ("of_another_name", 7, "of_another_name", 7),
    ],
)
def test_make_train_takes_the_largest_number_of_gpus_that_divides(
    capsys: pytest.CaptureFixture[str], named: str, gpus: int, chosen: str, used: int
) -> None:
    """On 3, 5, 6 or 7 GPUs it trains on fewer, and says so, instead of failing."""
    assert runpy.run_path(str(SCRIPT))["_fitting"](named, gpus) == (chosen, used)
    said = capsys.readouterr().out
    if used == gpus:
        assert said == ""
        return
    assert said.startswith(f"using {used} of {gpus} GPUs: the images of an update of {chosen} do")
    config.load(chosen, world_size=used)
    sizes = [world_sizes(config.load(size)) for size in (named, *preset.siblings(named))]
    assert not [more for more in range(used + 1, gpus + 1) if any(more in fits for fits in sizes)]
