"""Launching Warp kernels on torch tensors: same device, same CUDA stream, no copies."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
import warp as wp

wp.config.log_level = wp.LOG_ERROR  # its banner is not for our users; errors still show


@contextmanager
def _native_stderr_to(path: str) -> Iterator[None]:
    sys.stderr.flush()
    kept, other = os.dup(2), os.open(path, os.O_WRONLY)
    try:
        os.dup2(other, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(other)


@lru_cache(maxsize=1)
def _start_warp() -> None:
    """Initialise Warp once; from_torch does not do it itself.

    Without CUDA its native part warns about the missing driver on stderr, whatever the log
    level; who runs on a CPU knows that. Failures of init are exceptions and still show.
    """
    if torch.cuda.is_available():
        wp.init()
        return
    with _native_stderr_to(os.devnull):
        wp.init()


def as_warp(tensor: torch.Tensor, dtype: Any = None) -> wp.array:
    """View a torch tensor as a Warp array (zero copy; dtype may be a Warp vector or matrix)."""
    _start_warp()
    return wp.from_torch(tensor.detach(), dtype=dtype, requires_grad=False)


def launch(
    kernel: wp.Kernel, dim: int | tuple[int, ...], arguments: Sequence[Any], device: torch.device
) -> None:
    """Enqueue a kernel on torch's current stream of the device; never waits for it."""
    if device.type == 'cuda':
        stream = wp.stream_from_torch(torch.cuda.current_stream(device))
        wp.launch(kernel, dim, list(arguments), stream=stream)
    else:
        wp.launch(kernel, dim, list(arguments), device='cpu')
