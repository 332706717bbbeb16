"""Write `tests/golden/mask2former/`: what mmdet itself finds with a tiny network of random weights.

The tests load the same checkpoint through our conversion and compare, without mmdet. To run this
again, make an environment of its own (no compiled operators, no GPU):

    python -m venv .venv-mmdet
    .venv-mmdet/bin/pip install "setuptools<81" torch==2.13.0 torchvision==0.28.0 mmdet==3.3.0 \
        mmengine==0.10.7 mmcv-lite==2.1.0 transformers==5.23.0 msgspec scipy
    .venv-mmdet/bin/python scripts/make_mask2former_golden.py           # writes the files
    .venv-mmdet/bin/python scripts/make_mask2former_golden.py --full    # one comparison, full size

The checkpoint has the layout and the names of mmdet 2.x, and an mmengine object in it, as training
writes them. Every picture goes through mmdet 3.3's own test pipeline ("mmdet3") and through the one
of mmdet 2.28 in terms of mmdet 3.3 ("mmdet2": uint8 until after the resize, grey padding before
normalisation).
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.machinery
import importlib.util
import re
import sys
import time
import types
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from reward_server.scorers.torch_tools import prepare_torchvision  # noqa: E402 (path first)

OUTPUT = ROOT / "tests" / "golden" / "mask2former"
CONFIG = "mask2former/mask2former_swin-s-p4-w7-224_8xb2-lsj-50e_coco.py"
SIZES = ((97, 131), (160, 160), (141, 64))
# Names of mmdet 3.x -> those of 2.x, where layers number their operations in order: the query
# decoder's are cross attention, self attention, ffn.
TO_MMDET_2 = (
    (r"(pixel_decoder\.encoder\.layers\.\d+)\.self_attn\.", r"\1.attentions.0."),
    (r"(transformer_decoder\.layers\.\d+)\.cross_attn\.", r"\1.attentions.0."),
    (r"(transformer_decoder\.layers\.\d+)\.self_attn\.", r"\1.attentions.1."),
    (r"(decoder\S*\.layers\.\d+)\.ffn\.", r"\1.ffns.0."),
)


def stub_compiled_operators() -> None:
    """Let mmdet run on mmcv-lite: deformable attention has a plain PyTorch version for CPUs."""

    class Missing(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)

            def missing(*_: object, **__: object) -> None:
                raise NotImplementedError(f"mmcv._ext.{name} is compiled and not there")

            return missing

    if importlib.util.find_spec("mmcv._ext") is None:
        module = Missing("mmcv._ext")
        module.__spec__ = importlib.machinery.ModuleSpec("mmcv._ext", None)
        sys.modules["mmcv._ext"] = module


def drawing(height: int, width: int, seed: int) -> Any:
    """A smooth coloured picture with a few hard-edged discs and bars, (H, W, 3) RGB uint8."""
    import numpy as np

    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(float)
    waves = [np.sin(x / rng.uniform(9, 30) + y / rng.uniform(9, 30)) for _ in range(3)]
    picture = 128 + 70 * np.stack(waves, -1)
    for _ in range(4):
        cx, cy, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(8, 30)
        picture[(x - cx) ** 2 + (y - cy) ** 2 < r * r] = rng.uniform(0, 255, 3)
        picture[np.abs(x - cx / 2 + y / 3) < r / 5] = rng.uniform(0, 255, 3)
    return picture.clip(0, 255).astype(np.uint8)


def configuration(*, tiny: bool) -> Any:
    """Configuration of the benchmark's network, or the same with every size cut down."""
    import mmdet
    from mmengine.config import Config

    config = Config.fromfile(str(Path(mmdet.__file__).parent / ".mim" / "configs" / CONFIG))
    config.model.backbone.init_cfg = None
    if not tiny:
        return config
    backbone, head = config.model.backbone, config.model.panoptic_head
    backbone.embed_dims, backbone.depths, backbone.num_heads = 16, [2, 2, 2, 2], [1, 2, 4, 8]
    head.in_channels = [16, 32, 64, 128]
    head.feat_channels = head.out_channels = 32
    head.num_queries = 10
    head.positional_encoding.num_feats = 16
    pixel = head.pixel_decoder
    pixel.positional_encoding.num_feats = 16
    pixel.encoder.num_layers = 2
    pixel.encoder.layer_cfg.self_attn_cfg.embed_dims = 32
    pixel.encoder.layer_cfg.ffn_cfg.update(embed_dims=32, feedforward_channels=48)
    decoder = head.transformer_decoder
    decoder.num_layers = 2
    decoder.layer_cfg.self_attn_cfg.embed_dims = 32
    decoder.layer_cfg.cross_attn_cfg.embed_dims = 32
    decoder.layer_cfg.ffn_cfg.update(embed_dims=32, feedforward_channels=64)
    return config


def random_model(config: Any, noise: float) -> Any:
    """The network with noise on every tensor, so that none stays at 0 or 1; halves are exact."""
    import torch
    from mmdet.apis import init_detector

    torch.manual_seed(0)
    model = init_detector(config, None, device="cpu", palette="coco")
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.add_(torch.randn_like(tensor) * noise)
            tensor.copy_(tensor.half().float())
    return model


def pipelines(config: Any) -> dict[str, Any]:
    """The pipeline of mmdet 3.3, and that of mmdet 2.28 in its terms."""
    from mmcv.transforms import BaseTransform, Compose
    from mmdet.registry import TRANSFORMS
    from mmdet.utils import get_test_pipeline_cfg

    @TRANSFORMS.register_module()
    class ForgetPadding(BaseTransform):
        """In mmdet 2.x padding does not touch `img_shape`, by which masks are cut back."""

        def transform(self, results: dict[str, Any]) -> dict[str, Any]:
            height, width = results["ori_shape"]
            scale = results["scale_factor"]
            results["img_shape"] = (round(height * scale[1]), round(width * scale[0]))
            return results

    newest = get_test_pipeline_cfg(config.copy())
    newest[0].type = "mmdet.LoadImageFromNDArray"
    grey = {"img": (128, 128, 128), "masks": 0, "seg": 255}
    older = [
        {"type": "mmdet.LoadImageFromNDArray", "to_float32": False},
        {"type": "mmdet.Resize", "scale": (1333, 800), "keep_ratio": True},
        {"type": "mmdet.Pad", "size_divisor": 32, "pad_val": grey},
        {"type": "ForgetPadding"},
        newest[-1],
    ]
    return {"mmdet3": Compose(newest), "mmdet2": Compose(older)}


def found_by_mmdet(model: Any, rgb: Any, pipeline: Any) -> dict[str, Any]:
    """Labels, scores, boxes and packed masks that mmdet returns for one picture."""
    import numpy as np
    from mmdet.apis import inference_detector

    bgr = np.ascontiguousarray(rgb[..., ::-1])
    found = inference_detector(model, bgr, test_pipeline=pipeline).pred_instances
    return {
        "labels": found.labels.numpy(),
        "scores": found.scores.numpy(),
        "boxes": found.bboxes.numpy(),
        "masks": np.packbits(np.asarray(found.masks), axis=-1),
    }


def save_checkpoint(model: Any) -> Path:
    """The network as mmdet 2.x writes it, named with the first digits of its sha256."""
    import torch
    from mmengine.logging import HistoryBuffer

    table = {}
    for name, tensor in model.state_dict().items():
        for pattern, replacement in TO_MMDET_2:
            name = re.sub(pattern, replacement, name)  # noqa: PLW2901 (a chain of renamings)
        table[name] = tensor.half() if tensor.is_floating_point() else tensor
    history = HistoryBuffer([0.5, 0.25], [1, 1])
    content = {
        "meta": {"mmdet_version": "2.24.1", "epoch": 1, "CLASSES": ("person",), "history": history},
        "state_dict": table,
    }
    draft = OUTPUT / "draft.pth"
    torch.save(content, draft)
    digits = hashlib.sha256(draft.read_bytes()).hexdigest()[:8]
    return draft.rename(OUTPUT / f"mask2former_tiny-{digits}.pth")


def write() -> None:
    """Make all files anew."""
    import numpy as np

    OUTPUT.mkdir(parents=True, exist_ok=True)
    for old in (*OUTPUT.glob("*.pth"), *OUTPUT.glob("*.npz")):
        old.unlink()
    config = configuration(tiny=True)
    # More noise than in the full size: few layers of small weights would see nothing at all.
    model = random_model(config, 0.15)
    path = save_checkpoint(model)
    print(path.name, path.stat().st_size, "bytes")
    versions = pipelines(config)
    for index, (height, width) in enumerate(SIZES):
        rgb = drawing(height, width, index)
        arrays = {"image": rgb}
        for name, pipeline in versions.items():
            begin_s = time.process_time()
            found = found_by_mmdet(model, rgb, pipeline)
            arrays |= {f"{name}_{key}": value for key, value in found.items()}
            seconds = time.process_time() - begin_s
            scores = found["scores"]
            print(f"{height}x{width} {name}: {seconds:.1f} CPU s, scores {scores.min():.4f} to")
            print(f"  {scores.max():.4f}, {len(set(found['labels'].tolist()))} classes")
        np.savez_compressed(OUTPUT / f"drawing{index}.npz", **arrays)


def compare_full() -> None:
    """Compare our port with mmdet once in the full size, with random weights."""
    import numpy as np
    import torch

    from reward_server.scorers.geneval import mask2former

    config = configuration(tiny=False)
    model = random_model(config, 0.02)
    rgb = drawing(200, 267, 0)
    found = found_by_mmdet(model, rgb, pipelines(config)["mmdet2"])
    network = mask2former.build(model.state_dict())
    ours = mask2former.Mask2FormerSegmenter.of(network, "cpu", dtype="float32")
    mine = ours.segment([rgb])[0]
    masks = np.unpackbits(found["masks"], axis=-1, count=rgb.shape[1]).astype(bool)
    a, b = np.argsort(-found["scores"]), np.argsort(-mine.scores)
    print("parameters:", sum(p.numel() for p in model.parameters()), "torch", torch.__version__)
    print("labels equal:", np.mean(found["labels"][a] == mine.labels[b]))
    print("scores, largest difference:", np.abs(found["scores"][a] - mine.scores[b]).max())
    print("boxes, largest difference:", np.abs(found["boxes"][a] - mine.boxes[b]).max())
    print("masks, share of equal pixels:", np.mean(masks[a] == mine.masks[b]))


def main() -> None:
    """Write the files, or compare in full size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="compare the full size, write nothing")
    stub_compiled_operators()
    prepare_torchvision()
    compare_full() if parser.parse_args().full else write()


if __name__ == "__main__":
    main()
