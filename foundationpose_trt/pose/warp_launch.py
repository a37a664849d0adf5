"""Launching Warp kernels on torch tensors: same device, same CUDA stream, no copies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import warp as wp

wp.config.log_level = wp.LOG_ERROR  # its banner is not for our users; errors still show


def as_warp(tensor: torch.Tensor, dtype: Any = None) -> wp.array:
    """View a torch tensor as a Warp array (zero copy; dtype may be a Warp vector or matrix)."""
    wp.init()  # a no-op after the first time; from_torch does not do it itself
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
