"""The header Retry-After, as reward servers, judges and sources of weights send it."""

from __future__ import annotations

import time
from email.utils import parsedate_to_datetime


def retry_after_s(text: str | None) -> float | None:
    """Seconds that it asks for (a number or a date, RFC 9110); None without, or if malformed."""
    text = (text or "").strip()
    if text.isascii() and text[:1].isdigit():
        try:
            return float(text)
        except ValueError:
            return None
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return max(0.0, date.timestamp() - time.time()) if date.tzinfo else None
