"""When the next request may start: the rate limit, pauses that a server requests, and waits before retries."""

import asyncio
import random
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_WAIT = 300.0
"""The longest wait, in seconds. If a server requests more, it is tried again after this time."""


class Pace:
    """Start at most `per_minute` requests per minute, evenly spaced. None for no limit."""

    def __init__(self, per_minute: float | None) -> None:
        self._gap = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._held_until = 0.0

    async def turn(self) -> None:
        """Wait until a request may start."""
        now = asyncio.get_running_loop().time
        start = max(now(), self._next)
        self._next = start + self._gap
        await asyncio.sleep(start - now())
        while (left := self._held_until - now()) > 0:
            await asyncio.sleep(left)

    def hold(self, seconds: float) -> None:
        """Start no request for `seconds`, after the server reported too many requests."""
        self._held_until = max(self._held_until, asyncio.get_running_loop().time() + seconds)


def backoff(attempt: int, first: float) -> float:
    """Return the seconds to wait after failed attempt number `attempt` (from 0).

    The longest wait starts at `first`, doubles with each attempt and stops growing at 60 s. The wait is drawn between
    half of it and all of it. The randomness prevents requests that failed together from being retried together.
    """
    return min(first * 2**attempt, 60.0) * random.uniform(0.5, 1.0)


def asked_wait(retry_after: str | None) -> float | None:
    """Return the seconds that a `Retry-After` header (a number or a date) requests, or None if it is invalid.

    Example:

    >>> asked_wait("2"), asked_wait("soon"), asked_wait("1e9")
    (2.0, None, 300.0)
    """
    if not retry_after:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), LONGEST_WAIT) if seconds == seconds else None
