"""Turns whatever a handler may raise into the one error tree both APIs answer with."""

from __future__ import annotations

import structlog

from reward_client.errors import Internal, RewardError


def as_reward_error(error: Exception) -> RewardError:
    """A RewardError as it is; anything else is a bug of the server: logged, and told briefly."""
    if isinstance(error, RewardError):
        return error
    structlog.get_logger().error("bug", exc_info=error)
    return Internal(f"a bug of the server ({type(error).__name__}): see its log")
