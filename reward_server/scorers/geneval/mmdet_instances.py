"""mmdet's instance post-processing for Mask2Former: top 100 of classes x queries.

Reference: mmdet `maskformer_head.py` (masks to the padded input's size) and
`maskformer_fusion_head.py` (`instance_postprocess`). transformers' own post-processing is another
algorithm (one label per pixel) and is not used.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from reward_server.scorers.geneval.segmenter import Instances

MAX_INSTANCES = 100
# Mask pixels in flight: 0.27 GB of float32, a few times over while masks are measured.
_PX_AT_ONCE = 1 << 26


def instances(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    padded: tuple[int, int],
    content: tuple[int, int],
    original: tuple[int, int],
    min_probability: float = 0.0,
) -> Instances:
    """Turn the queries of one picture into instances.

    Args:
        class_logits: (Q, C + 1), the last one for "no object".
        mask_logits: (Q, h, w) at a quarter of the padded size.
        padded: height and width of the network's input.
        content: height and width of the picture in it, without padding.
        original: height and width to which masks are resized.
        min_probability: class probability below which an instance is left out.

    Returns:
        Up to 100 instances, the most probable ones of all (query, class) pairs: a query may appear
        under several classes, and overlaps stay, as in mmdet.
    """
    probability = class_logits.float().softmax(-1)[:, :-1]
    classes = probability.shape[1]
    kept = min(MAX_INSTANCES, probability.numel())
    best, place = probability.flatten().topk(kept)
    best, place = best[best >= min_probability], place[best >= min_probability]
    # Masks of queries that appear twice are resized once.
    queries, of_instance = torch.unique(place // classes, return_inverse=True)
    limit = max(1, _PX_AT_ONCE // max(math.prod(padded), math.prod(original)))
    masks = [torch.zeros((0, *original), dtype=torch.bool, device=best.device)]
    quality = [best.new_zeros(0)]
    for part in mask_logits[queries].split(limit) if len(queries) else ():
        logits = _to_original(part.float(), padded, content, original)
        inside = logits > 0
        area = inside.flatten(1).sum(1)
        sure = torch.where(inside, logits.sigmoid(), 0.0).flatten(1).sum(1)
        masks.append(inside)
        quality.append(sure / (area + 1e-6))
    inside = torch.cat(masks)
    return Instances(
        labels=(place % classes).cpu().numpy(),
        scores=(best * torch.cat(quality)[of_instance]).cpu().numpy(),
        boxes=boxes_of(inside)[of_instance].cpu().numpy(),
        masks=inside.cpu().numpy()[of_instance.cpu().numpy()],
    )


def _to_original(
    logits: Tensor, padded: tuple[int, int], content: tuple[int, int], original: tuple[int, int]
) -> Tensor:
    # Two steps, as in mmdet: one step would round mask edges differently.
    full = F.interpolate(logits[:, None], size=padded, mode="bilinear")
    full = full[:, :, : content[0], : content[1]]
    return F.interpolate(full, size=original, mode="bilinear")[:, 0]


def boxes_of(masks: Tensor) -> Tensor:
    """Tight boxes (K, 4) float32 x0, y0, x1, y1 of masks (K, H, W); exclusive ends, zeros if empty.

    On the device and without a loop: mmdet's own asks the device twice per mask.
    """
    sides = []
    for axis in (1, 2):
        along = masks.any(dim=axis)
        length = along.shape[1]
        index = torch.arange(length, device=masks.device)
        first = torch.where(along, index, length).amin(1)
        end = torch.where(along, index + 1, 0).amax(1)
        sides.append((torch.where(end > 0, first, 0), end))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], dim=1).float()
