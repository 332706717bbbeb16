"""Every parser that sees bytes from outside."""

from __future__ import annotations

from collections.abc import Mapping

from tests.fuzz.harness import Target

TARGETS: Mapping[str, Target] = {}
