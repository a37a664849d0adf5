"""Torch's current stream, asked for at every launch, in a fraction of current_stream()'s time."""

from __future__ import annotations

import torch

_raw = getattr(torch._C, '_cuda_getCurrentRawStream', None)  # what Triton launches by
# Kept for good: an object holds no more than the handle, so one whose stream has died serves the
# next that CUDA gives the same handle.
_streams: dict[tuple[int, int], torch.cuda.Stream] = {}  # by index of the device and handle


def index_of(device: torch.device) -> int:
    """Return the number of a CUDA device; without one, as torch allows, of the current device."""
    return torch.cuda.current_device() if device.index is None else device.index


def handle_of_current_stream(device: torch.device) -> int:
    """Return the cudaStream_t of torch's current stream of a CUDA device."""
    if _raw is None:
        return torch.cuda.current_stream(device).cuda_stream
    return int(_raw(index_of(device)))


def key_of_current_stream(device: torch.device) -> tuple[int, int]:
    """Return the number of a CUDA device and the cudaStream_t of torch's current stream of it."""
    return index_of(device), handle_of_current_stream(device)


def current_stream(device: torch.device) -> torch.cuda.Stream:
    """Return torch's current stream of a CUDA device, the same object at every call."""
    if _raw is None:
        return torch.cuda.current_stream(device)
    key = key_of_current_stream(device)
    stream = _streams.get(key)
    if stream is None:
        stream = _streams[key] = torch.cuda.current_stream(device)
    return stream
