"""What several scorers share: fingerprints, self-test comparison, input checks."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Mapping
from types import ModuleType

from reward_client.errors import Code
from reward_server.scorers.base import ItemFailure, ScoreInput, SelfTestError


def invalid(message: str) -> ItemFailure:
    """A failure that only the caller can fix; not retryable."""
    return ItemFailure(Code.INVALID_ARGUMENT, message)


def image_problem(item: ScoreInput, scorer: str, min_side_px: int = 1) -> ItemFailure | None:
    """Why an item does not carry exactly one usable picture, or None."""
    if len(item.images) != 1:
        return invalid(
            f"images: {scorer} scores exactly one image per item, got {len(item.images)}; "
            "send every image as an item of its own"
        )
    height, width = item.images[0].shape[:2]
    if min(height, width) < min_side_px:
        return invalid(
            f"images[0]: {width}x{height} px is too small for {scorer}; "
            f"both sides must be at least {min_side_px} px"
        )
    return None


def reference_problem(item: ScoreInput, scorer: str) -> ItemFailure | None:
    """Why an item does not carry exactly one reference, or None."""
    if len(item.references) == 1:
        return None
    return invalid(
        f"references: {scorer} compares with exactly one reference per item, got"
        f" {len(item.references)}"
    )


def digest(modules: list[ModuleType], facts: Mapping[str, str]) -> str:
    """Hex digest (64 digits) over the source of modules and named facts.

    Hashing the source makes every edit of the code visible, whether or not its version was
    raised.
    """
    sha = hashlib.sha256()
    for module in sorted(modules, key=lambda m: m.__name__):
        sha.update(f"{module.__name__}\n{inspect.getsource(module)}\n".encode())
    for key in sorted(facts):
        sha.update(f"{key}={facts[key]}\n".encode())
    return sha.hexdigest()


def check_close(what: str, found: float, expected: float, tolerance: float, cause: str) -> None:
    """Compare one value of a self-test; raises SelfTestError."""
    if not math.isfinite(found) or abs(found - expected) > tolerance:
        raise SelfTestError(
            f"self-test {what}: expected {expected:.6g} +- {tolerance:.2g}, found {found:.6g}; "
            f"likely cause: {cause}"
        )
