"""When something may happen again: a log line of one kind of trouble, a frame of a rate."""

from __future__ import annotations

import time
from collections import Counter, deque
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


class RateLimit:
    """Lets events through at a highest mean rate, evenly; 0 lets all through.

    Pure logic: feed it times in seconds, any clock. Events that come at a rate which is no
    multiple of the highest are let through at the nearest ones after each due time.
    """

    def __init__(self, highest_hz: float) -> None:
        self.highest_hz = highest_hz
        self._due_s: float | None = None

    def lets_through(self, now_s: float) -> bool:
        """Tell whether an event may happen now, and count it."""
        if self.highest_hz <= 0:
            return True
        if self._due_s is not None and now_s < self._due_s:
            return False
        period_s = 1.0 / self.highest_hz
        is_late = self._due_s is None or now_s - self._due_s > period_s
        # from the due time, not from now: else the mean rate would fall below the highest
        self._due_s = (now_s if is_late else self._due_s) + period_s  # type: ignore[operator]
        return True


class EventRate:
    """Counts events and tells their rate over the last seconds. Pure logic; any clock in seconds.

    One thread notes, others may ask.
    """

    def __init__(self, over_s: float = 5.0) -> None:
        self.total = 0
        self._over_s = over_s
        self._times_s: deque[float] = deque(maxlen=1024)

    def note(self, now_s: float) -> float | None:
        """Count an event; return the seconds since the one before, None if that is long ago."""
        last_s = self._times_s[-1] if self._times_s else None
        self._times_s.append(now_s)
        self.total += 1
        return None if last_s is None or now_s - last_s > self._over_s else now_s - last_s

    def rate_hz(self, now_s: float) -> float:
        """Return events per second in the window that ends now; 0 when there are none."""
        recent = [at for at in list(self._times_s) if now_s - at <= self._over_s]
        if not recent:
            return 0.0
        covered_s = max(now_s - recent[0], 1e-3)
        return len(recent) / max(covered_s, 1.0)
