"""How long a stage took on its device, without waiting for it."""

from __future__ import annotations

import time
from collections import deque
from itertools import cycle
from typing import Any

import torch

from ..cuda_streams import current_stream

PENDING = 4  # measurements that may be unread; the oldest is given up for the next


class StageTimer:
    """Times what is launched inside `with timer:` on the current stream of a device.

    On CUDA by a pair of events, read when last_ms asks, if the GPU has passed them: nothing waits,
    so a value is of a call or more before. On a CPU by the clock. One thread only.
    """

    def __init__(self, device: torch.device, every: int = 1) -> None:
        """every: on CUDA one of so many is measured, where what two events cost counts."""
        self._device, self._on_cuda = device, device.type == 'cuda'
        self._turns = cycle([True] + [False] * (every - 1))
        self._pending: deque[tuple[Any, Any]] = deque()
        self._spare: list[tuple[Any, Any]] = []  # events that have been read
        self._begun: Any = None
        self._last_ms: float | None = None

    def __enter__(self) -> StageTimer:
        if not self._on_cuda:
            self._begun = time.perf_counter()
        elif next(self._turns):
            self._begun = self._free_pair()
            self._begun[0].record(current_stream(self._device))
        return self

    def __exit__(self, *_: object) -> None:
        begun, self._begun = self._begun, None
        if begun is None:
            return
        if self._on_cuda:
            begun[1].record(current_stream(self._device))
            self._pending.append(begun)
        else:
            self._last_ms = (time.perf_counter() - begun) * 1e3

    def last_ms(self) -> float | None:
        """Return the milliseconds of the newest measurement that has ended, None before any."""
        if self._on_cuda:
            self._read()
        return self._last_ms

    def take_ms(self) -> float | None:
        """As last_ms, but every measurement once; None when there is no new one."""
        taken, self._last_ms = self.last_ms(), None
        return taken

    def _free_pair(self) -> tuple[Any, Any]:
        """Events that no measurement uses, or the oldest one's that nobody has asked for."""
        if len(self._pending) >= PENDING:
            self._read()
        if len(self._pending) >= PENDING:
            return self._pending.popleft()
        if self._spare:
            return self._spare.pop()
        return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def _read(self) -> None:
        while self._pending and self._pending[0][1].query():
            pair = self._pending.popleft()
            self._last_ms = pair[0].elapsed_time(pair[1])
            self._spare.append(pair)
