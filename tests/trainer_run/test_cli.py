import json
import socket
from pathlib import Path
from typing import Any

import pytest
import typer.main

from tests.trainer_run.fake_service import service_with
from trainer import cli
from trainer.commands import common
from trainer.config.load import parse
from trainer.run.open import train_run


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["flow-train", *arguments])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    code = caught.value.code
    return code if isinstance(code, int) else 0


def recorded(folder: Path | str) -> dict[str, Any]:
    return json.loads((Path(folder) / common.EXIT).read_text(encoding="utf-8"))


def to_toml(table: dict[str, Any]) -> str:
    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{k} = {text(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(text(item) for item in value) + "]"
        return json.dumps(value)

    return "".join(
        f"[{section}]\n" + "".join(f"{k} = {text(v)}\n" for k, v in values.items())
        for section, values in table.items()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "name one preset"),
        (["train", "mini_geneval", "--preset", "mini_ocr"], "name one preset"),
        (["train", "mini_genevel"], "did you mean 'mini_geneval'"),
        (["train", "mini_geneval", "--set", "optim.lrr=1"], "did you mean 'lr'"),
        (["report", "/nowhere"], "holds no run"),
        (["report", "/nowhere", "--watch"], "holds no run"),
        (["compare", "/nowhere"], "two or more runs"),
        (["compare", "/nowhere", "/elsewhere"], "holds no run"),
        (["sample", "/nowhere", "a star"], "holds no run"),
        (["evaluate", "/nowhere"], "holds no run"),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert call(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert "Traceback" not in error


def test_presets_can_be_listed_and_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "presets", "list") == 0
    assert "geneval_sd35m" in capsys.readouterr().out
    assert call(monkeypatch, "presets", "show", "mini_ocr") == 0
    assert "12 prompts x 16 images = 192 images" in capsys.readouterr().out


def test_without_a_service_the_exit_code_is_3(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    table: dict[str, Any],
    tmp_path: Path,
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"grpc://127.0.0.1:{free.getsockname()[1]}"
    table["rewards"] = {**table["rewards"], "url": url, "patience_s": 0.3}
    file = tmp_path / "mine.toml"
    file.write_text(to_toml(table), encoding="utf-8")
    monkeypatch.delenv("REWARD_URL", raising=False)
    assert call(monkeypatch, "train", str(file)) == 3
    error = capsys.readouterr().err
    assert url in error
    assert error.count("\n") == 1
    assert recorded(table["run"]["out_dir"])["exit_code"] == 3
    assert url in recorded(table["run"]["out_dir"])["error"]


def test_how_a_start_ended_is_in_the_folder_because_torchrun_hides_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = ["train", "mini_jpeg", "--out", str(tmp_path), "--set", "optim.lrr=1"]
    assert call(monkeypatch, *wrong) == 2
    assert recorded(tmp_path)["exit_code"] == 2
    assert "did you mean 'lr'" in recorded(tmp_path)["error"]
    # Another process than the first leaves it alone; a crash is 1.
    monkeypatch.setenv("RANK", "1")
    assert call(monkeypatch, *wrong[:-1], "optim.beta9=1") == 2
    assert "lrr" in recorded(tmp_path)["error"]
    monkeypatch.setenv("RANK", "0")

    def crash() -> None:
        # What an earlier start left is gone as soon as the next one begins.
        assert not (tmp_path / common.EXIT).exists()
        raise ZeroDivisionError("division\nby zero")

    with pytest.raises(ZeroDivisionError), common.exit_recorded(str(tmp_path)):
        crash()
    assert recorded(tmp_path) == {"exit_code": 1, "error": "division by zero"}
    with pytest.raises(typer.Exit), common.exit_recorded(str(tmp_path)):
        raise typer.Exit(common.INTERRUPTED)
    assert recorded(tmp_path) == {"exit_code": 130, "error": ""}


def test_a_finished_run_can_be_reported_and_sampled(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    table: dict[str, Any],
    tmp_path: Path,
) -> None:
    table["run"]["epochs"] = 1
    folder = str(train_run(parse(table), environment={}, open_service=service_with()).run_dir)
    assert call(monkeypatch, "report", folder) == 0
    out = capsys.readouterr().out
    assert "brightness on held-out prompts" in out
    (mean,) = [line for line in out.splitlines() if "mean of categories" in line]
    assert mean.count(" to ") == 2
    assert len(mean) <= 80
    assert (Path(folder) / "report.html").is_file()
    # The service is not asked again: the run is finished.
    file = tmp_path / "mine.toml"
    file.write_text(to_toml(table), encoding="utf-8")
    assert call(monkeypatch, "train", str(file)) == 0
    assert "already finished (1 epochs)" in capsys.readouterr().out
    assert recorded(folder) == {"exit_code": 0, "error": ""}
    images = tmp_path / "images"
    asked = ["sample", folder, "a red star", "a heart", "--images", "2", "--out", str(images)]
    assert call(monkeypatch, *asked) == 0
    assert len(list(images.glob("*.png"))) == 4
    base = tmp_path / "base"
    assert call(monkeypatch, *asked[:-1], str(base), "--base") == 0
    same = [(images / path.name).read_bytes() == path.read_bytes() for path in base.glob("*.png")]
    assert not all(same)
