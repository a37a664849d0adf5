"""From an ONNX file to a TensorRT engine with its manifest, whole or not at all."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import torch

from ..datatypes import require
from .build_progress import BuildMonitor
from .engine_manifest import (
    EngineManifest,
    Platform,
    beside,
    check_engine,
    covers,
    profile_ranges,
    sha256_of,
    write_atomically,
    write_manifest,
)
from .specs import BATCH, TensorSpec
from .tensorrt_api import TensorRtApi, installed, load_api
from .tensorrt_log import ErrorList

BACKENDS = ('auto', 'tensorrt', 'tensorrt_rtx')
PRECISIONS = ('auto', 'fp32', 'tf32', 'fp16', 'int8')
DEFAULT_BATCHES = (1, 8, 64, 126)  # track one, or some; register pruned, or half of all at once
# What RTX builds for when told nothing (its documentation, "CPU-Only AOT"); 9.0 is not among them.
RTX_CAPABILITIES = ('8.0', '8.6', '8.9', '12.0+')
ENGINE_SUFFIX = '.engine'

Progress = Callable[[float, str], None]  # fraction done, the phase that runs
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    precision: the ONNX file decides between fp32, fp16 and int8 ('auto'); named, it must agree.
    'tf32' lets the layers of an fp32 file round their inputs to 10 bits of mantissa. batches:
    sizes to tune for, rising, where the file leaves the batch free; every size from 1 to the last
    runs, with the kernels of the next larger one. default_batches: those of a new engine where
    batches is None; one that is there may have others. workspace_bytes: bound for one layer's
    scratch memory (None: TensorRT's). backend: 'auto' is tensorrt, or tensorrt_rtx where torch
    sees no GPU or no TensorRT is installed. version_compatible: later versions load it too.
    compute_capabilities: of the GPUs to build for, such as '7.5' (RTX alone; by default its own
    choice, or the GPU here where that leaves it out). channels_last: let inputs and outputs in
    half that are images lie in memory pixel by pixel, as convolutions read and write them
    (torch.channels_last). half_io: let inputs and outputs of a quantized file be half with
    TensorRT 8.6, for which the file has them in single precision.
    """

    precision: str = 'auto'
    batches: tuple[int, ...] | None = None
    workspace_bytes: int | None = None
    backend: str = 'auto'
    version_compatible: bool = False
    compute_capabilities: tuple[str, ...] = ()
    channels_last: bool = False
    half_io: bool = False
    default_batches: tuple[int, ...] = DEFAULT_BATCHES

    def __post_init__(self) -> None:
        for name, choices in (('precision', PRECISIONS), ('backend', BACKENDS)):
            value = getattr(self, name)
            require(value in choices, f'{name} is "{value}", must be one of {", ".join(choices)}')
        sizes = self.default_batches if self.batches is None else self.batches
        require(
            len(sizes) > 0 and sizes[0] >= 1 and sorted(set(sizes)) == list(sizes),
            f'batches are {sizes}, must be one or more rising numbers from 1',
        )
        require(
            self.workspace_bytes is None or self.workspace_bytes > 0,
            f'workspace_bytes is {self.workspace_bytes}, must be positive',
        )


def platform_of(api: TensorRtApi, device: str | torch.device = 'cuda') -> Platform:
    """TensorRT's version and the GPU of a torch device; no GPU where torch sees none."""
    if not torch.cuda.is_available():
        return Platform(api.backend, api.version)
    properties = torch.cuda.get_device_properties(device)
    capability = f'{properties.major}.{properties.minor}'
    return Platform(api.backend, api.version, properties.name, capability)


def current(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the current one, which engines are built for; a CPU changes nothing."""
    return torch.cuda.device(device) if device.type == 'cuda' else nullcontext()


def choose_backend(backend: str) -> str:
    """Turn 'auto' into the back end that can build here."""
    if backend != 'auto':
        return backend
    if not torch.cuda.is_available():
        chosen, reason = 'tensorrt_rtx', 'torch sees no GPU, and it alone builds without one'
    elif installed('tensorrt'):
        chosen, reason = 'tensorrt', 'it is installed and there is a GPU'
    else:
        chosen, reason = 'tensorrt_rtx', 'tensorrt is not installed'
    logger.info('building with %s: %s', chosen, reason)
    return chosen


def build_engine(
    onnx: Path,
    plan: Path,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> EngineManifest:
    """Build an engine from an ONNX file and return its manifest.

    Beside the engine come `.json` (the manifest, written last: an engine without it is not
    loaded), `.log` (what TensorRT said) and, where timings are measured, `.timing`, which speeds
    up the next build. progress is called while it builds with the fraction done, which never
    falls, and the phase; TensorRT 8.6 tells none.

    Raises ValueError when TensorRT is missing, the file does not parse (listing what the parser
    objects to), disagrees with the options, or cannot be built; KeyboardInterrupt and what
    progress raises end the build. Nothing of the engine has changed then.
    """
    options = options or BuildOptions()
    require(onnx.is_file(), f'{onnx}: there is no such ONNX file')
    api = load_api(choose_backend(options.backend))
    platform = platform_of(api)
    _check_platform(platform)
    options = _aimed(options, api, platform)
    plan.parent.mkdir(parents=True, exist_ok=True)
    with beside(plan, 'log').open('w', encoding='utf-8') as log:
        return _Build(api, platform, options, log).run(onnx, plan, BuildMonitor(progress))


def ensure_engine(
    onnx: Path,
    plan: Path,
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> EngineManifest:
    """Return the manifest of the engine if it fits and is as the options say, else build it.

    An engine that fits but for channels_last stays: it runs as well, if slower.
    Raises ValueError as build_engine, and where no engine of this TensorRT runs on the GPU here.
    """
    options = options or BuildOptions()
    api = load_api(choose_backend(options.backend))
    platform = platform_of(api)
    require_serves_gpu(api, platform)
    try:
        manifest = check_engine(plan, platform, onnx)
    except ValueError as error:
        logger.info('%s', error)
        return build_engine(onnx, plan, options, progress)
    as_wanted = options.precision in ('auto', manifest.precision)
    as_wanted &= options.batches in (None, manifest.batches)
    as_wanted &= options.version_compatible == manifest.version_compatible
    as_wanted &= options.compute_capabilities in ((), manifest.compute_capabilities)
    return manifest if as_wanted else build_engine(onnx, plan, options, progress)


def require_serves_gpu(api: TensorRtApi, platform: Platform) -> None:
    """Raise ValueError where RTX builds no engine that the GPU here could run."""
    here = platform.compute_capability
    require(
        not _left_out(api, platform) or api.can_target(str(here)),
        f'{api.backend} {api.version} builds no engine for {platform.gpu} (compute capability'
        f' {here}): install tensorrt, or choose backend auto',
    )


def _left_out(api: TensorRtApi, platform: Platform) -> bool:
    """Whether RTX, told nothing, builds what the GPU here cannot run."""
    here = platform.compute_capability
    return api.is_rtx and here is not None and not covers(RTX_CAPABILITIES, here)


def _aimed(options: BuildOptions, api: TensorRtApi, platform: Platform) -> BuildOptions:
    """Aim RTX at the GPU here, where its own choice leaves that out and it knows it.

    An engine for none that is here is still built: it may be meant for another machine.
    """
    here = str(platform.compute_capability)
    if options.compute_capabilities or not _left_out(api, platform) or not api.can_target(here):
        return options
    return replace(options, compute_capabilities=(here,))


def _check_platform(platform: Platform) -> None:
    require(
        platform.gpu is not None or platform.backend == 'tensorrt_rtx',
        f'{platform.backend} builds for the GPU of this machine, and torch sees none: build on'
        ' the machine that will run the engine, or with --backend tensorrt_rtx',
    )


class _Build:
    """One build: the log, the errors in it, and the steps from file to plan."""

    def __init__(
        self, api: TensorRtApi, platform: Platform, options: BuildOptions, log: TextIO
    ) -> None:
        self.api, self.platform, self.options, self.log = api, platform, options, log
        self.errors = ErrorList()

    def run(self, onnx: Path, plan: Path, monitor: BuildMonitor) -> EngineManifest:
        """Build the plan and write it, then its manifest."""
        started = time.perf_counter()
        source_sha256 = sha256_of(onnx)
        self.api.relay.interrupted = False
        with self.api.relay.to(self._write), self.api.relay.to(self.errors):
            builder = self._builder()
            network, parser = self._parse(builder, onnx)
            if self.options.half_io and _precision_of(network) == 'int8':
                self.api.take_half(network)
            inputs, outputs = self._specs(network, onnx)
            if self.options.channels_last:
                self.api.order_channels_last(network)
            batches = self._batches(inputs, onnx)
            config = self._config(builder, inputs, batches)
            precision = self._set_precision(config, network, onnx)
            content = self._serialize(builder, network, config, plan, monitor)
            del parser  # holds the weights that the network refers to
        write_atomically(plan, content)
        rtx = self.api.is_rtx
        capability = self.platform.compute_capability or ''
        targets = self.options.compute_capabilities or RTX_CAPABILITIES
        manifest = EngineManifest(
            onnx=str(onnx.resolve()),
            onnx_sha256=source_sha256,
            plan_sha256=hashlib.sha256(content).hexdigest(),
            backend=self.api.backend,
            version=self.api.version,
            version_compatible=self.options.version_compatible,
            gpu=None if rtx else self.platform.gpu,
            compute_capabilities=targets if rtx else (capability,),
            precision=precision,
            inputs=inputs,
            outputs=outputs,
            batches=batches,
            build_seconds=round(time.perf_counter() - started, 3),
        )
        write_manifest(manifest, plan)
        return manifest

    def _write(self, severity: str, message: str) -> None:
        if severity != 'VERBOSE':
            self.log.write(f'{severity} {message}\n')

    def _fail(self, what: str) -> ValueError:
        return ValueError(f'{what}: {self.errors}; its whole log is in {self.log.name}')

    def _builder(self) -> Any:
        try:
            return self.api.module.Builder(self.api.logger)
        except (TypeError, RuntimeError) as error:  # how pybind reports a null pointer
            raise self._fail(f'{self.api.backend} {self.api.version} cannot start') from error

    def _parse(self, builder: Any, onnx: Path) -> tuple[Any, Any]:
        network = self.api.network(builder)
        parser = self.api.module.OnnxParser(network, self.api.logger)
        if parser.parse_from_file(str(onnx)):
            return network, parser
        faults = '; '.join(self.api.parse_errors(parser)) or str(self.errors)
        raise ValueError(
            f'{onnx} does not parse with {self.api.backend} {self.api.version}: {faults}; export'
            f" it again with `foundationpose-trt export`; TensorRT's log is in {self.log.name}"
        )

    def _specs(
        self, network: Any, onnx: Path
    ) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        _flatten_rows(network)
        try:
            inputs = [self.api.spec(network.get_input(i)) for i in range(network.num_inputs)]
            outputs = [self.api.spec(network.get_output(i)) for i in range(network.num_outputs)]
        except ValueError as error:
            raise ValueError(f'{onnx}: {error}') from error
        return tuple(inputs), tuple(outputs)

    def _batches(self, inputs: tuple[TensorSpec, ...], onnx: Path) -> tuple[int, ...]:
        if any(spec.shape[:1] == (BATCH,) for spec in inputs):
            return self.options.batches or self.options.default_batches
        size = inputs[0].shape[0]
        require(
            self.options.batches in (None, (size,)),
            f'{onnx} has a fixed batch of {size}, so batches {self.options.batches} cannot be'
            ' built from it; export it with --batch dynamic',
        )
        return (size,)

    def _config(
        self, builder: Any, inputs: tuple[TensorSpec, ...], batches: tuple[int, ...]
    ) -> Any:
        config = builder.create_builder_config()
        free = [spec for spec in inputs if spec.shape[:1] == (BATCH,)]
        for low, size in profile_ranges(batches) if free else ():
            profile = builder.create_optimization_profile()
            for spec in free:
                profile.set_shape(spec.name, *map(spec.sized, (low, size, size)))
            if config.add_optimization_profile(profile) < 0:
                raise self._fail(f'TensorRT refuses batches of {low}..{size}')
        self.api.share_profiles(config)
        self.api.make_capturable(config)
        if self.options.workspace_bytes:
            self.api.limit_workspace(config, self.options.workspace_bytes)
        if self.options.version_compatible:
            self.api.make_version_compatible(config)
        if self.options.compute_capabilities:
            self.api.target(config, self.options.compute_capabilities)
        return config

    def _set_precision(self, config: Any, network: Any, onnx: Path) -> str:
        """Type the network as its file says; returns the precision that gives."""
        found, wanted = _precision_of(network), self.options.precision
        agrees = wanted in ('auto', found) or (wanted == 'tf32' and found == 'fp32')
        asked = 'fp32' if wanted == 'tf32' else wanted
        make = 'build --weights SET' if asked == 'int8' else 'export'
        require(
            agrees,
            f'{onnx} is {found}, not {wanted}: the file decides the precision of its layers; make'
            f' one with `foundationpose-trt {make} --precision {asked}`',
        )
        self.api.set_tf32(config, wanted == 'tf32')
        if found in ('fp16', 'int8'):
            self.api.allow_half(config)
        if found == 'int8':
            self.api.allow_integers(config)
        return 'tf32' if wanted == 'tf32' else found

    def _serialize(
        self, builder: Any, network: Any, config: Any, plan: Path, monitor: BuildMonitor
    ) -> Any:
        timing = beside(plan, 'timing')
        known = timing.read_bytes() if timing.is_file() else b''
        # Timings of another TensorRT or GPU are refused: begin anew.
        cached = self.api.attach_timing_cache(config, known) or (
            bool(known) and self.api.attach_timing_cache(config, b'')
        )
        self.errors.messages.clear()
        adapter = self.api.attach_monitor(config, monitor)
        content = builder.build_serialized_network(network, config)
        del adapter
        monitor.raise_failure()
        if self.api.relay.interrupted:
            raise KeyboardInterrupt
        if content is None:
            raise self._fail(f'{self.api.backend} {self.api.version} cannot build {plan.name}')
        if cached:
            write_atomically(timing, self.api.timing_cache(config))
        monitor.finish()
        return content


def _flatten_rows(network: Any) -> None:
    """Make outputs of shape (1, any) vectors: the batch comes first in all that runs here.

    The official scorers give their scores as one row.
    """
    outputs = [network.get_output(i) for i in range(network.num_outputs)]
    for row in outputs:
        if tuple(row.shape) == (1, BATCH):
            name, row.name = row.name, f'{row.name}_row'
            network.unmark_output(row)
            flat = network.add_shuffle(row)
            flat.reshape_dims = (BATCH,)
            flat.get_output(0).name = name
            network.mark_output(flat.get_output(0))


def _precision_of(network: Any) -> str:
    types = {network.get_input(i).dtype.name for i in range(network.num_inputs)}
    kinds = {network.get_layer(i).type.name for i in range(network.num_layers)}
    if 'QUANTIZE' in kinds:
        return 'int8'
    for layer in (network.get_layer(i) for i in range(network.num_layers)):
        if layer.type.name == 'CONSTANT':
            continue  # weights may be stored in half and cast before they are used
        types.update(layer.get_output(i).dtype.name for i in range(layer.num_outputs))
    return 'fp16' if 'HALF' in types else 'fp32'
