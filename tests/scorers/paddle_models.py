"""Model folders for PaddleOCR, made from the networks in RapidOCR's wheels, which are PP-OCR's."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

_SCALING = {
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "scale": 1 / 255,
    "order": "hwc",
}
_DECODE = {"DecodeImage": {"channel_first": False, "img_mode": "BGR"}}


def wheel_models(package: str) -> Path:
    """The models of an installed wheel, found without importing it."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"{package} is not installed"
    assert spec.origin is not None
    return Path(spec.origin).parent / "models"


def characters(model: Path) -> list[str]:
    """The alphabet that a recognition network carries in its metadata."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return session.get_modelmeta().custom_metadata_map["character"].split("\n")


def folders_3(folder: Path) -> tuple[Path, Path]:
    """Detection and recognition folders as PaddleOCR 3 reads them: ONNX and `inference.yml`."""
    models = wheel_models("rapidocr")
    recognizer = models / "PP-OCRv6_rec_small.onnx"
    detection = {
        "Global": {"model_name": "PP-OCRv6_small_det"},
        "PreProcess": {
            "transform_ops": [
                _DECODE,
                {"DetLabelEncode": None},
                {"DetResizeForTest": {"resize_long": 960}},
                {"NormalizeImage": _SCALING},
                {"ToCHWImage": None},
                {"KeepKeys": {"keep_keys": ["image", "shape", "polys", "ignore_tags"]}},
            ]
        },
        "PostProcess": {
            "name": "DBPostProcess",
            "thresh": 0.3,
            "box_thresh": 0.6,
            "max_candidates": 1000,
            "unclip_ratio": 1.5,
        },
    }
    recognition = {
        "Global": {"model_name": "PP-OCRv6_small_rec"},
        "PreProcess": {
            "transform_ops": [
                _DECODE,
                {"MultiLabelEncode": {"gtc_encode": "NRTRLabelEncode"}},
                {"RecResizeImg": {"image_shape": [3, 48, 320]}},
                {"KeepKeys": {"keep_keys": ["image"]}},
            ]
        },
        "PostProcess": {"name": "CTCLabelDecode", "character_dict": characters(recognizer)},
    }
    return (
        _folder_3(folder / "det", models / "PP-OCRv6_det_small.onnx", detection),
        _folder_3(folder / "rec", recognizer, recognition),
    )


def _folder_3(folder: Path, model: Path, description: dict[str, Any]) -> Path:
    import yaml

    folder.mkdir(parents=True)
    shutil.copy(model, folder / "inference.onnx")
    text = yaml.safe_dump(description, allow_unicode=True)
    (folder / "inference.yml").write_text(text, encoding="utf-8")
    return folder


def folders_2(folder: Path) -> tuple[Path, Path]:
    """Detection and recognition folders for PaddleOCR 2 on ONNX: network, and the characters."""
    models = wheel_models("rapidocr_onnxruntime")
    detector, recognizer = folder / "det", folder / "rec"
    for path, pattern in ((detector, "*det*.onnx"), (recognizer, "*rec*.onnx")):
        (model,) = models.glob(pattern)
        path.mkdir(parents=True)
        shutil.copy(model, path / "inference.onnx")
    alphabet = "\n".join(characters(recognizer / "inference.onnx"))
    (recognizer / "characters.txt").write_text(alphabet, encoding="utf-8")
    return detector, recognizer
