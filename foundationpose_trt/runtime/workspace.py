"""Scratch memory that engines which never run at the same time have in common."""

from __future__ import annotations

import threading

import torch


class Workspace:
    """Memory on one device for the largest of its engines; safe under threads.

    It is allocated with the first execution and never moves or grows from then on: captured
    graphs have its address baked in. All launches of its engines exclude one another
    (cuda_graph.order_of).
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._size = 1
        self._memory: torch.Tensor | None = None

    def reserve(self, nbytes: int) -> bool:
        """Make it at least so large; False where it is smaller and in use already."""
        with self._lock:
            if self._memory is None:
                self._size = max(self._size, nbytes)
            return nbytes <= self._size

    def memory(self) -> torch.Tensor:
        """Return its bytes, allocated now if this is the first call: uint8, on the device."""
        with self._lock:
            if self._memory is None:
                self._memory = torch.empty(self._size, dtype=torch.uint8, device=self._device)
            return self._memory
