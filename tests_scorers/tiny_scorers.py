"""Every scorer on torch over tiny weights: the config's options, and the loaded scorers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tiny_checkpoints
import tiny_deqa
import tiny_qwen
from geneval_tiny import clip_network, confident_checkpoint, save_openai_archive
from preference_cases import REFERENCES

from reward_server.scorers import load_scorer_class
from reward_server.scorers.deqa import code_digest


def options(models: Path) -> dict[str, dict[str, Any]]:
    """The config's options of every scorer on torch, over tiny weights written below `models`."""
    tiny_checkpoints.models(models)
    (models / "clip").mkdir()
    found: dict[str, dict[str, Any]] = {name: {} for name in REFERENCES}
    for name in ("hpsv2", "hpsv2.1"):
        found[name]["architecture"] = str(models / name / f"{tiny_checkpoints.TINY_HPS}.json")
    for write in (tiny_qwen.editreward, tiny_qwen.hpsv3, tiny_qwen.videoalign):
        found[write.__name__] = {"weights": str(write(models / write.__name__))}
    deqa = tiny_deqa.write(models / "deqa")
    found["deqa"] = {"weights": str(deqa), "trust_remote_code": True}
    found["deqa"]["code_sha256"] = code_digest(deqa)
    found["geneval"] = {
        "detector": "mask2former",
        "weights": str(confident_checkpoint(models)),
        "clip_weights": str(save_openai_archive(clip_network(), models / "clip" / "ViT-L-14.pt")),
    }
    return found


def loaded(name: str, own: dict[str, Any]) -> Any:
    """A scorer on the CPU, ready to score; `REWARD_MODELS_DIR` names the folder of `options`."""
    scorer: Any = load_scorer_class(name)(**own)
    scorer.load("cpu")
    return scorer
