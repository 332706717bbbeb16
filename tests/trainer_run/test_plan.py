"""What is said before a run: counts are those of a real epoch, estimates near what is used."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.trainer_run.fake_service import service_with
from tests.trainer_run.test_cli import call, to_toml
from trainer.algorithm.losses import LOSSES
from trainer.config import load as config
from trainer.config.load import parse
from trainer.config.preset import preset_names
from trainer.config.settings import Settings
from trainer.models.architecture import described, find
from trainer.models.published import PUBLISHED
from trainer.models.registry import MODELS, TARGETS
from trainer.parallel.world import World
from trainer.run.epoch import train_epoch
from trainer.run.inputs import load_model
from trainer.run.open import opened
from trainer.tools import estimate
from trainer.tools import plan as explain
from trainer.tools.plan import evaluations

MINI = Path("miniature/weights")
ROOT = Path(__file__).parents[2]
LIBRARY: Any = diffusers


def counted(settings: Settings, run_dir: Path) -> tuple[float, float]:
    """Evaluations per image of one real epoch: without, and with a backward pass."""
    rows = {False: 0, True: 0}

    def count(module: Any, inputs: Any, named: Any) -> None:
        rows[torch.is_grad_enabled()] += len(named["hidden_states"])

    with opened(
        settings,
        run_dir=run_dir,
        world=World(),
        device=torch.device("cpu"),
        open_service=service_with(),
        say=lambda text: None,
        stop=lambda: False,
    ) as run:
        hook = run.model.transformer.register_forward_pre_hook(count, with_kwargs=True)
        images = train_epoch(run)["images"]
        hook.remove()
    return rows[False] / images, rows[True] / images


CASES: list[tuple[str, dict[str, dict[str, Any]]]] = [
    ("nft", {"sampling": {"guidance_scale": 3.0}}),
    ("dpo", {"batch": {"rollout_batch_size": 4, "optimizer_steps_per_epoch": 1}}),
    ("sft", {"batch": {"rollout_batch_size": 4, "optimizer_steps_per_epoch": 1}}),
    ("grpo", {"batch": {"fold_steps": 2}, "loss": {"kl_beta": 0.0}}),
    ("grpo", {"batch": {"train_batch_size": 1}, "sampling": {"window_size": 0}}),
    ("grpo_guard", {"sampling": {"guidance_scale": 3.0}, "loss": {"guidance_scale": 1.0}}),
    ("awm", {"loss": {"ema_kl_beta": 0.1, "kl_beta": 0.0, "noise_levels": 9}}),
]


@pytest.mark.parametrize(("algorithm", "changes"), CASES)
def test_an_epoch_calls_the_network_as_often_as_is_said(
    table: dict[str, Any], tmp_path: Path, algorithm: str, changes: dict[str, dict[str, Any]]
) -> None:
    table["loss"]["algorithm"] = algorithm
    table["batch"]["skip_constant_groups"] = False
    if LOSSES[algorithm].learns_from == "images":
        table["sampling"] |= {"sde": "ode", "window_size": 0}
    for section, values in changes.items():
        table[section] |= values
    settings = parse(table)
    said = evaluations(settings)
    forward, train = counted(settings, tmp_path)
    assert (forward, train) == pytest.approx((said.forward, said.train))


@pytest.mark.parametrize(
    ("path", "billions"),
    [
        ("stabilityai/stable-diffusion-3-medium-diffusers", 2.03),
        ("stabilityai/stable-diffusion-3.5-medium", 2.24),
        ("stabilityai/stable-diffusion-3.5-large", 8.06),
        ("black-forest-labs/FLUX.1-dev", 11.90),
        ("Qwen/Qwen-Image", 20.43),
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", 1.42),
    ],
)
def test_published_shapes_have_the_published_size(path: str, billions: float) -> None:
    shape = find(path)
    assert shape is not None
    assert shape.parameters / 1e9 == pytest.approx(billions, abs=0.006)


# The networks' own classes and widths, with few blocks: counting in all of them takes a minute.
FEW_BLOCKS = {
    "stabilityai/stable-diffusion-3.5-medium": {"num_layers": 3, "dual_attention_layers": [0]},
    "stabilityai/stable-diffusion-3.5-large": {"num_layers": 2},
    "black-forest-labs/FLUX.1-dev": {"num_layers": 1, "num_single_layers": 2},
}
INPUTS: dict[str, Any] = {
    "SD3Transformer2DModel": {
        "hidden_states": (1, 16, 64, 64),
        "encoder_hidden_states": (1, 77 + 128, 4096),
        "pooled_projections": (1, 2048),
        "timestep": (1,),
    },
    "FluxTransformer2DModel": {
        "hidden_states": (1, 1024, 64),
        "encoder_hidden_states": (1, 128, 4096),
        "pooled_projections": (1, 768),
        "timestep": (1,),
        "guidance": (1,),
        "img_ids": (1024, 3),
        "txt_ids": (128, 3),
    },
}


@pytest.mark.parametrize("path", FEW_BLOCKS)
def test_operations_are_those_that_pytorch_counts(path: str) -> None:
    known = PUBLISHED[path]
    table = {**known.config, **FEW_BLOCKS[path]}
    shape = described(
        "here",
        known.transformer,
        table,
        encoder_parameters=0,
        vae_parameters=0,
        vae={},
        clip_tokens=77,
    )
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = getattr(LIBRARY, known.transformer).from_config(table)
        network(**{name: torch.ones(size) for name, size in INPUTS[known.transformer].items()})
    said = estimate.flop_of_forward(config.load("geneval_sd35m"), shape)
    assert said == pytest.approx(counter.get_total_flops(), rel=0.01)


def kept_bytes(settings: Settings) -> tuple[Any, float]:
    """The miniature, and the bytes that one of its training forwards keeps for the backward."""
    model = load_model(settings, torch.device("cpu"))
    weights = {p.untyped_storage().data_ptr() for p in model.transformer.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    rows = settings.batch.rollout_batch_size
    cond = model.encode_prompts(["a photo of a star"] * rows)
    x = torch.randn(rows, *model.latent_shape(*settings.sampling.size))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive = model.velocity(x, torch.full((rows,), 0.5), cond)
        assert alive.requires_grad
        return model, float(sum(kept.values()))


@pytest.mark.parametrize("finetune", ["full", "lora"])
def test_memory_is_near_what_the_miniature_uses(finetune: str) -> None:
    changes = [f"model.finetune={finetune}", "model.trained_layers=[]", "model.dtype=float32"]
    changes += ["batch.rollout_batch_size=24"]
    settings = config.load("mini_geneval_grpo", changes)
    model, activations = kept_bytes(settings)
    shape = find(config.resolve_path(settings.model.path))
    assert shape is not None
    said = estimate.memory(settings, shape, TARGETS["sd3"](), 1)
    trained = sum(p.numel() for p in model.trainable_parameters().values())
    network = sum(p.numel() for p in model.transformer.parameters())
    # Weights are counted exactly, from the shapes alone.
    assert said.resident["gradients"] == 4 * trained
    assert said.resident["network"] + said.resident["adapters"] == 4 * network
    pipe = model._family.pipe
    assert said.resident["autoencoder"] == 4 * sum(p.numel() for p in pipe.vae.parameters())
    encoders = [getattr(pipe, name) for name in model._family.encoders]
    held = sum(p.numel() for encoder in encoders if encoder for p in encoder.parameters())
    assert said.resident["text encoders"] == pytest.approx(4 * held)
    # What the backward pass needs is a rule of thumb.
    ratio = said.passing["activations of training"] / activations
    assert 1 / 2.5 < ratio < 2.5, ratio


def test_every_family_and_every_shipped_model_can_be_planned() -> None:
    assert set(TARGETS) == set(MODELS)
    for name in preset_names():
        settings = config.load(name)
        assert settings.model.path in PUBLISHED or settings.model.path.startswith("@mini/")


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


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_can_be_explained_and_written_out(name: str, tmp_path: Path) -> None:
    settings = config.load(name)
    text = "\n".join(explain.explain(name, settings, settings.run.gpus or 1))
    batch = settings.batch
    assert f"{batch.prompts_per_epoch} prompts x {batch.images_per_prompt} images" in text
    file = tmp_path / "mine.toml"
    file.write_text(explain.to_toml(settings), encoding="utf-8")
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
    assert "training      18   9 stochastic steps x 2, forward and backward" in out
    assert call(monkeypatch, "presets", "show", "geneval_sd35m", "--gpus", "7") == 2
    assert "do not divide by 7 processes; use 2, 4 or 8" in capsys.readouterr().err
    assert call(monkeypatch, "presets", "show", "mini_ocr", "--all", "--set", "optim.lr=5e-5") == 0
    assert "lr = 5e-05  # Learning rate." in capsys.readouterr().out
    assert call(monkeypatch, "presets", "show", "mini_ocr", "--toml") == 0
    assert capsys.readouterr().out == explain.to_toml(config.load("mini_ocr")) + "\n"


def test_a_dry_run_finds_what_would_stop_the_run_and_loads_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REWARD_URL", "grpc://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    arguments = ["train", "geneval_sd35m", "--dry-run", "--gpus", "8", "--gpu", "a100"]
    assert call(monkeypatch, *arguments) == 2
    out = capsys.readouterr().out
    assert "STOPS prompts  there is no prompt file dataset/geneval/train_metadata.jsonl;" in out
    assert "flow-train data pull geneval" in out
    assert "`hf download stabilityai/stable-diffusion-3.5-medium`" in out
    assert "no usable reward service at grpc://127.0.0.1:9" in out
    assert "runs/geneval_sd35m is new" in out
    assert "memory per GPU                about 4" in out
    assert "a100 at 35% of 312 TFLOP/s" in out
    assert not list(tmp_path.iterdir())
    assert call(monkeypatch, *arguments[:-1], "a1000") == 2
    assert "did you mean 'a100'" in capsys.readouterr().err
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
    (Path(table["model"]["path"]) / "vae" / "config.json").rename(tmp_path / "away.json")
    try:
        assert call(monkeypatch, "train", str(file), "--dry-run") == 2
        assert "is not a whole pipeline folder" in capsys.readouterr().out
    finally:
        (tmp_path / "away.json").rename(Path(table["model"]["path"]) / "vae" / "config.json")
