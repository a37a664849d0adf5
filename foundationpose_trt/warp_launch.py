"""Launching Warp kernels on torch tensors: same device, same CUDA stream, no copies."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import warp as wp

from .cuda_streams import index_of, key_of_current_stream

# As setup.py demands. With 1.14 a recorded launch of rasterize draws nothing, seen on a CPU.
LEAST_WARP = (1, 15)

wp.config.log_level = wp.LOG_ERROR  # its banner is not for our users; errors still show

_lock = threading.Lock()  # two threads that start Warp at once would each make a runtime
# Warp loads a kernel's module twice while it records. A thread that added an overload in between
# would have it unload what the first recording still points into.
_recording = threading.Lock()
_started = False
# Kept for good: Warp makes an event for each stream object, destroys it with that, and looks both
# up in a table without a lock. The objects hold no more than the handle, so one whose stream has
# died serves the next that CUDA gives the same handle.
_streams: dict[tuple[int, int], wp.Stream] = {}  # by index of the device and handle


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


def _start_warp() -> None:
    """Initialise Warp once; from_torch does not do it itself."""
    global _started
    if _started:
        return
    with _lock:
        if not _started:
            _initialise()
            _started = True


def _initialise() -> None:
    """Start Warp; without CUDA its native part warns about the missing driver on stderr, whatever
    the log level.

    Who runs on a CPU knows that. Failures are exceptions and still show. Raises RuntimeError for
    a Warp that is too old.
    """
    found = tuple(int(number) for number in wp.__version__.split('.')[:2])
    if found < LEAST_WARP:
        least = '.'.join(map(str, LEAST_WARP))
        raise RuntimeError(
            f'Warp is {wp.__version__}, must be {least} or later:'
            f" pip install --upgrade 'warp-lang>={least}'"
        )
    if torch.cuda.is_available():
        wp.init()
        return
    with _native_stderr_to(os.devnull):
        wp.init()


def as_warp(tensor: torch.Tensor, dtype: Any = None) -> wp.array:
    """View a torch tensor as a Warp array (zero copy; dtype may be a Warp vector or matrix)."""
    _start_warp()
    return wp.from_torch(tensor.detach(), dtype=dtype, requires_grad=False)


def pinned_as_warp(
    tensor: torch.Tensor, device: torch.device, dtype: Any = wp.float32
) -> wp.array:
    """View host memory, page-locked, as an array of a device: used over the bus.

    For a few numbers, which take less time that way than to enqueue their copy. With unified
    addressing, as all 64-bit systems have, it has one address for both (CUDA C++ Programming
    Guide, "Mapped Memory"). Writes before a launch are seen by it, and what it writes by who waits
    for it. On a CPU plainly the tensor. dtype: as large as the tensor's.
    """
    if device.type != 'cuda':
        return as_warp(tensor, dtype)
    where, shape = _warp_device(device), tuple(tensor.shape)
    return wp.array(ptr=tensor.data_ptr(), dtype=dtype, shape=shape, device=where)


def is_same_view(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors that both exist are views of the same values, as a kernel reads them."""
    return one is other or (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.dtype == other.dtype
        and one.stride() == other.stride()
    )


def launch(
    kernel: wp.Kernel, dim: int | tuple[int, ...], arguments: Sequence[Any], device: torch.device
) -> None:
    """Enqueue a kernel on torch's current stream of the device; never waits for it."""
    if device.type == 'cuda':
        stream = _warp_stream(torch.cuda.current_stream(device))
        wp.launch(kernel, dim, list(arguments), stream=stream)
    else:
        wp.launch(kernel, dim, list(arguments), device='cpu')


class RecordedLaunch:
    """A launch whose arguments stay: repeating it costs a few microseconds of the host.

    arguments: as for launch(); the memory behind them must outlive this. Launches are enqueued
    on the stream given to each call (see stream_of), never waited for. One thread at a time.
    """

    def __init__(
        self,
        kernel: wp.Kernel,
        dim: tuple[int, ...],
        arguments: Sequence[Any],
        device: torch.device,
    ) -> None:
        self._arguments = list(arguments)
        self._dim = dim
        with _recording:
            self._command = wp.launch(
                kernel, dim, self._arguments, device=_warp_device(device), record_cmd=True
            )
            # of the module that the command keeps, should launch() elsewhere have renewed it
            own = self._command.module_exec.get_kernel_hooks(self._command.kernel)
            self._command.hooks = own

    def __call__(self, dim: tuple[int, ...], stream: wp.Stream | None) -> None:
        """Launch with dim threads; the same as last time costs least."""
        if dim != self._dim:
            self._command.set_dim(dim)
            self._dim = dim
        self._command.launch(stream)

    def replace(self, index: int, argument: Any) -> None:
        """Use another argument, of the same type, from the next call on."""
        self._arguments[index] = argument
        self._command.set_param_at_index(index, argument)


def _warp_device(device: torch.device) -> wp.Device:
    """Return Warp's device; of CUDA without a number, as torch allows, the current one."""
    _start_warp()
    if device.type == 'cuda':
        device = torch.device('cuda', index_of(device))
    return wp.device_from_torch(device)


def stream_of(device: torch.device) -> wp.Stream | None:
    """Return torch's current stream for recorded launches; None on a CPU."""
    if device.type != 'cuda':
        return None
    known = _streams.get(key_of_current_stream(device))
    if known is not None:
        return known
    _start_warp()
    return _warp_stream(torch.cuda.current_stream(device))


def _warp_stream(stream: torch.cuda.Stream) -> wp.Stream:
    """Return Warp's object of a stream, the same one at every call."""
    key = (stream.device.index, stream.cuda_stream)
    if key not in _streams:
        with _lock:
            if key not in _streams:
                where = wp.device_from_torch(stream.device)
                _streams[key] = wp.Stream(where, cuda_stream=stream.cuda_stream)
    return _streams[key]
