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

import torch
import warp as wp

from ..datatypes import require
from ..runtime.build import DEFAULT_BATCHES, BuildOptions, current, ensure_engine
from ..runtime.choice import BackendChoice, default_folder, fitting_tensorrt, require_serves
from ..runtime.engine import Engine
from ..runtime.engine_manifest import (
    EngineManifest,
    Platform,
    check_engine,
    keep_tolerance,
    read_manifest,
    sha256_of,
)
from ..runtime.joined_engine import Ending, JoinedEngine
from ..runtime.onnx_engine import OnnxEngine
from ..runtime.specs import BATCH, TensorSpec, normalized
from ..runtime.tensorrt_api import installed, load_api
from ..runtime.tensorrt_engine import TensorRtEngine
from ..runtime.torch_engine import Function, TorchEngine
from ..runtime.workspace import Workspace
from . import heads
from .crops import PAIR, pairs_spec
from .export import (
    APART,
    FUSED,
    QUANTIZED,
    TRUNKS,
    UNTYPED,
    ensure_onnx,
    export_request,
    exported_scales,
    exported_weights,
    source_file,
)
from .network_engines import NetworkEngines as NetworkEngines
from .network_engines import PairedEngine, largest_of, of_pairs, trunk_options
from .networks import scaled
from .quantization import read_scales
from .self_check import (
    CROPS,
    RENDERED_CROPS,
    measured_tolerance,
    reference_of,
    require_agreement,
    require_ports,
)
from .weights import INT8, PoseNetworks

BACKENDS = ('auto', 'torch', 'onnxruntime', 'tensorrt', 'tensorrt_rtx')
# Of ONNX Runtime; TensorRT runs TRUNKS. Ranking stays in torch: a few products per registration.
KINDS = ('refiner', 'extractor')
FEATURES = 512  # channels of a crop's features at width 1, foundationpose.md §1
COMPARED_WITH = 'compared_with'  # in an engine's tolerance: comparison()

Progress = Callable[[str, float, str], None]  # network, fraction done, phase
logger = logging.getLogger(__name__)


def open_engines(
    networks: PoseNetworks, choice: BackendChoice | None = None, progress: Progress | None = None
) -> NetworkEngines:
    """Make the engines of a weight set on the device where its networks are.

    Raises ValueError, naming what to install, choose or run, when the back end cannot serve.
    """
    choice = choice or BackendChoice()
    backend, reason = _chosen(networks, choice)
    if networks.int8 and not backend.startswith('tensorrt'):
        builder = 'tensorrt' if installed('tensorrt') else 'tensorrt_rtx'
        raise ValueError(
            f'precision int8 is of TensorRT engines, and backend {backend} would run the networks'
            f' ({reason}): choose backend auto or {builder} with engines, built by'
            f' {build_command(networks, choice, builder)}, or precision fp16'
        )
    logger.info('networks run on %s: %s', backend, reason)
    if backend == 'torch':
        engines = _torch_engines(networks)
    elif backend == 'onnxruntime':
        files = [exported(networks, kind, choice, backend) for kind in KINDS]
        engines = [PairedEngine(OnnxEngine(file)) for file in files]
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
        return [plan_path(networks, kind, choice, backend) for kind in TRUNKS]

    def check(plan: Path, platform: Platform) -> None:
        remedy = build_command(networks, choice, platform.backend)
        check_engine(plan, platform, remedy=remedy)
        require_ports(plan, read_manifest(plan, remedy), remedy)
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

    Or, of int8, was made with other scales. Where that file or the weights' own are gone, nothing
    can be told and nothing is raised.
    """
    told = None if onnx is None else exported_weights(onnx)
    own = weights_sha256(networks, plan.stem)
    require(
        told is None or own is None or told == own,
        f'{plan} is of other weights than {networks.source}, of the same name: build it again:'
        f' {remedy}',
    )
    scales = None if onnx is None else exported_scales(onnx)
    if precision_of(networks, plan.stem) == INT8 and scales is not None and own is not None:
        assert networks.source is not None  # it has the file that `own` is of
        require(
            scales == read_scales(networks.source, own),
            f'{plan} was built with other scales than {networks.source} has now: build it again:'
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
    command = command_line(networks, choice, backend)
    return f'`{command}`, or start the node with build_engines:=true'


def command_line(networks: PoseNetworks, choice: BackendChoice, backend: str) -> str:
    """Return the command that builds the engines of a weight set, whatever is there."""
    words = ['foundationpose-trt', 'build', '--weights', str(networks.source or networks.name)]
    words += ['--precision', networks.precision, '--backend', backend]
    words += [] if choice.folder is None else ['--out', str(choice.folder)]
    return shlex.join(words)


def weights_sha256(networks: PoseNetworks, kind: str) -> str | None:
    """Return the SHA-256 of the file with a network's weights, None where there is none."""
    if networks.source is None:
        return None
    return sha256_of(source_file(str(networks.source), kind))


def comparison(networks: PoseNetworks, kind: str) -> str | None:
    """Name all that an engine's plan does not tell of what it is compared with, None if unknown.

    The weights, and what computes behind its trunk.
    """
    told = weights_sha256(networks, kind)
    if networks.source is None or told is None:
        return None
    versions = f'torch {torch.__version__}, warp {wp.__version__}, heads {heads.FORM}'
    if networks.int8 and kind == 'refiner':
        versions += f', scales {sorted(read_scales(networks.source, told).items())}'
    return f'{told}, {versions}'


def is_exportable(networks: PoseNetworks) -> bool:
    """Whether the networks came from files, so that what is exported can be told from others."""
    return networks.source is not None


def precision_of(networks: PoseNetworks, kind: str) -> str:
    """Return the precision that a network is exported in: int8 is the refiner's alone."""
    return 'fp16' if networks.int8 and kind != QUANTIZED else networks.precision


def form_of(networks: PoseNetworks, kind: str, backend: str) -> str:
    """How a network is exported for a back end (export.forms_of).

    For TensorRT 8.6, which types layers itself, int8 without types; and half with the sums apart
    for compute capability 9.0, where it has no good kernel for fused ones.
    """
    precision = precision_of(networks, kind)
    may = kind in TRUNKS and precision in ('fp16', INT8) and backend == 'tensorrt'
    if not (may and installed(backend) and load_api(backend).weakly_typed):
        return FUSED
    if precision == INT8:
        return UNTYPED
    # the weights of a build may be on the CPU: it is for the current GPU then
    device = networks.device if networks.device.type == 'cuda' else None
    newest = torch.cuda.is_available() and torch.cuda.get_device_capability(device) == (9, 0)
    return APART if newest else FUSED


def onnx_path(networks: PoseNetworks, kind: str, choice: BackendChoice, backend: str) -> Path:
    """Return where the ONNX file of a network belongs: by set, width, precision and form."""
    folder = choice.folder or default_folder()
    form = form_of(networks, kind, backend)
    file = f'{kind}.onnx' if form == FUSED else f'{kind}_{form}.onnx'
    return folder / f'{networks.name}_{networks.precision}' / file


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
    path = onnx_path(networks, kind, choice, backend)
    form = form_of(networks, kind, backend)
    precision = precision_of(networks, kind)
    request = export_request(str(networks.source), kind, precision, form=form)
    if ensure_onnx(networks, request, path):
        logger.info('exported %s', path)
    return path


def _outputs(networks: PoseNetworks, dtype: torch.dtype) -> list[list[TensorSpec]]:
    """What the engines of KINDS give."""
    channels = scaled(FEATURES, networks.scorer.width)
    sizes: list[dict[str, int]] = [{'trans': 3, 'rot': 3}, {'features': channels}]
    return [[TensorSpec(n, (BATCH, k), dtype) for n, k in one.items()] for one in sizes]


def _torch_engines(networks: PoseNetworks) -> list[Engine]:
    on_cuda = networks.device.type == 'cuda'
    layout = torch.channels_last if on_cuda else torch.contiguous_format
    inputs = [pairs_spec(networks.dtype, layout)]
    functions: list[Function] = [networks.refiner, networks.scorer.extract]
    return [
        TorchEngine(
            f'{networks.name} {kind}', of_pairs(function), inputs, outputs, networks.device
        )
        for kind, function, outputs in zip(
            KINDS, functions, _outputs(networks, networks.dtype), strict=True
        )
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
        workspace = Workspace(normalized(self.networks.device))  # one runs after the other
        refiner, features = (self._engine(kind, workspace) for kind in TRUNKS)
        self._require_alike(refiner, features)
        whole = self._joined(refiner, features)
        explanation = f'{self.backend} ({reason})'
        batches = refiner.manifest.batches
        pairs = tuple(crops // PAIR for crops in batches)
        if pairs != (self.choice.batches or DEFAULT_BATCHES):
            explanation += f', its engines tuned for {", ".join(map(str, pairs))} poses'
        return NetworkEngines(whole[0], whole[1], explanation, largest_of(refiner, features))

    def _require_alike(self, *trunks: TensorRtEngine) -> None:
        """Raise ValueError where not all trunks read the same pairs of crops.

        `build --onnx` makes such ones, without the options of trunks.
        """
        told = [
            f'{self._plan(kind)} takes {trunk.manifest.batches[-1]} crops {one.shape[1:]} of'
            f' {one.dtype} in {one.layout}'
            for kind, trunk in zip(TRUNKS, trunks, strict=True)
            for one in trunk.inputs
        ]
        command = command_line(self.networks, self.choice, self.backend)
        require(
            largest_of(*trunks) > 0 and len({trunk.inputs for trunk in trunks}) == 1,
            f'{" and ".join(told)}: they must take the same, and pairs; build both again:'
            f' `{command}`',
        )

    def _joined(self, *trunks: TensorRtEngine) -> list[JoinedEngine]:
        """Join the trunks with what comes behind them, and compare the whole with the networks."""
        networks, dtype = self.networks, self.networks.dtype
        endings: list[Ending] = [
            heads.RefinerHeads(networks.refiner, dtype),
            heads.ExtractorHead(networks.scorer, dtype),
        ]
        outputs = _outputs(networks, torch.float32)
        parts = zip(trunks, endings, outputs, strict=True)
        joined = [JoinedEngine(*each, per_output=PAIR) for each in parts]
        plans = [self._plan(kind) for kind in TRUNKS]
        for kind, plan, trunk, whole in zip(KINDS, plans, trunks, joined, strict=True):
            self._require_trusted(whole, trunk.manifest, kind, plan)
        return joined

    def _engine(self, kind: str, workspace: Workspace) -> TensorRtEngine:
        plan = self._plan(kind)
        remedy = build_command(self.networks, self.choice, self.backend)
        source: Path | None
        if self.choice.build:
            source = onnx = exported(self.networks, kind, self.choice, self.backend)
            options = trunk_options(
                BuildOptions(backend=self.backend, batches=self.choice.batches)
            )
            with current(self.networks.device):
                ensure_engine(onnx, plan, options, self._reporter(kind))
        else:  # of a file just exported nothing has to be asked
            expected = onnx_path(self.networks, kind, self.choice, self.backend)
            source = source_of(plan, expected)
            require_same_weights(self.networks, plan, source, remedy)
        engine = TensorRtEngine(plan, self.networks.device, source, workspace, remedy=remedy)
        require_ports(plan, engine.manifest, remedy)
        require(
            (engine.manifest.precision == INT8) == (precision_of(self.networks, kind) == INT8),
            f'{plan} is {engine.manifest.precision}: build it again: {remedy}',
        )
        return engine

    def _plan(self, kind: str) -> Path:
        return plan_path(self.networks, kind, self.choice, self.backend)

    def _require_trusted(
        self, engine: Engine, built: EngineManifest, kind: str, plan: Path
    ) -> None:
        """Compare an engine with these weights, once; what was found is judged at every start.

        built, plan: of its trunk.
        """
        own = comparison(self.networks, kind)
        known = {**built.tolerance}
        compared_with = known.pop(COMPARED_WITH, None)
        if own is None or compared_with != own or RENDERED_CROPS not in known:
            largest = built.batches[-1] // PAIR
            batch = min(CROPS, largest) if built.any_batch else largest
            known = measured_tolerance(engine, reference_of(self.networks, kind), batch)
            keep_tolerance(plan, {**known, COMPARED_WITH: own})
        require_agreement(plan.name, known, 'use backend torch, and report it with the .log file')

    def _reporter(self, kind: str) -> Callable[[float, str], None] | None:
        report = self.progress
        return None if report is None else lambda done, phase: report(kind, done, phase)
