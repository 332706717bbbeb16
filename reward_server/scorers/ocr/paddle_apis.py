"""How to drive PaddleOCR 3 and PaddleOCR 2: build one, read one picture, find its model folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reward_server.scorers.base import UInt8Image
from reward_server.scorers.ocr.engine import MIN_CONFIDENCE, EngineOptions, Line

# PaddleOCR 2's default, at which the published reward was computed; 3 would go up to 4000 px.
MAX_SIDE_PX = 960


@dataclass(frozen=True, slots=True)
class Api:
    """One major version of PaddleOCR."""

    make: Callable[[EngineOptions], Any]
    read: Callable[[Any, UInt8Image], list[Line]]
    folders: Callable[[Any], Sequence[Path]]
    characters: Callable[[Any], Sequence[str]]


def _lines(found: Iterable[tuple[str, float, Any]]) -> list[Line]:
    return [
        Line(str(text), float(score), tuple((float(x), float(y)) for x, y in box))
        for text, score, box in found
        if str(text).strip() and score >= MIN_CONFIDENCE
    ]


def _session_3(options: EngineOptions) -> Any:
    from paddleocr import PaddleOCR  # pyright: ignore[reportMissingImports]

    settings: dict[str, Any] = {
        "use_doc_orientation_classify": False,
        "use_doc_unwarping": False,
        "use_textline_orientation": False,
        "text_det_limit_type": "max",
        "text_det_limit_side_len": MAX_SIDE_PX,
        "text_rec_score_thresh": MIN_CONFIDENCE,
        # One line at a time: see RapidEngine.
        "text_recognition_batch_size": 1,
        "device": "cpu",
    }
    if options.detector_dir:
        for role, folder in (
            ("detection", options.detector_dir),
            ("recognition", options.recognizer_dir),
        ):
            path = Path(folder).expanduser()
            settings[f"text_{role}_model_name"] = _model_name(path)
            settings[f"text_{role}_model_dir"] = str(path)
    else:
        settings["lang"] = options.lang
    if _on_onnxruntime(options):
        settings["engine"] = "onnxruntime"
        threads = {"intra_op_num_threads": options.threads, "inter_op_num_threads": 1}
        settings["engine_config"] = {"session_options": threads}
    else:
        settings["cpu_threads"] = options.threads
    return PaddleOCR(**settings)


def _on_onnxruntime(options: EngineOptions) -> bool:
    if not options.detector_dir:
        return True
    return (Path(options.detector_dir).expanduser() / "inference.onnx").is_file()


def _model_name(folder: Path) -> str:
    """The name that PaddleOCR 3 wants beside a folder, from the folder's own `inference.yml`."""
    import yaml

    file = folder / "inference.yml"
    if not file.is_file():
        raise FileNotFoundError(f"{file} not found: a PaddleOCR 3 model folder has one")
    name = (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("Global", {})
    if "model_name" not in name:
        raise FileNotFoundError(f"{file} has no Global.model_name")
    return str(name["model_name"])


def _folders_3(session: Any) -> list[Path]:
    pipeline = session.paddlex_pipeline
    return [Path(pipeline.text_det_model.model_dir), Path(pipeline.text_rec_model.model_dir)]


def _characters_3(session: Any) -> list[str]:
    import yaml

    file = _folders_3(session)[1] / "inference.yml"
    if not file.is_file():
        return []
    described = yaml.safe_load(file.read_text(encoding="utf-8"))
    return [str(entry) for entry in described.get("PostProcess", {}).get("character_dict") or ()]


def _read_3(session: Any, image: UInt8Image) -> list[Line]:
    (found,) = session.predict(image)
    return _lines(zip(found["rec_texts"], found["rec_scores"], found["rec_polys"], strict=True))


def _session_2(options: EngineOptions) -> Any:
    from paddleocr import PaddleOCR  # pyright: ignore[reportMissingImports]

    settings: dict[str, Any] = {
        "use_angle_cls": False,
        "use_gpu": False,
        "show_log": False,
        "lang": options.lang,
        "det_limit_side_len": MAX_SIDE_PX,
        "drop_score": MIN_CONFIDENCE,
        "rec_batch_num": 1,
        "cpu_threads": options.threads,
    }
    if options.detector_dir:
        detector, recognizer = (
            Path(folder).expanduser() for folder in (options.detector_dir, options.recognizer_dir)
        )
        is_onnx = (detector / "inference.onnx").is_file()
        settings["use_onnx"] = is_onnx
        # Never loaded, but fetched where it is missing; a folder with a network satisfies it.
        settings["cls_model_dir"] = str(detector)
        name = "inference.onnx" if is_onnx else ""
        settings["det_model_dir"] = str(detector / name)
        settings["rec_model_dir"] = str(recognizer / name)
        keys = sorted(recognizer.glob("*.txt"))
        if is_onnx and len(keys) != 1:
            raise FileNotFoundError(
                f"{recognizer}: expected one *.txt with the characters of the network,"
                f" found {len(keys)}"
            )
        if keys:
            settings["rec_char_dict_path"] = str(keys[0])
    return PaddleOCR(**settings)


def _folders_2(session: Any) -> list[Path]:
    paths = [Path(session.args.det_model_dir), Path(session.args.rec_model_dir)]
    return [path.parent if path.is_file() else path for path in paths]


def _characters_2(session: Any) -> list[str]:
    return list(session.text_recognizer.postprocess_op.character)


def _read_2(session: Any, image: UInt8Image) -> list[Line]:
    (found,) = session.ocr(image, cls=False)
    return _lines((text, score, box) for box, (text, score) in found or ())


API_3 = Api(_session_3, _read_3, _folders_3, _characters_3)
API_2 = Api(_session_2, _read_2, _folders_2, _characters_2)
