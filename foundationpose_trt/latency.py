"""Stage times on the host's monotonic clock and their percentiles; no ROS, no GPU."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

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
