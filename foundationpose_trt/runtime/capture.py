"""Capturing a CUDA graph without disturbing others, and leaving torch whole when it fails."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# One capture in the process at a time, and no graph destroyed or allocator flushed meanwhile:
# torch's random generators and allocator hold state of a running capture, not all of it locked.
CAPTURING = threading.RLock()


def captured(
    enqueue: Callable[[], object], side: torch.cuda.Stream, pool: Any
) -> torch.cuda.CUDAGraph:
    """Capture what enqueue launches on a side stream, with scratch memory from a pool.

    Not torch.cuda.graph(): that waits for the whole device and empties the allocator's cache,
    which would stall every other thread. Thread-local mode leaves their calls alone; before torch
    2.12 they must not draw random numbers on CUDA from the default generator meanwhile. Raises
    RuntimeError when something in it cannot be captured; the pool is then not to be used again.
    """
    graph = torch.cuda.CUDAGraph()
    with CAPTURING, _without_collections(), torch.cuda.stream(side):
        ended = False
        try:
            graph.capture_begin(pool=pool, capture_error_mode='thread_local')
            try:
                enqueue()
            finally:
                graph.capture_end()
                ended = True
        except BaseException:
            if ended:
                graph.reset()
            else:
                _mend(side, pool)
            raise
    return graph


@contextmanager
def _without_collections() -> Iterator[None]:
    """Keep Python's collector out: what it ends may be a session, which waits and flushes."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _mend(side: torch.cuda.Stream, pool: Any) -> None:
    """Undo what a capture that could not end leaves behind (torch before 2.13).

    The allocator would go on recording into the pool, and the random generators go on refusing
    to draw, until some capture ends well.
    """
    device = side.device.index
    for name in ('_cuda_endAllocateToPool', '_cuda_releasePool'):
        function = getattr(torch._C, name, None)
        if function is not None:
            try:
                function(device, pool)
            except (RuntimeError, TypeError):
                break  # it has been ended already, as newer versions do themselves
    marker = torch.zeros(1, device=side.device)
    good = torch.cuda.CUDAGraph()
    good.capture_begin(capture_error_mode='thread_local')
    marker.zero_()
    good.capture_end()
    good.reset()
