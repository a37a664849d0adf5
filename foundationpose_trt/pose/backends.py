"""Which back end runs the two networks, where its files are, and why it was chosen."""

from __future__ import annotations

import importlib.util
import logging
import os
import shlex
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..datatypes import require
from ..runtime.build import DEFAULT_BATCHES, BuildOptions, current, ensure_engine
from ..runtime.choice import BackendChoice, default_folder, fitting_tensorrt, require_serves
from ..runtime.engine import Engine
from ..runtime.engine_manifest import (
    Platform,
    check_engine,
    keep_tolerance,
    read_manifest,
    sha256_of,
)
from ..runtime.onnx_engine import OnnxEngine
from ..runtime.specs import BATCH, TensorSpec, normalized
from ..runtime.tensorrt_api import installed, load_api
from ..runtime.tensorrt_engine import TensorRtEngine
from ..runtime.torch_engine import TorchEngine
from ..runtime.workspace import Workspace
from .crops import CROP_PX, OBSERVED, RENDERED
from .export import (
    FUSED,
    STEPS,
    ensure_onnx,
    export_request,
    exported_weights,
    source_file,
)
from .networks import scaled
from .self_check import (
    CROPS,
    RENDERED_CROPS,
    measured_tolerance,
    reference_of,
    require_agreement,
)
from .weights import PRECISIONS, PoseNetworks

BACKENDS = ('auto', 'torch', 'onnxruntime', 'tensorrt', 'tensorrt_rtx')
KINDS = ('refiner', 'extractor')  # ranking stays in torch: a few small products per registration
FEATURES = 512  # channels of a crop's features at width 1, foundationpose.md §1
COMPARED_WITH = 'weights_sha256'  # in an engine's tolerance
CROP = (BATCH, 6, CROP_PX, CROP_PX)

Progress = Callable[[str, float, str], None]  # network, fraction done, phase
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NetworkEngines:
    """The engines of one weight set. explanation: which back end, and why, for the log.

    largest: crops that both run at once, None for any number.
    """

    refiner: Engine
    features: Engine
    explanation: str
    largest: int | None = None

    @property
    def crop(self) -> TensorSpec:
        """What both take as crops: the dtype and the layout of the buffers to write."""
        return self.refiner.inputs[0]


def open_engines(
    networks: PoseNetworks, choice: BackendChoice | None = None, progress: Progress | None = None
) -> NetworkEngines:
    """Make the engines of a weight set on the device where its networks are.

    Raises ValueError, naming what to install, choose or run, when the back end cannot serve.
    """
    choice = choice or BackendChoice()
    backend, reason = _chosen(networks, choice)
    logger.info('networks run on %s: %s', backend, reason)
    if backend == 'torch':
        engines = _torch_engines(networks)
    elif backend == 'onnxruntime':
        engines = [OnnxEngine(exported(networks, kind, choice, backend)) for kind in KINDS]
    else:
        return _Plans(networks, choice, backend, progress).opened(reason)
    return NetworkEngines(engines[0], engines[1], f'{backend} ({reason})')


def _chosen(networks: PoseNetworks, choice: BackendChoice) -> tuple[str, str]:
    on_cuda = networks.device.type == 'cuda'
    if choice.backend != 'auto':
        require_serves(choice.backend, BACKENDS, networks.device)
        return choice.backend, 'asked for'
    return (_automatic_on_cuda if on_cuda else _automatic_on_cpu)(networks, choice)


def _automatic_on_cpu(networks: PoseNetworks, choice: BackendChoice) -> tuple[str, str]:
    if not is_exportable(networks):
        return 'torch', 'the networks are no weight set that could be exported'
    missing = [name for name in ('onnxruntime', 'onnx') if importlib.util.find_spec(name) is None]
    if missing:
        return 'torch', f'{" and ".join(missing)} not installed'
    folder = choice.folder or default_folder()
    if not _writable(folder):
        return 'torch', f'{folder}, where the ONNX files would go, cannot be written'
    return 'onnxruntime', 'faster than torch on a CPU'


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _automatic_on_cuda(networks: PoseNetworks, choice: BackendChoice) -> tuple[str, str]:
    def plans_of(backend: str) -> list[Path]:
        return [plan_path(networks, kind, choice, backend) for kind in KINDS]

    def check(plan: Path, platform: Platform) -> None:
        remedy = build_command(networks, choice, platform.backend)
        check_engine(plan, platform, remedy=remedy)
        # plan_path() names engines and puts each back end's into a folder of its own
        expected = onnx_path(networks, plan.stem, choice, platform.backend)
        require_same_weights(networks, plan, source_of(plan, expected), remedy)

    may_build = choice.build and is_exportable(networks)
    backend, reason = fitting_tensorrt(plans_of, networks.device, may_build, check)
    return backend or 'torch', reason


def require_same_weights(
    networks: PoseNetworks, plan: Path, onnx: Path | None, remedy: str
) -> None:
    """Raise ValueError where the exported file, which an engine was built from, is of others.

    Where that file or the weights' own are gone, nothing can be told and nothing is raised.
    """
    told = None if onnx is None else exported_weights(onnx)
    own = weights_sha256(networks, plan.stem)
    require(
        told is None or own is None or told == own,
        f'{plan} is of other weights than {networks.source}, of the same name: build it again:'
        f' {remedy}',
    )


def source_of(plan: Path, expected: Path) -> Path | None:
    """Return the exported file that an engine was built from; None where it is gone.

    expected: where it would be today (onnx_path); of another form it lies beside that.
    """
    with suppress(ValueError):  # without a manifest: opening the engine tells
        expected = expected.with_name(Path(read_manifest(plan).onnx).name)
    return expected if expected.is_file() else None


def build_command(networks: PoseNetworks, choice: BackendChoice, backend: str) -> str:
    """How the engines of a weight set are built, so that they are found."""
    words = ['foundationpose-trt', 'build', '--weights', str(networks.source or networks.name)]
    words += ['--precision', _precision(networks), '--backend', backend]
    words += [] if choice.folder is None else ['--out', str(choice.folder)]
    return f'`{shlex.join(words)}`, or start the node with build_engines:=true'


def weights_sha256(networks: PoseNetworks, kind: str) -> str | None:
    """Return the SHA-256 of the file with a network's weights, None where there is none."""
    if networks.source is None:
        return None
    return sha256_of(source_file(str(networks.source), kind))


def is_exportable(networks: PoseNetworks) -> bool:
    """Whether the networks came from files, so that what is exported can be told from others."""
    return networks.source is not None


def _precision(networks: PoseNetworks) -> str:
    return next(name for name, dtype in PRECISIONS.items() if dtype == networks.dtype)


def attention_form(networks: PoseNetworks, kind: str, backend: str) -> str:
    """How the attention of a network is exported for a back end (export.ATTENTIONS).

    In steps where the fused one is the slower: in the refiner, in half, of TensorRT 8.6, where
    the build of an extractor in steps came to no end.
    """
    may = kind == 'refiner' and _precision(networks) == 'fp16' and backend == 'tensorrt'
    return STEPS if may and installed(backend) and load_api(backend).weakly_typed else FUSED


def onnx_path(networks: PoseNetworks, kind: str, choice: BackendChoice, backend: str) -> Path:
    """Return where the ONNX file of a network belongs: by set, width, precision and form."""
    folder = choice.folder or default_folder()
    form = attention_form(networks, kind, backend)
    file = f'{kind}.onnx' if form == FUSED else f'{kind}_{form}.onnx'
    return folder / f'{networks.name}_{_precision(networks)}' / file


def plan_path(networks: PoseNetworks, kind: str, choice: BackendChoice, backend: str) -> Path:
    """Return where the engine of a network belongs."""
    place = '_'.join([backend, *map(str, choice.batches or ())])
    return onnx_path(networks, kind, choice, backend).parent / place / f'{kind}.engine'


def exported(networks: PoseNetworks, kind: str, choice: BackendChoice, backend: str) -> Path:
    """Return the network's ONNX file, written now if the one there is missing or another's."""
    require(
        networks.source is not None,
        f'weights {networks.name} were not loaded from files: only backend torch can run them',
    )
    path, precision = onnx_path(networks, kind, choice, backend), _precision(networks)
    form = attention_form(networks, kind, backend)
    request = export_request(str(networks.source), kind, precision, attention=form)
    if ensure_onnx(networks, request, path):
        logger.info('exported %s', path)
    return path


def _torch_engines(networks: PoseNetworks) -> list[Engine]:
    on_cuda = networks.device.type == 'cuda'
    layout = torch.channels_last if on_cuda else torch.contiguous_format
    inputs = [TensorSpec(name, CROP, networks.dtype, layout) for name in (RENDERED, OBSERVED)]
    channels = scaled(FEATURES, networks.scorer.width)

    def engine(kind: str, function: Any, sizes: dict[str, int]) -> Engine:
        outputs = [TensorSpec(n, (BATCH, size), networks.dtype) for n, size in sizes.items()]
        return TorchEngine(f'{networks.name} {kind}', function, inputs, outputs, networks.device)

    return [
        engine('refiner', networks.refiner, {'trans': 3, 'rot': 3}),
        engine('extractor', networks.scorer.extract, {'features': channels}),
    ]


@dataclass(frozen=True)
class _Plans:
    """TensorRT engines of a weight set, checked or built."""

    networks: PoseNetworks
    choice: BackendChoice
    backend: str
    progress: Progress | None

    def opened(self, reason: str) -> NetworkEngines:
        """Open the engines; the explanation says where they are not tuned as they would be."""
        refiner, features = self.engines()
        explanation = f'{self.backend} ({reason})'
        batches = refiner.manifest.batches
        if batches != (self.choice.batches or DEFAULT_BATCHES):
            explanation += f', its engines tuned for {", ".join(map(str, batches))} crops'
        largest = min(batches[-1], features.manifest.batches[-1])
        return NetworkEngines(refiner, features, explanation, largest)

    def engines(self) -> list[TensorRtEngine]:
        """Open the engines of KINDS; the estimator runs one after the other: on one workspace."""
        workspace = Workspace(normalized(self.networks.device))
        engines = [self._engine(kind, workspace) for kind in KINDS]
        for kind, engine in zip(KINDS, engines, strict=True):
            self._require_trusted(engine, kind)
        return engines

    def _engine(self, kind: str, workspace: Workspace) -> TensorRtEngine:
        plan = self._plan(kind)
        remedy = build_command(self.networks, self.choice, self.backend)
        source: Path | None
        if self.choice.build:
            source = onnx = exported(self.networks, kind, self.choice, self.backend)
            options = BuildOptions(backend=self.backend, batches=self.choice.batches)
            with current(self.networks.device):
                ensure_engine(onnx, plan, options, self._reporter(kind))
        else:  # of a file just exported nothing has to be asked
            expected = onnx_path(self.networks, kind, self.choice, self.backend)
            source = source_of(plan, expected)
            require_same_weights(self.networks, plan, source, remedy)
        return TensorRtEngine(plan, self.networks.device, source, workspace, remedy=remedy)

    def _plan(self, kind: str) -> Path:
        return plan_path(self.networks, kind, self.choice, self.backend)

    def _require_trusted(self, engine: TensorRtEngine, kind: str) -> None:
        """Compare an engine with these weights, once; what was found is judged at every start."""
        plan, own = self._plan(kind), weights_sha256(self.networks, kind)
        known = {**engine.manifest.tolerance}
        compared_with = known.pop(COMPARED_WITH, None)
        if own is None or compared_with != own or RENDERED_CROPS not in known:
            largest = engine.manifest.batches[-1]
            batch = min(CROPS, largest) if engine.manifest.any_batch else largest
            known = measured_tolerance(engine, reference_of(self.networks, kind), batch)
            keep_tolerance(plan, {**known, COMPARED_WITH: own})
        require_agreement(plan.name, known, 'use backend torch, and report it with the .log file')

    def _reporter(self, kind: str) -> Callable[[float, str], None] | None:
        report = self.progress
        return None if report is None else lambda done, phase: report(kind, done, phase)
