"""What a real server would refuse is known before anything is sampled."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_judge import FakeEndpoint
from PIL import Image
from server_process import HEADER, Server, running

from trainer.config.load import parse
from trainer.config.settings import Settings
from trainer.data.tasks import load_edit
from trainer.errors import ConfigError
from trainer.rewards import RewardService, connect
from trainer.run.trial import covering, trial
from trainer.tools.checks import checks
from trainer.types import Prompt

TOML = HEADER + "max_message_bytes = 1000000\n[scorers.geneval]\n[scorers.ocr]\n[scorers.jpeg]\n"
STAR = {"class": "star", "count": 1}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with FakeEndpoint() as fake:
        judge = f'[scorers.imgedit]\noptions = {{ base_url = "{fake.base_url}" }}\n'
        with running(folder, TOML + judge, wait_for=("geneval", "ocr", "jpeg", "imgedit")) as found:
            yield found


def settings_for(url: str, scorer: str, table: dict[str, Any], **sampling: int) -> Settings:
    table["rewards"] = {"url": url, "train": [{"scorer": scorer}], "patience_s": 20.0}
    table["sampling"] |= sampling
    return parse(table)


def connected(settings: Settings) -> RewardService:
    service = connect(settings.rewards)
    service.check(settings.terms)
    return service


def geneval(text: str, tag: str = "counting", **clause: Any) -> Prompt:
    return Prompt(text, {"tag": tag, "include": [{**STAR, **clause}]}, "geneval", tag)


def ocr(target: str) -> Prompt:
    return Prompt(f'a sign "{target}"', {"target": target}, "ocr")


GOOD = [geneval(f"{n} stars", count=n) for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("scorer", "prompts", "says"),
    [
        ("geneval", [*GOOD, geneval("a penguin", **{"class": "penguin"})], "unknown 'penguin'"),
        ("geneval", [*GOOD, geneval("a Star", **{"class": "Star"})], "did you mean 'star'"),
        ("geneval", [*GOOD, geneval("a grey star", color="grey")], "color: unknown 'grey'"),
        ("geneval", [*GOOD, geneval("my star", tag="mine")], "tag: unknown 'mine'"),
        ("geneval", [Prompt("a star")], "needs a GenEval metadata row"),
        ("ocr", [ocr("STOP"), ocr("\u0421\u0422\u041e\u041f")], "cannot read: \u043e"),
    ],
)
def test_rows_that_the_server_refuses_are_named(
    server: Server, table: dict[str, Any], scorer: str, prompts: list[Prompt], says: str
) -> None:
    settings = settings_for(server.grpc_url, scorer, table)
    service = connected(settings)
    try:
        with pytest.raises(ConfigError) as caught:
            trial(service, settings, prompts)
        assert says in str(caught.value)
        assert repr(prompts[-1].text) in str(caught.value)
        trial(service, settings, [ocr("STOP")] if scorer == "ocr" else GOOD)
    finally:
        service.close()


@pytest.mark.parametrize(
    ("references", "spec", "says"),
    [
        (0, {"edit_type": "add"}, "needs `references`: the item has none"),
        (2, {"edit_type": "add"}, "imgedit is asked about 1 per item, got 2; send the picture"),
        (1, None, "needs metadata as `spec` with spec_kind 'metadata'"),
        (1, {"edit_type": "recolour"}, "metadata.edit_type: expected one of add, adjust"),
    ],
)
def test_a_judge_of_edits_refuses_what_it_cannot_judge(
    server: Server, table: dict[str, Any], tmp_path: Path, references: int, spec: Any, says: str
) -> None:
    for number in range(2):
        Image.new("RGB", (64, 64), "red").save(tmp_path / f"{number}.png")
    settings = settings_for(server.grpc_url, "imgedit", table)

    def prompt(text: str, references: int, spec: dict[str, str] | None) -> Prompt:
        row = {"prompt": text, "references": [f"{n}.png" for n in range(references)]}
        file = tmp_path / "row.jsonl"
        file.write_text(json.dumps(row | ({"spec": spec, "spec_kind": "metadata"} if spec else {})))
        return load_edit(file)[0] if references else Prompt(text, spec, "metadata")

    good = prompt("add a hat", 1, {"edit_type": "add"})
    prompts = [good, prompt("make it red", references, spec)]
    if spec is None or references != 1:
        prompts = prompts[::-1]  # the count, and what is missing, are the same in all of a run
    service = connected(settings)
    try:
        trial(service, settings, [good])
        with pytest.raises(ConfigError, match=re.escape(says)) as caught:
            trial(service, settings, prompts)
        assert "make it red" in str(caught.value)
    finally:
        service.close()


def test_a_picture_that_no_message_can_hold_is_refused_at_the_start(
    server: Server, table: dict[str, Any]
) -> None:
    settings = settings_for(server.grpc_url, "jpeg", table, resolution_px=1024)
    service = connected(settings)
    try:
        with pytest.raises(ConfigError, match=r"3\d* bytes.*max_message_bytes.*1024x1024 px"):
            trial(service, settings, GOOD)
    finally:
        service.close()


def test_the_dry_run_says_so_too(server: Server, table: dict[str, Any], tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"prompt": "a penguin", "tag": "counting", "include": [{"class": "penguin", "count": 1}]}'
    )
    table["task"] = {"name": "geneval", "train": str(rows), "test": str(rows), "overlap": "allow"}
    settings = settings_for(server.grpc_url, "geneval", table)
    found = {one.what: one for one in checks(settings, {}, gpus=1, gpu_gb=0.0)}
    assert found["rewards"].stops
    assert "unknown 'penguin'" in found["rewards"].text


def test_few_rows_have_everything_that_many_ask_for() -> None:
    prompts = [geneval(f"{c} {i}", color=c) for i in range(50) for c in ("red", "blue")]
    assert [prompt.text for prompt in covering(prompts)] == ["red 0", "blue 0"]
    edits = [
        Prompt(str(place), spec, "metadata")
        for place, spec in enumerate(
            [
                {"edit_type": "add"},
                {"edit_type": "add"},
                {"edit_type": "style"},
                {"requirement": "x"},
            ]
        )
    ]
    assert [prompt.text for prompt in covering(edits)] == ["0", "2", "3"]
    assert covering([ocr("STOP"), ocr("GO"), ocr("Caf\u00e9"), ocr("\u00e9")]) == [ocr("Caf\u00e9")]
