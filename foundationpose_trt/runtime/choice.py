"""Which back end runs a network: what was asked for, what there is, and where files belong."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..datatypes import require
from .build import platform_of, require_serves_gpu
from .engine_manifest import Platform, check_engine
from .tensorrt_api import installed, load_api

BACKENDS = ('auto', 'torch', 'torchscript', 'onnxruntime', 'tensorrt', 'tensorrt_rtx')
TENSORRT = ('tensorrt', 'tensorrt_rtx')


@dataclass(frozen=True)
class BackendChoice:
    """backend: one of BACKENDS. folder: of exported files and engines (default: the user's cache).

    build: make engines that are missing or do not fit, which takes minutes, instead of refusing.
    batches: that engines are tuned for, rising, where it is not for build.DEFAULT_BATCHES; such
    engines have a place of their own.
    """

    backend: str = 'auto'
    folder: Path | None = None
    build: bool = False
    batches: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        require(
            self.backend in BACKENDS,
            f'backend is "{self.backend}", must be one of {", ".join(BACKENDS)}',
        )


def default_folder() -> Path:
    """Return the user's cache folder, by the XDG base directory specification."""
    base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    return Path(base) / 'foundationpose_trt'


def require_serves(backend: str, known: Sequence[str], device: torch.device) -> None:
    """Raise ValueError unless a back end that was asked for is known here and runs on a device.

    known: back ends of this network. ONNX Runtime serves CPUs, TensorRT GPUs, torch both.
    """
    on_cuda = device.type == 'cuda'
    elsewhere = ('onnxruntime',) if on_cuda else TENSORRT
    serving = [name for name in known if name not in elsewhere]
    require(
        backend in serving,
        f'backend {backend} does not run this network on device {device.type}: choose'
        f' {", ".join(serving)}',
    )


def fitting_tensorrt(
    plans_of: Callable[[str], Sequence[Path]],
    device: torch.device,
    may_build: bool,
    check: Callable[[Path, Platform], object] = check_engine,
) -> tuple[str | None, str]:
    """Return the TensorRT back end whose engines can serve, and why; or None and why not.

    plans_of: the engines by back end. may_build: what is missing would be built. check: raises
    ValueError for an engine that does not fit.
    """
    reasons = []
    for backend in TENSORRT:
        if not installed(backend):
            reasons.append(f'{backend} is not installed')
            continue
        try:
            api = load_api(backend)
            platform = platform_of(api, device)
            if may_build:
                require_serves_gpu(api, platform)
                return backend, 'installed, and engines may be built'
            for plan in plans_of(backend):
                check(plan, platform)
        except ValueError as error:
            reasons.append(str(error))
            continue
        return backend, 'its engines are there and fit'
    return None, '; '.join(reasons)
