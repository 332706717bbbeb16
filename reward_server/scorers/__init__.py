"""The scorers this server ships, and how any scorer class is found by name.

`SCORERS` is the only place where a built-in scorer is announced. Third parties need no entry: a
`module:Class` path in the server's config does the same.
"""

from __future__ import annotations

import difflib
import importlib
from types import ModuleType

from reward_server.scorers.base import Scorer

SCORERS: dict[str, str] = {
    "aesthetic": "reward_server.scorers.aesthetic:AestheticScorer",
    "clipscore": "reward_server.scorers.clipscore:ClipScorer",
    "deqa": "reward_server.scorers.deqa:DeqaScorer",
    "dino_similarity": "reward_server.scorers.dino_similarity:DinoSimilarityScorer",
    "edit_r1": "reward_server.scorers.judges.scorer:EditR1",
    "editreward": "reward_server.scorers.qwen_vl.editreward:EditRewardScorer",
    "editscore": "reward_server.scorers.judges.scorer:EditScore",
    "geneval": "reward_server.scorers.geneval.scorer:GenEvalScorer",
    "hpsv2": "reward_server.scorers.hpsv2:HpsV2Scorer",
    "hpsv2.1": "reward_server.scorers.hpsv2:HpsV21Scorer",
    "hpsv3": "reward_server.scorers.qwen_vl.hpsv3:HpsV3Scorer",
    "image_similarity": "reward_server.scorers.image_similarity:ImageSimilarityScorer",
    "imagereward": "reward_server.scorers.imagereward:ImageRewardScorer",
    "imgedit": "reward_server.scorers.judges.scorer:ImgEdit",
    "jpeg": "reward_server.scorers.jpeg:JpegScorer",
    "ocr": "reward_server.scorers.ocr.scorer:OcrScorer",
    "pickscore": "reward_server.scorers.pickscore:PickScoreScorer",
    "qwenvl": "reward_server.scorers.judges.scorer:QwenVL",
    "shapes_edit": "reward_server.scorers.shapes_edit:ShapesEditScorer",
    "shapes_quality": "reward_server.scorers.shapes_quality:ShapesQualityScorer",
    "unifiedreward": "reward_server.scorers.judges.scorer:UnifiedReward",
    "unifiedreward_edit": "reward_server.scorers.judges.scorer:UnifiedRewardEdit",
    "unifiedreward2": "reward_server.scorers.judges.scorer:UnifiedReward2",
    "videoalign": "reward_server.scorers.qwen_vl.videoalign:VideoAlignScorer",
    "viescore": "reward_server.scorers.judges.scorer:VieScore",
    "vqa": "reward_server.scorers.judges.vqa:Vqa",
    "yes_no": "reward_server.scorers.judges.scorer:YesNo",
}


def load_scorer_class(name_or_path: str) -> type[Scorer]:
    """Find the class of a scorer; imports its module, constructs nothing.

    Raises:
        LookupError: no such name (the nearest one is named), no such module or class, or an object
            that is not a scorer. One line that says what to do.
    """
    path = SCORERS.get(name_or_path, name_or_path)
    module_name, colon, class_name = path.partition(":")
    if not colon or not module_name or not class_name:
        near = difflib.get_close_matches(name_or_path, SCORERS, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise LookupError(
            f"unknown scorer {name_or_path!r}: {hint}known are {', '.join(SCORERS)}; "
            "a scorer of your own is named 'package.module:Class'"
        )
    module = _import(module_name, name_or_path)
    found = getattr(module, class_name, None)
    if found is None:
        names = [n for n, value in vars(module).items() if isinstance(value, type)]
        near = difflib.get_close_matches(class_name, names, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise LookupError(f"scorer {name_or_path!r}: {module_name} has no {class_name!r}{hint}")
    missing = [
        attribute
        for attribute in ("spec", "load", "fingerprint", "self_test", "score")
        if not hasattr(found, attribute) and attribute not in getattr(found, "__annotations__", {})
    ]
    if not isinstance(found, type) or missing:
        lacks = ", ".join(missing) or "it is not a class"
        raise LookupError(
            f"scorer {name_or_path!r}: not a Scorer ({lacks}); see reward_server/scorers/base.py"
        )
    return found


def _import(module_name: str, asked: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and not module_name.startswith(error.name):
            raise LookupError(
                f"scorer {asked!r}: {module_name} needs the package {error.name!r}, which this "
                "Python does not have; install the scorer's extra or set its `python`"
            ) from error
        raise LookupError(f"scorer {asked!r}: no module {error.name!r} on this Python") from error
