"""Which back end runs a detector, where its files are, and why it was chosen."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..datatypes import require
from ..runtime.build import BuildOptions, ensure_engine
from ..runtime.choice import BackendChoice, default_folder, fitting_tensorrt, require_serves
from ..runtime.engine import Engine
from ..runtime.engine_manifest import record_tolerance
from ..runtime.onnx_engine import OnnxEngine
from ..runtime.specs import BATCH, TensorSpec
from ..runtime.tensorrt_engine import TensorRtEngine
from ..runtime.torch_engine import load_torchscript
from .agreement import agreement, require_agreement
from .half import write_half
from .manifest import DYNAMIC, DetectorManifest, ModelFile, checked_path, read_manifest

BACKENDS = ('auto', 'torchscript', 'onnxruntime', 'tensorrt', 'tensorrt_rtx')
DTYPES = {'fp32': torch.float32, 'fp16': torch.float16}
DETECTOR_BATCHES = (1,)

Progress = Callable[[str, float, str], None]  # network, fraction done, phase
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenedDetector:
    """A detector's engine. explanation: which back end, and why, for the log."""

    manifest: DetectorManifest
    engine: Engine
    explanation: str


def open_detector(
    folder: Path,
    device: str | torch.device,
    precision: str,
    choice: BackendChoice | None = None,
    progress: Progress | None = None,
) -> OpenedDetector:
    """Load the detector of a folder with a detector.json.

    precision: 'fp32' | 'fp16', of the file to run; 'auto': fp16 with TensorRT, fp32 else. Raises
    ValueError, naming what to install, choose, export or run, when it cannot serve.
    """
    words = ('auto', *DTYPES)
    require(precision in words, f'precision is "{precision}", must be one of {", ".join(words)}')
    opening = _Opening(folder, torch.device(device), precision, choice or BackendChoice())
    backend, reason = opening.chosen()
    opening.settle_precision(backend)
    logger.info('detector %s runs on %s: %s', opening.manifest.name, backend, reason)
    if backend == 'onnxruntime':
        engine: Engine = OnnxEngine(opening.path('onnx'))
    elif backend == 'torchscript':
        engine = opening.torchscript()
    else:
        engine = opening.tensorrt(backend, progress)
    return OpenedDetector(opening.manifest, engine, f'{backend} ({reason})')


class _Opening:
    """What one call of open_detector works with."""

    def __init__(
        self, folder: Path, device: torch.device, precision: str, choice: BackendChoice
    ) -> None:
        self.manifest = read_manifest(folder)
        self._folder, self._device = folder, device
        self._precision, self._choice = precision, choice

    def chosen(self) -> tuple[str, str]:
        """Return the back end and why."""
        if self._choice.backend != 'auto':
            require_serves(self._choice.backend, BACKENDS, self._device)
            return self._choice.backend, 'asked for'
        if self._device.type == 'cuda':
            backend, reason = fitting_tensorrt(
                lambda backend: [self.plan(backend)], self._device, self._choice.build
            )
            return (backend, reason) if backend else ('torchscript', reason)
        if importlib.util.find_spec('onnxruntime') is None:
            return 'torchscript', 'onnxruntime not installed'
        if self.manifest.find('onnx', 'fp32') is None:
            return 'torchscript', f'{self._folder} holds no ONNX file in fp32'
        return 'onnxruntime', 'faster than torch on a CPU'

    def settle_precision(self, backend: str) -> None:
        """Turn 'auto' into what the back end runs best."""
        if self._precision == 'auto':
            known = self.manifest.find('onnx', 'fp16') or importlib.util.find_spec('onnx')
            half = backend.startswith('tensorrt') and known is not None
            self._precision = 'fp16' if half else 'fp32'
        require(
            self._precision == 'fp32' or self._device.type == 'cuda',
            f'precision fp16 on device {self._device}: half precision needs CUDA, choose fp32',
        )

    def plan(self, backend: str) -> Path:
        """Where the engine belongs."""
        self.settle_precision(backend)
        folder = self._choice.folder or default_folder()
        return folder / f'{self.manifest.name}_{self._precision}' / backend / 'detector.engine'

    def path(self, kind: str) -> Path:
        """Return a file of the folder, its content checked; raises ValueError without it."""
        file = self._file(kind)
        if file is None and kind == 'onnx' and self._precision == 'fp16':
            return self._made_half()
        device = f' for {self._device.type}' if kind == 'torchscript' else ''
        require(
            file is not None,
            f'{self._folder} holds no {kind} file of precision {self._precision}{device}: export'
            ' the detector with it',
        )
        assert file is not None
        return checked_path(self._folder, file)

    def _made_half(self) -> Path:
        """Return the network in half, made of the one in float32 once, beside the engines."""
        single = self.manifest.find('onnx', 'fp32')
        require(single is not None, f'{self._folder} holds no onnx file: export the detector')
        assert single is not None
        source = checked_path(self._folder, single)
        folder = self._choice.folder or default_folder()
        path = folder / f'{self.manifest.name}_fp16' / f'detector_{single.sha256[:16]}.onnx'
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_half(source, path)
        return path

    def _file(self, kind: str) -> ModelFile | None:
        device = self._device.type if kind == 'torchscript' else ''
        return self.manifest.find(kind, self._precision, device)

    def torchscript(self) -> Engine:
        """Load the traced module for this device."""
        path, file, manifest = self.path('torchscript'), self._file('torchscript'), self.manifest
        assert file is not None
        dtype = DTYPES[self._precision]
        batch = BATCH if file.batch == DYNAMIC else int(file.batch)
        inputs = [TensorSpec(manifest.input, (batch, 3, *manifest.resolution), dtype)]
        sizes: dict[str, tuple[int, ...]] = {
            manifest.boxes: (manifest.queries, 4),
            manifest.logits: (manifest.queries, len(manifest.classes)),
        }
        if manifest.masks:
            sizes[manifest.masks] = (manifest.queries, *manifest.mask_size)
        outputs = [TensorSpec(name, (batch, *rest), dtype) for name, rest in sizes.items()]
        return load_torchscript(path, file.sha256, inputs, outputs, self._device)

    def tensorrt(self, backend: str, progress: Progress | None) -> Engine:
        """Open the engine, built first where that is allowed; compared before its first use."""
        plan, onnx = self.plan(backend), self.path('onnx')
        if self._choice.build:
            file = self._file('onnx') or self.manifest.find('onnx', 'fp32')
            free = file is not None and file.batch == DYNAMIC
            options = BuildOptions(backend=backend, batches=DETECTOR_BATCHES if free else None)
            report = None if progress is None else _named(progress)
            ensure_engine(onnx, plan, options, report)
        engine = TensorRtEngine(plan, self._device, onnx)
        if not engine.manifest.tolerance:
            self._check(engine, plan)
        return engine

    def _check(self, engine: TensorRtEngine, plan: Path) -> None:
        """Compare with ONNX Runtime's result of the fp32 file, once."""
        file = self.manifest.find('onnx', 'fp32')
        if file is None or importlib.util.find_spec('onnxruntime') is None:
            logger.warning('%s is not compared: that needs onnxruntime and an fp32 file', plan)
            return
        reference = OnnxEngine(checked_path(self._folder, file))
        found = agreement(self.manifest, engine, reference)
        require_agreement(plan.name, found)
        record_tolerance(plan, {'test_images': found})


def _named(progress: Progress) -> Callable[[float, str], None]:
    return lambda done, phase: progress('detector', done, phase)
