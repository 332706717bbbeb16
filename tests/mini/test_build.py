"""The parts of the build, on few steps, through the files that they write."""

import json
import socket
from pathlib import Path

import pytest
import torch
from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import (
    StableDiffusion3Pipeline,
)

from miniature.data import DATA_DIR, SceneStream, write_edit_files, write_prompt_files
from miniature.denoiser import Denoiser
from miniature.editor import Editor
from miniature.edits import WORDS as EDIT_WORDS
from miniature.pipeline import assemble, save
from miniature.pretrain import PretrainConfig, pretrain
from miniature.prompts import RL_WORDS, TAGS, WORDS, all_rows
from miniature.text import MAX_TOKENS, build_tokenizer
from miniature.vae import KL_WEIGHTS, build_vae, encode, kl_weight, train_vae

SMALL = PretrainConfig(steps=3, batch_size=4, warmup_steps=1, ring_size=8, reuse=1)


def test_committed_prompt_files_are_what_the_grammar_gives(tmp_path: Path) -> None:
    write_prompt_files(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    texts = [path for path in DATA_DIR.glob("*.jsonl") if not path.name.startswith("edit_")]
    assert names == sorted(path.name for path in texts)
    for name in names:
        assert (DATA_DIR / name).read_text() == (tmp_path / name).read_text()
        for line in (DATA_DIR / name).read_text().splitlines():
            assert json.loads(line)["prompt"]


def test_every_grammar_word_is_one_token_and_other_words_are_letters() -> None:
    tokenizer = build_tokenizer()
    for tag in TAGS:
        for row in all_rows(tag):
            ids = tokenizer(row["prompt"]).input_ids
            assert len(ids) == len(row["prompt"].split()) + 2 <= MAX_TOKENS
    for word in WORDS + RL_WORDS:
        tokens = tokenizer.convert_ids_to_tokens(tokenizer(f'the word "{word}"').input_ids)
        assert [t.removesuffix("</w>") for t in tokens[4:-2]] == list(word)


def test_committed_edits_are_what_the_scenes_give(tmp_path: Path) -> None:
    write_edit_files(tmp_path, sources=(6, 0))
    written, committed = (
        (folder / "edit_train.jsonl").read_text().splitlines() for folder in (tmp_path, DATA_DIR)
    )
    assert written == committed[: len(written)]
    for picture in (tmp_path / "edit").iterdir():
        assert picture.read_bytes() == (DATA_DIR / "edit" / picture.name).read_bytes()


def test_every_word_of_an_instruction_is_one_token_of_both_encoders() -> None:
    editor = Editor()
    for word in EDIT_WORDS:
        assert len(editor.tokenizer(word).input_ids) == 3  # and the marks at both ends
        assert len(editor.tokenizer_2(word).input_ids) == 2  # and the mark at its end
    assert editor.tokenize(["move the purple triangle to the bottom"]).shape == (1, 2, 12)


def test_learning_rate_warms_up_and_decays() -> None:
    config = PretrainConfig(steps=1000, warmup_steps=100, decay_fraction=0.4)
    assert config.rate(0) == pytest.approx(0.01)
    assert config.rate(300) == 1.0
    assert config.rate(800) == pytest.approx(0.5)
    assert 0 < config.rate(999) < 0.01


def test_untrained_transformer_predicts_zero() -> None:
    # adaLN-zero and a zero output layer: training starts from the mean, not from noise.
    model = Denoiser().eval()
    v = model(torch.randn(2, 16, 8, 8), torch.tensor([0.3, 0.9]), model.tokenize(["a star", ""]))
    assert v.abs().max() == 0


def test_kl_weight_rises_geometrically() -> None:
    assert kl_weight(0.0) == kl_weight(0.4) == KL_WEIGHTS[0]
    assert kl_weight(0.6) == pytest.approx((KL_WEIGHTS[0] * KL_WEIGHTS[1]) ** 0.5)
    assert kl_weight(0.8) == kl_weight(1.0) == pytest.approx(KL_WEIGHTS[1])


def test_vae_training_lowers_the_error_and_normalises_latents() -> None:
    torch.manual_seed(0)
    vae = build_vae()
    images = SceneStream(seed=5).images(16)

    def error() -> float:
        z = encode(vae, images) / vae.config["scaling_factor"] + vae.config["shift_factor"]
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
        return float((vae.decode(z).sample - x).abs().mean())  # pyright: ignore

    with torch.no_grad():
        before = error()
    train_vae(vae, lambda n: images[:n], steps=12, batch_size=8)
    with torch.no_grad():
        assert error() < 0.9 * before
    z = encode(vae, images)
    assert abs(float(z.mean())) < 0.3
    assert 0.6 < float(z.std()) < 1.6


def test_pretrained_parts_become_a_pipeline_of_plain_diffusers(tmp_path: Path) -> None:
    build_vae().save_pretrained(tmp_path / "vae")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pretrain(0, 1, port, SMALL, Denoiser, tmp_path / "vae", tmp_path)
    state = torch.load(tmp_path / "denoiser.pt", weights_only=True)
    assert set(state) == set(Denoiser().state_dict())
    save(assemble(tmp_path / "vae", tmp_path / "denoiser.pt"), tmp_path / "pipe")
    pipe = StableDiffusion3Pipeline.from_pretrained(
        tmp_path / "pipe",
        text_encoder_3=None,
        tokenizer_3=None,
        torch_dtype=torch.float32,
        local_files_only=True,
    )
    pipe.set_progress_bar_config(disable=True)
    image = pipe(
        "a photo of a red star",
        height=64,
        width=64,
        num_inference_steps=2,
        guidance_scale=1.0,
        max_sequence_length=0,
    ).images[0]  # pyright: ignore
    assert image.size == (64, 64)
