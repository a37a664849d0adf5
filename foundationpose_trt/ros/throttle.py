"""Counts events by name and says when one may be logged again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable


class ThrottledCount:
    """Counts by key; `note` returns True at the first event of a key and then once per period.

    rclpy throttles by line of code; here each kind of trouble has a period of its own.
    """

    def __init__(
        self, period_s: float = 5.0, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._period_s = period_s
        self._clock_s = clock_s
        self._logged_s: dict[str, float] = {}

    def note(self, key: str) -> bool:
        """Count one event; tell whether to log it."""
        self.counts[key] += 1
        now_s = self._clock_s()
        if key in self._logged_s and now_s - self._logged_s[key] < self._period_s:
            return False
        self._logged_s[key] = now_s
        return True
