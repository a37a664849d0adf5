"""How long a stage took on its device, without waiting for it."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import torch

PENDING = 4  # measurements that may be unread; the oldest is given up for the next


class StageTimer:
    """Times what is launched inside `with timer:` on the current stream of a device.

    On CUDA by a pair of events, read when a later measurement begins or last_ms asks, if the GPU
    has passed them: nothing waits, so a value is of a call or more before. On a CPU by the clock.
    One thread only.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_cuda = device.type == 'cuda'
        self._pending: deque[tuple[Any, Any]] = deque(maxlen=PENDING)
        self._begun: Any = None
        self._last_ms: float | None = None

    def __enter__(self) -> StageTimer:
        if self._on_cuda:
            self._read()
            self._begun = torch.cuda.Event(enable_timing=True)
            self._begun.record()
        else:
            self._begun = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if self._on_cuda:
            ended = torch.cuda.Event(enable_timing=True)
            ended.record()
            self._pending.append((self._begun, ended))
        else:
            self._last_ms = (time.perf_counter() - self._begun) * 1e3

    def last_ms(self) -> float | None:
        """Return the milliseconds of the newest measurement that has ended, None before any."""
        if self._on_cuda:
            self._read()
        return self._last_ms

    def take_ms(self) -> float | None:
        """As last_ms, but every measurement once; None when there is no new one."""
        taken, self._last_ms = self.last_ms(), None
        return taken

    def _read(self) -> None:
        while self._pending and self._pending[0][1].query():
            begun, ended = self._pending.popleft()
            self._last_ms = begun.elapsed_time(ended)
