"""Stage times on the host's monotonic clock, their percentiles and budgets; no ROS, no GPU."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np


def summarize_ms(samples_ms: list[float]) -> dict[str, float]:
    """Return p50, p95 and max of the samples in milliseconds (empty dict when there are none)."""
    if not samples_ms:
        return {}
    values = np.asarray(samples_ms, dtype=np.float64)
    return {
        'p50': float(np.percentile(values, 50)),
        'p95': float(np.percentile(values, 95)),
        'max': float(values.max()),
    }


class StageTimes:
    """Collects milliseconds per named stage; not thread-safe, one owner."""

    def __init__(self) -> None:
        self._samples_ms: dict[str, list[float]] = defaultdict(list)

    def add(self, stage: str, milliseconds: float) -> None:
        """Record one sample of a stage."""
        self._samples_ms[stage].append(float(milliseconds))

    @contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Time a block that ends with its result on the host (else the time means nothing)."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, (time.perf_counter() - start) * 1e3)

    def last_ms(self, stage: str) -> float:
        """Return the newest sample of a stage; raises IndexError when there is none."""
        return self._samples_ms.get(stage, [])[-1]

    def summary(self) -> dict[str, dict[str, float]]:
        """Return {stage: {p50, p95, max}} in milliseconds."""
        return {stage: summarize_ms(samples) for stage, samples in self._samples_ms.items()}


class Level(IntEnum):
    """How a stage stands to its budget; the numbers are diagnostic_msgs/DiagnosticStatus's."""

    OK = 0
    WARN = 1
    ERROR = 2


def level_of(summary: dict[str, float], budget_ms: float) -> Level:
    """Judge a window (RollingWindow.summary) by a budget in milliseconds; 0 is no budget.

    WARN: more than one in twenty samples is over it. ERROR: more than half are.
    """
    if budget_ms <= 0 or not summary:
        return Level.OK
    if summary['p50'] > budget_ms:
        return Level.ERROR
    return Level.WARN if summary['p95'] > budget_ms else Level.OK


class RollingWindow:
    """The samples in milliseconds of the last `seconds`, at most `capacity`; any thread may call.

    clock_s: any clock in seconds that does not go back.
    """

    def __init__(
        self,
        seconds: float,
        capacity: int = 16384,  # two minutes at 120 Hz
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._samples: deque[tuple[float, float]] = deque(maxlen=capacity)

    def add(self, milliseconds: float) -> None:
        """Record one sample, now."""
        with self._lock:
            self._samples.append((self._clock_s(), float(milliseconds)))

    def summary(self) -> dict[str, float]:
        """Return p50, p95, p99 and max of the window in milliseconds, and count; {} when empty."""
        with self._lock:
            oldest_s = self._clock_s() - self.seconds
            while self._samples and self._samples[0][0] < oldest_s:
                self._samples.popleft()
            values = np.array([value for _, value in self._samples])
        if not len(values):
            return {}
        p50, p95, p99 = np.percentile(values, [50, 95, 99])
        return {
            'p50': float(p50), 'p95': float(p95), 'p99': float(p99),
            'max': float(values.max()), 'count': float(len(values)),
        }  # fmt: skip
