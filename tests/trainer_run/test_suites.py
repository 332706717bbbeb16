"""Suites on a tiny pipeline: drawn once, scored again, nothing lost, compared; and bad input."""

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import stamina
from fake_judge import Behaviour, FakeEndpoint
from PIL import Image as PilImage

from prompt_sets.paraphrase import wordings
from reward_client import Code, Item, ItemError, Unavailable
from reward_client.codec import decode
from tests.server.server_process import running
from tests.trainer_run.fake_service import service_with
from tests.trainer_run.test_cli import call, to_toml
from tests.weights.file_server import FileServer, Served, serving
from trainer.config.load import parse
from trainer.data import TASKS
from trainer.errors import ConfigError, DataError, ServiceLost
from trainer.suites import manifest, run
from trainer.suites.cases import Case, load
from trainer.suites.compare import compare
from trainer.suites.page import write_page
from trainer.suites.result import asked, beside
from trainer.suites.run import Plan, benchmark
from trainer.suites.scoring import item_of
from trainer.tools.artifacts import Choice

GENEVAL2 = [
    {"prompt": "a star", "atom_count": 3, "skills": ["object"],
     "vqa_list": [["Is there a star?", "Yes"]]},
    {"prompt": "two hearts", "atom_count": 3, "skills": ["count", "object"],
     "vqa_list": [["How many hearts are in the image?", "two"], ["Are there any hearts?", "Yes"]]},
    {"prompt": "a red cross", "atom_count": 4, "skills": ["attribute"],
     "vqa_list": [["Is the cross red?", "Yes"]]},
]  # fmt: skip


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


@pytest.fixture(scope="module")
def files() -> Iterator[FileServer]:
    with serving() as server:
        server.files["/geneval2_data.jsonl"] = Served(jsonl(GENEVAL2))
        yield server


def suite_table() -> dict[str, Any]:
    return manifest.load("geneval2").model_dump(mode="json")


def suite(folder: Path, files: FileServer, **changes: Any) -> str:
    """A manifest like that of geneval2, of three prompts; its file."""
    table = suite_table()
    sha = hashlib.sha256(files.files["/geneval2_data.jsonl"].content).hexdigest()
    table["prompts"] |= {"rows": 3, "files": [
        {"path": "g2/geneval2_data.jsonl", "url": files.url("/geneval2_data.jsonl"), "sha256": sha}
    ]}  # fmt: skip
    table["images"] = {"per_prompt": 2, "seed": 1}
    table["published"] = []
    for section, values in changes.items():
        table[section] = {**table[section], **values} if isinstance(values, dict) else values
    path = folder / "small.toml"
    path.write_text(as_toml(table), encoding="utf-8")
    return str(path)


def as_toml(table: dict[str, Any]) -> str:
    plain = {k: v for k, v in table.items() if not isinstance(v, dict)}
    nested = {k: v for k, v in table.items() if isinstance(v, dict)}
    return to_toml({"x": plain}).removeprefix("[x]\n") + to_toml(nested)


@pytest.fixture
def choice(table: dict[str, Any], tmp_path: Path) -> Choice:
    table["rewards"]["url"] = "fake://"
    file = tmp_path / "preset.toml"
    file.write_text(to_toml(table), encoding="utf-8")
    return Choice(preset=str(file), overrides=["rewards.patience_s=5"])


def test_geneval2_end_to_end_on_a_judge_and_again_without_drawing(
    tmp_path: Path,
    pipeline: Path,
    choice: Choice,
    files: FileServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Prompts from a server, pictures of the pipeline, the real `vqa` on an endpoint, a page."""
    name, out, said = suite(tmp_path, files), tmp_path / "out", []
    with FakeEndpoint(Behaviour(models=("Qwen3-VL-8B-Instruct",))) as judge:
        config = f'[scorers.vqa]\noptions = {{ base_url = "{judge.base_url}" }}\n'
        with running(tmp_path, config, wait_for=("vqa",)) as server:
            environment = {"REWARD_URL": server.grpc_url}

            def again(only: Any = "", limit: int = 0) -> Any:
                plan = Plan([name], out, tmp_path / "data", limit, only)
                return benchmark(str(pipeline), choice, plan, environment, said.append)

            assert again("draw", limit=2) is None
            assert len(list(out.rglob("*.png"))) == 4
            first = again()
            calls = judge.seen.calls
            monkeypatch.setattr(run, "draw_missing", None)  # nothing is drawn any more
            assert again("score") == first
            written = json.loads((out / "benchmark.json").read_text(encoding="utf-8"))
            monkeypatch.setenv("REWARD_URL", server.grpc_url)
            arguments = ["--preset", choice.preset, "--suite", name, "--only", "score"]
            arguments += ["--out", str(out), "--data", str(tmp_path / "data")]
            arguments += ["--set", "rewards.patience_s=5"]
            assert call(monkeypatch, "benchmark", str(pipeline), *arguments) == 0
            assert judge.seen.calls == calls
            printed = capsys.readouterr().out
            # Other words for the judge, who gives no probabilities: the same pictures, no number.
            suite(tmp_path, files, judge={"template": "{question} fault:no-logprobs"})
            assert call(monkeypatch, "benchmark", str(pipeline), *arguments) == 3
            error = capsys.readouterr().err.splitlines()[-1]
            assert "no image has a score, mostly: vqa: INTERNAL: vqa: no log-prob" in error
    none = json.loads((out / "benchmark.json").read_text())["suites"]["small"]
    assert none["measures"]["GM"]["mean"] is None
    assert (none["measures"]["GM"]["worst"], none["measures"]["GM"]["best"]) == (0.0, 100.0)
    assert written == json.loads(json.dumps(first))
    assert "GM" in printed
    assert f"page: {(out / 'benchmark.html').resolve()}" in printed
    assert "CC BY-NC 4.0: fetched, not redistributed" in said[0]
    found = first["suites"]["small"]
    assert (found["label"], found["why"]) == ("official", [])
    assert found["scorers"]["vqa"][0]
    assert found["judge"]["models"] == ["Qwen3-VL-8B-Instruct"]
    assert found["judge"]["decoding"] == {"temperature": 0}
    pictures = found["pictures"]
    assert [len(p["scores"]["vqa"]["details"]["answers"]) for p in pictures] == [1, 1, 2, 2, 1, 1]
    for row in pictures:
        assert hashlib.sha256((out / row["file"]).read_bytes()).hexdigest() == row["sha256"]
    # By hand from the raw answers: GM per image, mean of the images, mean of the prompts.
    values = [[a["low"] for a in row["scores"]["vqa"]["details"]["answers"]] for row in pictures]
    gm = [100 * (v[0] if len(v) == 1 else (v[0] * v[1]) ** 0.5) for v in values]
    measured = found["measures"]["GM"]
    assert measured["mean"] == pytest.approx(sum(gm) / 6, rel=1e-6)
    assert measured["upper"]["mean"] > measured["mean"]  # of "two", 20 % is not shown
    assert measured["groups"]["4"]["mean"] == pytest.approx((gm[4] + gm[5]) / 2, rel=1e-6)
    assert found["measures"]["AM by skill"]["groups"]["count"]["mean"] == pytest.approx(70.0)
    assert (measured["unanswered"], measured["images"]) == (0, 6)
    text = write_page(first, out).read_text(encoding="utf-8")
    assert "Official:" in text
    assert 'src="http' not in text  # one file, without assets elsewhere


def brightness(scorer: str, item: Item) -> Any:
    """Answers of a `vqa` that reads the prompt: the item of a prompt with `two` fails."""
    if "two" in item.prompt:
        return ItemError(Code.INTERNAL, "no log-probabilities in the answer")
    questions = (item.spec or {})["questions"]
    answers = [{"id": q["id"], "low": 0.5, "high": 0.5, "said": "Yes"} for q in questions]
    return 0.5, {"gm": 0.5}, {"model": "other-judge", "answers": answers}


def drawn(
    choice: Choice, pipeline: Path, name: str, out: Path, score: Any = brightness, **plan: Any
) -> Any:
    wanted = Plan([name], out, out.parent / "data", **plan)
    opener = service_with(score, scorers=("vqa",))
    return benchmark(str(pipeline), choice, wanted, {}, lambda _: None, open_service=opener)


def test_what_has_no_score_is_counted_bounded_and_asked_again(
    tmp_path: Path, pipeline: Path, choice: Choice, files: FileServer
) -> None:
    measures = [{**suite_table()["measures"][0], "pins": ["golden"]}]
    name, out = suite(tmp_path, files, measures=measures), tmp_path / "out"
    found = drawn(choice, pipeline, name, out)["suites"]["small"]
    assert "vqa is another build than the suite pins" in found["why"]
    row = found["measures"]["GM"]
    assert row["mean"] == pytest.approx(50.0)  # of those that have one
    assert (row["unanswered"], row["images"]) == (2, 6)
    assert (row["worst"], row["best"]) == pytest.approx((100 / 3, 200 / 3))
    assert found["label"] == "not official"
    assert any("2 of 6 images without a score" in why for why in found["why"])
    assert any("the judge is other-judge, not Qwen3-VL-8B-Instruct" in why for why in found["why"])
    asked_for: list[str] = []

    def mended(scorer: str, item: Item) -> Any:
        asked_for.append(item.prompt)
        return brightness(scorer, Item(item.id, "a", item.images, (), item.spec, "metadata"))

    found = drawn(choice, pipeline, name, out, mended)["suites"]["small"]
    assert asked_for == ["two hearts"] * 2
    assert found["measures"]["GM"]["unanswered"] == 0
    # Another build of the scorer is asked about everything again.
    opener = service_with(mended, "new build", scorers=("vqa",))
    asked_for.clear()
    plan = Plan([name], out, tmp_path / "data")
    benchmark(str(pipeline), choice, plan, {}, lambda _: None, open_service=opener)
    assert len(asked_for) == 6


def test_a_service_that_goes_away_loses_nothing(
    tmp_path: Path,
    pipeline: Path,
    choice: Choice,
    files: FileServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name, out = suite(tmp_path, files), tmp_path / "out"
    monkeypatch.setattr("trainer.suites.scoring.CHUNK", 2)
    monkeypatch.setattr("trainer.suites.scoring.IN_FLIGHT", 1)
    asked_for: list[str] = []

    def leaving(scorer: str, item: Item) -> Any:
        asked_for.append(item.prompt)
        if len(asked_for) > 2:
            raise Unavailable("gone")
        return brightness(scorer, item)

    with stamina.set_testing(True, attempts=1), pytest.raises(ServiceLost, match="same command"):
        drawn(choice, pipeline, name, out, leaving)
    with (out / "small" / "scores.jsonl").open("a") as lines:
        lines.write('{"prompt": 1, "ima')  # as a kill leaves it
    asked_for.clear()
    drawn(choice, pipeline, name, out, lambda s, i: asked_for.append(i.prompt) or brightness(s, i))
    assert asked_for == ["two hearts"] * 2 + ["a red cross"] * 2


def test_a_judge_of_edits_gets_the_source_in_the_size_of_the_picture(tmp_path: Path) -> None:
    for name, side in (("source", 32), ("edit", 16)):
        PilImage.new("RGB", (side, side), "red").save(tmp_path / f"{name}.png")
    (tmp_path / "edits.jsonl").write_text(
        '{"prompt": "make it blue", "references": ["source.png"]}'
    )
    (prompt,) = TASKS["edit"](tmp_path / "edits.jsonl", print)
    item = item_of(tmp_path / "edit.png", Case(prompt), (0, 1))
    assert decode(item.images[0]).shape == (16, 16, 3)
    assert [decode(one).shape for one in item.references] == [(16, 16, 3)]


def test_two_benchmarks_are_compared_in_pairs_and_unlike_ones_refused(
    tmp_path: Path, pipeline: Path, choice: Choice, files: FileServer
) -> None:
    def better(scorer: str, item: Item) -> Any:
        questions = (item.spec or {})["questions"]
        answers = [{"id": q["id"], "low": 0.75, "high": 0.75, "said": ""} for q in questions]
        return 0.75, {}, {"model": "other-judge", "answers": answers}

    name = suite(tmp_path, files)
    places = [tmp_path / out / "benchmark.json" for out in ("one", "two")]
    for place, score in zip(places, (brightness, better), strict=True):
        drawn(choice, pipeline, name, place.parent, score)
    table = compare(places, force=False)
    assert "+25.000 (+25.000 to +25.000) paired" in str(next(iter(table.columns[-1].cells)))
    document = json.loads(places[1].read_text())
    document["suites"]["small"]["manifest_sha256"] = "other"
    document["suites"]["small"]["manifest"]["version"] = 2
    places[1].write_text(json.dumps(document))
    with pytest.raises(ConfigError, match=r"small: the manifests differ \(versions 1 and 2\)"):
        compare(places, force=False)
    assert "manifests differ" in str(compare(places, force=True).caption)
    places[1].write_text(json.dumps({**document, "format": 7}))
    with pytest.raises(ConfigError, match="is of format 7, this version reads 1"):
        compare(places, force=False)


def test_pictures_of_another_model_or_other_settings_are_not_mixed(
    tmp_path: Path, pipeline: Path, choice: Choice, files: FileServer
) -> None:
    name, out = suite(tmp_path, files), tmp_path / "out"
    drawn(choice, pipeline, name, out, only="draw", limit=1)
    other = Choice(preset=choice.preset, overrides=["sampling.eval_num_steps=3"])
    with pytest.raises(ConfigError, match=r"pictures made otherwise \(sampling\): name another"):
        drawn(other, pipeline, name, out)
    with pytest.raises(ConfigError, match="lacks the pictures of 2 of 3 prompts"):
        drawn(choice, pipeline, name, out, only="score")


def test_ctrl_c_keeps_what_is_drawn(
    tmp_path: Path,
    pipeline: Path,
    choice: Choice,
    files: FileServer,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    name, out = suite(tmp_path, files, images={"per_prompt": 300}), tmp_path / "out"

    def drawn() -> list[Path]:
        """Pictures under their final names: one that is being written has a dot in front."""
        return [path for path in out.rglob("*.png") if not path.name.startswith(".")]

    def interrupt() -> None:
        while not drawn():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    # A shell starts jobs in the background with SIGINT ignored, and Python leaves it so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    watcher = threading.Thread(target=interrupt, daemon=True)
    watcher.start()
    arguments = ["--preset", choice.preset, "--suite", name, "--only", "draw", "--out", str(out)]
    arguments += ["--data", str(tmp_path / "data")]
    try:
        assert call(monkeypatch, "benchmark", str(pipeline), *arguments) == 130
    finally:
        watcher.join()
        signal.signal(signal.SIGINT, before)
    assert "stopped: the same command continues" in capsys.readouterr().err
    assert 0 < len(drawn()) < 900
    for path in drawn():
        PilImage.open(path).verify()


def test_prompts_that_are_not_those_of_the_manifest(tmp_path: Path, files: FileServer) -> None:
    one = manifest.load(suite(tmp_path, files))
    run.fetch([one], tmp_path, print)
    place = tmp_path / "g2" / "geneval2_data.jsonl"
    assert [case.prompt.text for case in load(one, tmp_path, print)] == [
        row["prompt"] for row in GENEVAL2
    ]
    place.write_bytes(place.read_bytes().replace(b"star", b"STAR"))
    with pytest.raises(DataError, match="is not the file of the manifest") as caught:
        load(one, tmp_path, print)
    assert "\n" not in str(caught.value)
    more = manifest.load(suite(tmp_path, files, prompts={"rows": 4}))
    place.unlink()
    run.fetch([more], tmp_path, print)
    with pytest.raises(DataError, match="3 prompts instead of 4"):
        load(more, tmp_path, print)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["benchmark"], "name a model and a suite"),
        (["benchmark", "runs/mine"], "name a model and a suite"),
        (["benchmark", "runs/mine", "--suite", "genevel2"], "did you mean 'geneval2'"),
        (["benchmark", "runs/mine", "--suite", "vbench"], "suite vbench is not supported"),
        (["benchmark", "/nowhere", "--suite", "mini_geneval"], "holds no run"),
        (["benchmark", "runs/mine", "--suite", "mini_geneval", "--only", "x"], "draw or score"),
        (["compare", "a.json"], "name two files"),
        (["compare", "a.json", "b.json"], "a.json is no benchmark"),
    ],
)
def test_user_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert call(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_every_suite_is_listed_pinned_and_whole(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, "benchmark", "--list") == 0
    listed = capsys.readouterr().out
    for name, reason in manifest.unsupported().items():
        assert f"{name:16} {reason}" in listed
    for name in manifest.names():
        one = manifest.load(name)
        assert one.what in listed
        assert one.prompts.licence in listed
        for file in one.prompts.files:
            assert len(file.sha256) == 64 or len(file.git_blob) == 40
            assert "/main/" not in file.url
        assert {row.measure for row in one.published} <= {m.name for m in one.measures}
        weights = one.measures[0].group_weights.values()
        assert not weights or sum(weights) == pytest.approx(1.0)


def test_a_manifest_of_another_format_or_with_a_typo(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("format = 2\n")
    with pytest.raises(ConfigError, match=r"mine\.toml is a manifest of format 2, this version"):
        manifest.load(str(file))
    table = manifest.load("mini_geneval").model_dump(mode="json")
    with pytest.raises(ConfigError, match=r"mine: measures\.0\.reducer: extra inputs"):
        manifest.parse({**table, "measures": [{**table["measures"][0], "reducer": 1}]}, "mine")
    with pytest.raises(ConfigError, match=r"no published set has 'nowhere\.txt'"):
        manifest.parse({**table, "prompts": {"files": ["nowhere.txt"]}}, "mine")


def test_published_rows_say_how_they_differ_instead_of_a_difference(table: dict[str, Any]) -> None:
    rows = manifest.load("geneval2").published
    table["model"]["path"] = rows[0].path
    table["sampling"] |= {"eval_num_steps": 28, "guidance_scale": 7.0, "resolution_px": 1024}
    settings = parse(table)
    found = {"mean": 21.0}
    same = beside(rows[0], found, settings, official=True)
    assert (same["differs"], same["difference"]) == ("", pytest.approx(0.58))
    other = beside(rows[1], found, settings, official=True)
    assert other["difference"] is None
    assert "steps 28, not 10" in other["differs"]
    assert beside(rows[0], found, settings, official=False)["difference"] is None
    assert beside(rows[-1], found, settings, official=True)["differs"] == "another model"


def geneval_row(prompt: str, *include: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": f"a photo of {prompt}", "include": list(include)}


@pytest.mark.parametrize(
    ("row", "bare", "definite", "turned"),
    [
        (geneval_row("a red star", {}), "a red star", "the red star", "the red star"),
        (geneval_row("two stars", {}), "two stars", "the two stars", "the two stars"),
        (
            geneval_row("a red star and an apple", {}, {}),
            "a red star and an apple", "the red star and the apple", "an apple and a red star",
        ),
        (
            geneval_row("a dog right of a bench", {}, {"position": ["right of", 0]}),
            "a dog right of a bench", "the dog right of the bench", "a bench left of a dog",
        ),
    ],
)  # fmt: skip
def test_scenes_in_other_words(row: dict[str, Any], bare: str, definite: str, turned: str) -> None:
    found = wordings(row)
    one = len(row["include"]) == 1
    assert found == {
        "original": row["prompt"],
        "bare": bare,
        "definite": f"a photo of {definite}",
        "turned": turned if one else f"a photo of {turned}",
    }


def test_all_words_of_the_paraphrases_are_the_grammars_own() -> None:
    from miniature.text import build_tokenizer

    tokenizer = build_tokenizer()
    cases = load(manifest.load("mini_paraphrase"), Path("."), print)
    for case in cases:
        assert len(tokenizer.tokenize(case.prompt.text)) == len(case.prompt.text.split())
    assert {case.prompt.group for case in cases} == {"original", "bare", "definite", "turned"}
    assert len(run.chosen(cases, 6)) == 24  # scenes with all their wordings


CSV = {
    "dpg": 'item_id,text,proposition_id,dependency,category_broad,question_natural_language\n'
           'p1,a cat,1,0,entity,Is there a cat?\np1,a cat,2,1,attribute,Is it red?\n',
    "unigenbench": 'index,prompt_en,sub_dims_en\n0,a cat,"{""Testpoints"": [""Style"", '
           '""Attribute - Color""], ""Testpoint Description"": [""ink"", ""red""]}"\n',
    "oneig_text": ",id,prompt_en,text_content\n0,000,a sign,\"['STOP here']\"\n",
    "oneig_alignment": "category,id,prompt_en\nPortrait,000,a man\n",
    "longtext": json.dumps({"prompt": "a sign", "text": ["STOP, now"], "category": "sign"}) + "\n",
    "wise_verified": json.dumps([{"Prompt": "a cake", "Explanation": "round", "prompt_id": 500}]),
}  # fmt: skip
WISE = '''def build_evaluation_messages(prompt_data, image_base64):
    return [{"role": "system", "content": [{"type": "text", "text": "Be strict."}]},
            {"role": "user", "content": [{"type": "text", "text": f"""P: {prompt_data['Prompt']}
E: {prompt_data['Explanation']}"""}]}]
'''
PORTRAIT = {"000": {"question": json.dumps({"1": "Is it a man?", "2": "Is he old?"}),
                    "dependency": json.dumps({"1": [0], "2": [1]})}}  # fmt: skip


def adapted(folder: Path, name: str, *more: tuple[str, str], **changes: Any) -> Case:
    ending = {"longtext": "jsonl", "wise_verified": "json"}.get(name, "csv")
    contents = [(f"prompts.{ending}", CSV[name]), *more]
    for file, text in contents:
        (folder / file).write_text(text, encoding="utf-8")
    known = {"dpg": "dpg_vlm"}.get(name, name)
    table = manifest.load(known).model_dump(mode="json")
    listed = [
        {"path": file, "sha256": hashlib.sha256(text.encode()).hexdigest()}
        for file, text in contents
    ]
    table["prompts"] |= {"rows": 1, "files": listed, **changes}
    (case,) = load(manifest.parse(table, "test"), folder, print)
    return case


def test_adapters_read_the_published_formats(tmp_path: Path) -> None:
    case = adapted(tmp_path, "dpg")
    assert [(a.id, a.parents, a.group) for a in asked(case)] == [
        ("1", (), "entity"), ("2", ("1",), "attribute"),
    ]  # fmt: skip
    assert case.questions[0]["text"] == "Is there a cat? Answer Yes or No only."
    case = adapted(tmp_path, "unigenbench")
    assert [(a.id, a.group) for a in asked(case)] == [
        ("points.0", "Style"), ("points.1", "Attribute"),
    ]  # fmt: skip
    text = case.questions[0]["text"]
    assert "is: 「a cat」" in text
    assert "\nAttribute - Color: red\n」" in text
    assert "{" not in text
    (one,) = asked(adapted(tmp_path, "longtext"))
    assert (one.target, one.weight) == ("STOP, now", 2)
    (one,) = asked(adapted(tmp_path, "oneig_text"))
    assert one.weight == 2
    case = adapted(tmp_path, "wise_verified", ("vllm_eval.py", WISE))
    assert case.prompt.group == "time"
    assert (case.prompt.spec or {})["system"] == "Be strict."
    assert case.questions[0]["text"] == "P: a cake\nE: round"
    case = adapted(
        tmp_path, "oneig_alignment", ("human.json", json.dumps(PORTRAIT)),
        options={"categories": ["Portrait"]},
    )  # fmt: skip
    assert [(a.id, a.parents) for a in asked(case)] == [("1", ()), ("2", ("1",))]
    with pytest.raises(DataError, match="not as the adapter wise_verified expects it"):
        adapted(tmp_path, "wise_verified", ("vllm_eval.py", "pass\n"))
