"""Every parser that sees bytes from outside."""

from __future__ import annotations

from collections.abc import Mapping

from tests.fuzz.harness import Target
from tests.fuzz.pickles import PICKLE

TARGETS: Mapping[str, Target] = {"pickle": PICKLE}
