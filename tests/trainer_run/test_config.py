import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from trainer.algorithm.losses import LOSSES
from trainer.config import load as config
from trainer.config.loss_settings import LOSS_SETTINGS, NftSettings
from trainer.config.preset import preset_names
from trainer.config.settings import Settings
from trainer.errors import ConfigError
from trainer.run.inputs import load_prompts


def test_every_preset_is_valid_and_documents_every_setting() -> None:
    for name in preset_names():
        settings = config.load(name)
        for _, section in settings:
            for field, info in type(section).model_fields.items():
                assert info.description or field == "algorithm", f"{name}: {field} has no text"


@pytest.mark.parametrize("task", ["geneval", "geneval_nft", "ocr", "jpeg"])
def test_the_miniatures_presets_find_their_prompts(task: str) -> None:
    settings = config.load(f"mini_{task}")
    train, test = load_prompts(settings, print)
    assert train
    assert test


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.learning_rate=1", r"unknown setting optim\.learning_rate"),
        ("optim.l=1", r"unknown setting optim\.l \(did you mean 'lr'\?\)"),
        ("sampling.noise_levle=1", r"did you mean 'noise_level'"),
        ("samplign.noise_level=1", r"unknown setting samplign \(did you mean 'sampling'\?\)"),
        ("rewards.train=[{scorer='a', wieght=1}]", r"did you mean 'weight'"),
        ("optim.lr=-1", r"optim\.lr: .*greater than 0 \(got -1\)"),
        ("optim.lr=fast", r"optim\.lr: .*\(got 'fast'\)"),
        ("model.finetune=none", r"model\.finetune"),
        ("model.family=sd4", r"unknown 'sd4' \(did you mean 'sd3'\?\)"),
        ("loss.algorithm=grop", r"did you mean 'grpo'"),
        ("task.name=genevla", r"did you mean 'geneval'"),
        ("lr=1", r"section\.key=value"),
        ("optim.lr", r"section\.key=value"),
        ("run.seed.x=1", r"run\.seed"),
        ("rewards.train=[]", r"rewards\.train is empty"),
        (
            "batch.rollout_batch_size=7",
            r"does not divide the 96 images .*; use 6, 8 or 4$|use 4, 6 or 8$",
        ),
        ("batch.train_batch_size=5", r"train_batch_size=5 does not divide"),
        ("batch.optimizer_steps_per_epoch=5", r"optimizer_steps_per_epoch=5 does not divide"),
        (
            "sampling.window_per=prompt",
            r"rollout_batch_size=24 does not divide batch\.images_per_prompt=16; use 4, 8 or 16$",
        ),
        ("sampling.window_size=9", r"sampling: window_size 9 does not fit"),
        (
            "sampling.sde=ode",
            r"grpo learns from stochastic steps: .* ode is for nft, awm, dpo, dgpo, sft",
        ),
        ("loss.algorithm=awm", r"awm learns from finished images: set sampling\.sde=ode"),
        ("loss.nft_beta=0.1", r"loss\.nft_beta is a setting of nft; loss\.algorithm=grpo has "),
        ("loss.clip_lo=0.1", r"unknown setting loss\.clip_lo \(did you mean 'clip_low'\?\)"),
        (
            "loss.dppo_threshold=1",
            r"dppo_threshold is a setting of flow_dppo; loss\.algorithm=grpo",
        ),
        (
            "loss.algorithm=dgpo",
            r"dgpo learns from finished images: set sampling\.sde=ode, not flow",
        ),
        ("loss.clip_low=0", r"loss\.clip_low: .*greater than 0 \(got 0\)"),
        ("loss.step_weights=[1, 2]", r"loss\.step_weights: "),
        ("advantage.combine=mean", r"advantage\.combine"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config.load("mini_geneval", [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [
                "loss.algorithm=dpo",
                "batch.optimizer_steps_per_epoch=2",
                "batch.prompts_per_epoch=9",
                "batch.rollout_batch_size=8",
            ],
            r"optimizer_steps_per_epoch=2 does not divide batch\.prompts_per_epoch=9",
        ),
        (
            ["loss.algorithm=flow_dppo"],
            r"flow_dppo learns from stochastic steps: set sampling\.sde to flow_sde, .* ode is for",
        ),
        (["loss.step_weights=noise"], r"step_weights is a setting of grpo, .*; .*=nft has"),
        (["loss.kl_form=velocity"], r"loss\.kl_form is a setting of grpo, grpo_guard, flow_dppo"),
    ],
)
def test_settings_that_a_loss_on_images_cannot_use(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        config.load("mini_geneval_nft", overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("algorithm", ["grpo_guard", "flow_dppo"])
def test_losses_on_densities_take_them_from_every_sampler(algorithm: str) -> None:
    """The official log-probability of cps is a bare squared error."""
    changes = ["sampling.sde=cps", f"loss.algorithm={algorithm}"]
    assert config.rollout_config(config.load("mini_geneval", changes)).form == "gaussian"
    assert config.rollout_config(config.load("mini_geneval", changes[:1])).form != "gaussian"


def test_another_loss_keeps_what_it_has_in_common_and_drops_the_rest() -> None:
    changes = ["loss.noise_levels=2", "sampling.sde=ode", "sampling.group_noise=independent"]
    loss = config.load("mini_geneval", [*changes, "loss.algorithm=nft"]).loss
    before = config.load("mini_geneval").loss
    assert loss == NftSettings(kl_beta=before.kl_beta, noise_levels=2)
    assert set(LOSS_SETTINGS) == set(LOSSES)


def test_images_that_start_alike_without_stochastic_steps_is_refused() -> None:
    same = ["sampling.sde=ode", "loss.algorithm=nft", "sampling.group_noise=shared_start"]
    with pytest.raises(ConfigError, match="would be the same"):
        config.load("mini_geneval", same)


def test_antithetic_pairs_need_an_even_group() -> None:
    odd = ["batch.images_per_prompt=15", "batch.rollout_batch_size=15", "batch.prompts_per_epoch=8"]
    with pytest.raises(ConfigError, match=r"even batch.images_per_prompt, not 15; use 14 or 16"):
        config.load("mini_geneval", odd)


def test_layers_of_full_fine_tuning_under_an_adapter_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"set model.trained_layers=\[\]"):
        config.load("mini_geneval", ["model.finetune=lora"])


@pytest.mark.parametrize(
    "preset", ["mini_edit", "mini_geneval", "mini_geneval_nft", "mini_jpeg", "mini_ocr"]
)
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_the_miniatures_presets_divide_by_what_make_train_may_choose(
    preset: str, processes: int
) -> None:
    found = config.geometry(config.load(preset), processes)
    assert found.images_per_rank * processes == found.images


def test_an_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mini_geneval'"):
        config.load("mini_genevl")
    with pytest.raises(ConfigError, match=re.escape("no settings file nowhere.toml")):
        config.load("nowhere.toml")


def test_a_malformed_file_is_named(tmp_path: Any) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[run\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.toml is not valid TOML"):
        config.load(str(path))


def test_the_command_line_comes_before_the_environment_before_the_preset() -> None:
    environment = {"REWARD_URL": "grpc://env:1"}
    assert config.load("mini_jpeg", [], environment).rewards.url == "grpc://env:1"
    chosen = config.load("mini_jpeg", ["rewards.url=grpc://set:2"], environment)
    assert chosen.rewards.url == "grpc://set:2"


def test_overrides_are_toml_values_or_bare_words() -> None:
    settings = config.load(
        "mini_geneval",
        ["optim.lr=1e-5", "ema.enabled=false", "run.out_dir=a b", "task.category_weights={x=1}"],
    )
    assert settings.optim.lr == 1e-5
    assert settings.ema.enabled is False
    assert settings.run.out_dir == "a b"
    assert settings.task.category_weights == {"x": 1.0}


def test_one_scorer_cannot_have_two_transforms() -> None:
    with pytest.raises(ConfigError, match="component="):
        config.load(
            "mini_jpeg",
            ["rewards.watch=[{scorer='jpeg', transform='raw'}]"],
        )


@hypothesis_settings(deadline=None)  # a busy machine is no failure
@given(
    groups=st.integers(1, 8),
    size=st.integers(2, 8),
    world=st.integers(1, 4),
    rollout=st.integers(1, 16),
    updates=st.integers(1, 4),
)
def test_geometry_either_adds_up_or_is_refused(
    groups: int, size: int, world: int, rollout: int, updates: int
) -> None:
    batch = {
        "prompts_per_epoch": groups,
        "images_per_prompt": size,
        "rollout_batch_size": rollout,
        "optimizer_steps_per_epoch": updates,
    }
    settings = Settings.model_validate({"batch": batch})
    try:
        found = config.geometry(settings, world)
    except ConfigError:
        return
    assert found.images == groups * size == found.images_per_rank * world
    assert found.rollout_batches * rollout == found.images_per_rank
    assert found.micro_per_update * updates * found.micro_batch_size == found.images_per_rank
