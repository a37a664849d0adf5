"""Which back end runs a detector, where its files are, and why it was chosen."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..datatypes import require
from ..runtime.build import BuildOptions, current, ensure_engine, platform_of
from ..runtime.choice import (
    TENSORRT,
    BackendChoice,
    default_folder,
    fitting_tensorrt,
    require_serves,
)
from ..runtime.engine import Engine
from ..runtime.engine_manifest import (
    Platform,
    beside,
    check_engine,
    fits_platform,
    keep_tolerance,
)
from ..runtime.engine_manifest import read_manifest as read_engine_manifest
from ..runtime.onnx_engine import OnnxEngine
from ..runtime.specs import BATCH, TensorSpec
from ..runtime.tensorrt_api import load_api
from ..runtime.tensorrt_engine import TensorRtEngine
from ..runtime.torch_engine import load_torchscript
from .agreement import UntrustedEngineError, agreement, is_agreement, require_agreement
from .half import write_half
from .manifest import DYNAMIC, DetectorManifest, ModelFile, checked_path, read_manifest

BACKENDS = ('auto', 'torchscript', 'onnxruntime', 'tensorrt', 'tensorrt_rtx')
DTYPES = {'fp32': torch.float32, 'fp16': torch.float16}
DETECTOR_BATCHES = (1,)
COMPARED = 'test_images'  # what an engine's manifest calls the result
BUILD_IT = 'start the node with build_engines:=true, where TensorRT is installed'

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
    try:
        return opening.opened(progress)
    except UntrustedEngineError as error:
        if not opening.distrust_half():
            raise
        logger.warning('%s; precision is auto, so it runs in fp32', error)
    return opening.opened(progress)  # out here the engine that is not trusted is let go


def serving_backend(folder: Path, device: str, choice: BackendChoice) -> str:
    """Return the back end that open_detector would take, without opening anything.

    Raises ValueError where none can serve.
    """
    opening = _Opening(folder, torch.device(device), 'auto', choice)
    backend, reason = opening.chosen()
    if backend == 'torchscript':
        opening.traced(reason)
    return backend


class _Opening:
    """What one call of open_detector works with."""

    def __init__(
        self, folder: Path, device: torch.device, precision: str, choice: BackendChoice
    ) -> None:
        self.manifest = read_manifest(folder)
        self._folder, self._device = folder, device
        self._asked, self._choice = precision, choice
        self._distrusted = False  # that an engine in half computes what it should

    def opened(self, progress: Progress | None) -> OpenedDetector:
        """Choose a back end and load the network."""
        backend, reason = self.chosen()
        self.require_precision(backend, reason)
        if self._asked == 'auto' and backend in TENSORRT and self._is_distrusted(backend):
            reason += '; in fp32, as its engine in half is not to be trusted'
        logger.info('detector %s runs on %s: %s', self.manifest.name, backend, reason)
        if backend == 'onnxruntime':
            engine: Engine = OnnxEngine(self.path(backend))
        elif backend == 'torchscript':
            engine = self.torchscript(reason)
        else:
            engine = self.tensorrt(backend, progress)
        return OpenedDetector(self.manifest, engine, f'{backend} ({reason})')

    def distrust_half(self) -> bool:
        """Choose no engine in half from now on; False where that would change nothing."""
        changes = self._asked == 'auto' and not self._distrusted
        self._distrusted = True
        return changes

    def chosen(self) -> tuple[str, str]:
        """Return the back end and why."""
        if self._choice.backend != 'auto':
            require_serves(self._choice.backend, BACKENDS, self._device)
            return self._choice.backend, 'asked for'
        return self._chosen_on_cuda() if self._device.type == 'cuda' else self._chosen_on_cpu()

    def _chosen_on_cuda(self) -> tuple[str, str]:
        if not any(file.kind == 'onnx' for file in self.manifest.files):
            return 'torchscript', f'{self._folder} holds no ONNX file'
        backend, reason = fitting_tensorrt(
            lambda backend: [self.plan(backend)], self._device, self._choice.build, self._check_fit
        )
        return backend or 'torchscript', reason

    def _check_fit(self, plan: Path, platform: Platform) -> None:
        """Raise ValueError where an engine is not the one for this model's file."""
        onnx = self._onnx(platform.backend)
        check_engine(plan, platform, onnx if onnx.is_file() else None, BUILD_IT)

    def _chosen_on_cpu(self) -> tuple[str, str]:
        if importlib.util.find_spec('onnxruntime') is None:
            return 'torchscript', 'onnxruntime not installed'
        if self.manifest.find('onnx', 'fp32') is None:
            return 'torchscript', f'{self._folder} holds no ONNX file in fp32'
        return 'onnxruntime', 'faster than torch on a CPU'

    def precision_on(self, backend: str) -> str:
        """Return what was asked for, and of 'auto' what the back end runs best."""
        if self._asked != 'auto':
            return self._asked
        known = self.manifest.find('onnx', 'fp16') or importlib.util.find_spec('onnx')
        half = backend in TENSORRT and known is not None and not self._is_distrusted(backend)
        return 'fp16' if half else 'fp32'

    def _is_distrusted(self, backend: str) -> bool:
        """Whether the engine in half has been found to compute something else, now or earlier."""
        plan = self._plan(backend, 'fp16')
        if self._distrusted or not beside(plan, 'json').is_file():
            return self._distrusted
        try:
            built = read_engine_manifest(plan)
        except ValueError:  # of another version; building replaces it
            return False
        known = built.tolerance.get(COMPARED)
        if known is None or is_agreement(known):
            return False
        here = platform_of(load_api(backend), self._device)  # what was found elsewhere is no news
        return fits_platform(built, here)

    def require_precision(self, backend: str, reason: str) -> None:
        """Raise ValueError for half precision where there is none; reason: of the back end."""
        half = self.precision_on(backend) == 'fp16'
        require(
            not half or self._device.type == 'cuda',
            f'precision fp16 on device {self._device}: half precision needs CUDA, choose fp32',
        )
        require(
            not half or backend in TENSORRT,
            f'precision fp16 with backend {backend} ({reason}): a detector has no TorchScript in'
            f' half, choose precision auto or fp32; or TensorRT: {BUILD_IT}',
        )

    def plan(self, backend: str) -> Path:
        """Where the engine belongs."""
        return self._plan(backend, self.precision_on(backend))

    def _plan(self, backend: str, precision: str) -> Path:
        return self._home(precision) / backend / 'detector.engine'

    def _home(self, precision: str) -> Path:
        """Folder of what is made of the network's file: of that content, whatever its name."""
        file = self._source(precision)
        folder = self._choice.folder or default_folder()
        return folder / f'{self.manifest.name}_{file.sha256[:12]}_{precision}'

    def _source(self, precision: str) -> ModelFile:
        """The ONNX file to build from; of half also the one in fp32, to make it of."""
        file = self.manifest.find('onnx', precision) or self.manifest.find('onnx', 'fp32')
        require(
            file is not None,
            f'{self._folder} holds no onnx file of precision {precision}: export the detector with'
            ' it',
        )
        assert file is not None
        return file

    def _onnx(self, backend: str) -> Path:
        """Where that network is, or will be when it has been made in half."""
        precision = self.precision_on(backend)
        file = self._source(precision)
        if file.precision == precision:
            return self._folder / file.file
        return self._home(precision) / 'detector.onnx'

    def path(self, backend: str) -> Path:
        """Return the ONNX file of a back end, its content checked; half is made once if it must.

        Raises ValueError where there is none.
        """
        file, path = self._source(self.precision_on(backend)), self._onnx(backend)
        source = checked_path(self._folder, file)
        if path != source and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_half(source, path)
        return path

    def torchscript(self, reason: str) -> Engine:
        """Load the traced module for this device; reason: why it must be that."""
        manifest, file = self.manifest, self.traced(reason)
        path, dtype = checked_path(self._folder, file), DTYPES[file.precision]
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

    def traced(self, reason: str) -> ModelFile:
        """Return the traced module's file for this device; raises ValueError without."""
        file = self.manifest.find('torchscript', 'fp32', self._device.type)
        require(file is not None, self._lacks_torchscript(reason))
        assert file is not None
        return file

    def _lacks_torchscript(self, reason: str) -> str:
        device = self._device.type
        other = (
            BUILD_IT if device == 'cuda' else 'pip install onnx onnxruntime to run its ONNX file'
        )
        return (
            f'{self._folder} holds no torchscript file of precision fp32 for {device}, and nothing'
            f' else is to run it ({reason}): {other}; or export the detector with one:'
            f' `foundationpose-trt export detector --weights FILE --out {self._folder} --formats'
            f' torchscript --device {device}`'
        )

    def tensorrt(self, backend: str, progress: Progress | None) -> Engine:
        """Open the engine, built first where that is allowed; compared before its first use.

        Raises UntrustedEngineError when it computes something else.
        """
        plan, onnx = self.plan(backend), self.path(backend)
        if self._choice.build:
            free = self._source(self.precision_on(backend)).batch == DYNAMIC
            options = BuildOptions(backend=backend, batches=DETECTOR_BATCHES if free else None)
            report = None if progress is None else _named(progress)
            with current(self._device):
                ensure_engine(onnx, plan, options, report)
        engine = TensorRtEngine(plan, self._device, onnx, backend=backend, remedy=BUILD_IT)
        must = self._asked == 'auto' and self.precision_on(backend) == 'fp16'
        known = engine.manifest.tolerance.get(COMPARED) or self._compared(engine, plan, must)
        if known is not None:
            require_agreement(plan.name, known)
        return engine

    def _compared(self, engine: TensorRtEngine, plan: Path, must: bool) -> dict[str, float] | None:
        """Compare with ONNX Runtime's result of the fp32 file, once; None where nothing can.

        Raises UntrustedEngineError in that case where it must be compared.
        """
        file = self.manifest.find('onnx', 'fp32')
        if file is None or importlib.util.find_spec('onnxruntime') is None:
            lacking = f'{plan} is not compared: that needs onnxruntime and an fp32 file'
            if must:
                raise UntrustedEngineError(lacking)
            logger.warning('%s', lacking)
            return None
        found = agreement(self.manifest, engine, OnnxEngine(checked_path(self._folder, file)))
        keep_tolerance(plan, {COMPARED: found})
        return found


def _named(progress: Progress) -> Callable[[float, str], None]:
    return lambda done, phase: progress('detector', done, phase)
