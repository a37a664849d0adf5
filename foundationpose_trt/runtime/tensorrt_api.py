"""Every difference between TensorRT 8.6, 10, 11, its lean runtime and TensorRT-RTX.

The rest of the package calls these functions and knows no version. What differs was read off the
bindings of 8.6.1, 10.13, 11.4 and RTX 1.7 (shared research, roboflow.md E3); where an attribute
tells, the attribute is asked, not the version.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

from ..datatypes import require
from .specs import TensorSpec
from .tensorrt_log import LogRelay

MODULES = {  # back end -> names its Python module goes by; wheels without front end: *_bindings
    'tensorrt': ('tensorrt', 'tensorrt_bindings'),
    'tensorrt_lean': ('tensorrt_lean', 'tensorrt_lean_bindings'),
    'tensorrt_rtx': ('tensorrt_rtx', 'tensorrt_rtx_bindings'),
}
REMEDIES = {
    'tensorrt': 'pip install tensorrt onnx onnxruntime (or use the one that came with JetPack)',
    'tensorrt_lean': 'pip install tensorrt_lean',
    'tensorrt_rtx': 'pip install tensorrt-rtx-cu13-libs tensorrt-rtx-cu13-bindings onnx',
}
TORCH_TYPES = {
    'FLOAT': torch.float32,
    'HALF': torch.float16,
    'BF16': torch.bfloat16,
    'INT8': torch.int8,
    'UINT8': torch.uint8,
    'INT32': torch.int32,
    'INT64': torch.int64,
    'BOOL': torch.bool,
}

logger = logging.getLogger(__name__)


@functools.cache
def _logger_of(module: ModuleType) -> tuple[LogRelay, Any]:
    relay = LogRelay()

    class RelayingLogger(module.ILogger):  # type: ignore[name-defined]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            relay.receive(severity.name, message)

    return relay, RelayingLogger()


@dataclass(frozen=True)
class TensorRtApi:
    """One installed TensorRT. backend: 'tensorrt' | 'tensorrt_lean' | 'tensorrt_rtx'."""

    module: Any
    backend: str

    @property
    def version(self) -> str:
        """As the module tells it, such as 8.6.1."""
        return str(self.module.__version__)

    @property
    def is_rtx(self) -> bool:
        """Whether this is TensorRT-RTX: builds without a GPU, compiles when it runs."""
        return self.backend == 'tensorrt_rtx'

    @property
    def weakly_typed(self) -> bool:
        """Whether only hints keep a layer's precision (8.6): it has no strongly typed networks."""
        flags = self.module.NetworkDefinitionCreationFlag
        return self._has_precision_flags and not hasattr(flags, 'STRONGLY_TYPED')

    @property
    def _has_precision_flags(self) -> bool:
        return hasattr(self.module.BuilderFlag, 'OBEY_PRECISION_CONSTRAINTS')

    @property
    def relay(self) -> LogRelay:
        """Where its messages arrive."""
        return _logger_of(self.module)[0]

    @property
    def logger(self) -> Any:
        """The ILogger to hand to builder, parser and runtime."""
        return _logger_of(self.module)[1]

    # Building

    def network(self, builder: Any) -> Any:
        """Create an empty network: explicit batch, strongly typed where that is to be had."""
        flags = self.module.NetworkDefinitionCreationFlag
        bits = 0
        if self.weakly_typed:
            bits |= 1 << int(flags.EXPLICIT_BATCH)
        elif self._has_precision_flags:  # TensorRT 10; later ones know no other typing
            bits |= 1 << int(flags.STRONGLY_TYPED)
        return builder.create_network(bits)

    def parse_errors(self, parser: Any) -> list[str]:
        """What the ONNX parser objects to, each with the node it is about."""
        return [_parse_error(parser.get_error(i)) for i in range(parser.num_errors)]

    def set_tf32(self, config: Any, enabled: bool) -> None:
        """Allow or forbid TF32, which TensorRT allows by default, in fp32 layers."""
        (config.set_flag if enabled else config.clear_flag)(self.module.BuilderFlag.TF32)

    def allow_half(self, config: Any) -> None:
        """Let a weakly typed network (8.6) compute in half; elsewhere its file has decided.

        8.6 then chooses each layer's type by speed. Held to the types of a file of a whole
        network it finds no kernel for attention and layer norms (tried on an H100), and with
        these two in float32 the result is not nearer and takes twice the time; how near it is,
        the engine's manifest tells.
        """
        if self.weakly_typed:
            config.set_flag(self.module.BuilderFlag.FP16)

    def allow_integers(self, config: Any) -> None:
        """Let a weakly typed network (8.6) compute in 8-bit integers where its file quantizes."""
        if self.weakly_typed:
            config.set_flag(self.module.BuilderFlag.INT8)

    def take_half(self, network: Any) -> None:
        """Let inputs and outputs of a weakly typed network (8.6) be half; elsewhere they are.

        Its file must have them in single precision, as what 8.6 quantizes has to be.
        """
        if self.weakly_typed:
            inputs = [network.get_input(i) for i in range(network.num_inputs)]
            for tensor in inputs + [network.get_output(i) for i in range(network.num_outputs)]:
                if tensor.dtype.name == 'FLOAT':
                    tensor.dtype = self.module.DataType.HALF

    def share_profiles(self, config: Any) -> None:
        """Let several contexts use one optimization profile; 8.6 forbids it unless asked."""
        if self.weakly_typed:  # later ones always allow it, and call the feature deprecated
            feature = self.module.PreviewFeature.PROFILE_SHARING_0806
            config.set_preview_feature(feature, True)

    def order_channels_last(self, network: Any) -> None:
        """Let inputs and outputs in half that are images lie pixel by pixel, not by channels.

        TensorRT's HWC8 is that, up to padding, which multiples of eight channels need none of.
        """
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        for tensor in inputs + [network.get_output(i) for i in range(network.num_outputs)]:
            shape = tuple(tensor.shape)
            if tensor.dtype.name == 'HALF' and len(shape) == 4 and shape[1] % 8 == 0:
                tensor.allowed_formats = 1 << int(self.module.TensorFormat.HWC8)

    def limit_workspace(self, config: Any, nbytes: int) -> None:
        """Bound the scratch memory that a layer may use."""
        config.set_memory_pool_limit(self.module.MemoryPoolType.WORKSPACE, nbytes)

    def make_capturable(self, config: Any) -> None:
        """Let the engine do without allocations of its own, which no CUDA graph may hold (RTX)."""
        if hasattr(self.module.BuilderFlag, 'REQUIRE_USER_ALLOCATION'):
            config.set_flag(self.module.BuilderFlag.REQUIRE_USER_ALLOCATION)

    def make_version_compatible(self, config: Any) -> None:
        """Let later versions of the same major version, and the lean runtime, load the plan."""
        config.set_flag(self.module.BuilderFlag.VERSION_COMPATIBLE)

    def target(self, config: Any, capabilities: Sequence[str]) -> None:
        """Build for these compute capabilities ('8.9'); RTX alone can choose."""
        require(
            hasattr(self.module, 'ComputeCapability'),
            f'{self.backend} builds for the GPU it runs on, not for {list(capabilities)}: build'
            ' on that GPU, or with --backend tensorrt_rtx',
        )
        known = self._capabilities()
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            name = f'SM{capability.replace(".", "")}'
            require(
                name in known and config.set_compute_capability(known[name], index),
                f'compute capability "{capability}" is not among those that {self.backend}'
                f' {self.version} builds for: {", ".join(sorted(known))}',
            )

    def can_target(self, capability: str) -> bool:
        """Whether target() knows a compute capability."""
        return f'SM{capability.replace(".", "")}' in self._capabilities()

    def _capabilities(self) -> Mapping[str, Any]:
        return self.module.ComputeCapability.__members__

    def attach_timing_cache(self, config: Any, content: bytes) -> bool:
        """Let the builder reuse measured timings; False where it has none (RTX measures nothing).

        content: what timing_cache() gave, b'' to begin one.
        """
        if self.is_rtx:
            return False
        cache = config.create_timing_cache(content)
        return cache is not None and config.set_timing_cache(cache, False)

    def timing_cache(self, config: Any) -> Any:
        """Serialised timings after a build: a buffer of bytes."""
        return config.get_timing_cache().serialize()

    def attach_monitor(self, config: Any, monitor: Any) -> Any:
        """Report the build's phases to monitor; returns what must outlive it (None: 8.6 has none).

        monitor: has phase_start(name, parent, steps), step_complete(name, step) -> go on?,
        phase_finish(name).
        """
        if not hasattr(self.module, 'IProgressMonitor'):
            return None
        base = self.module.IProgressMonitor

        class Adapter(base):  # type: ignore[misc]
            def __init__(self) -> None:
                base.__init__(self)

            def phase_start(self, name: str, parent: str | None, steps: int) -> None:
                monitor.phase_start(name, parent, steps)

            def step_complete(self, name: str, step: int) -> bool:
                return bool(monitor.step_complete(name, step))

            def phase_finish(self, name: str) -> None:
                monitor.phase_finish(name)

        adapter = Adapter()
        config.progress_monitor = adapter
        return adapter

    def spec(self, tensor: Any) -> TensorSpec:
        """Name, shape and dtype of a network's input or output."""
        return TensorSpec(tensor.name, tuple(tensor.shape), self.torch_type(tensor.dtype))

    # Running

    def deserialize(self, content: bytes, host_code: bool) -> tuple[Any, Any]:
        """Return (runtime, engine), the engine None if TensorRT refuses; both must be kept.

        host_code: allow the runtime that a version-compatible plan carries.
        """
        runtime = self.module.Runtime(self.logger)
        if host_code:
            runtime.engine_host_code_allowed = True
        return runtime, runtime.deserialize_cuda_engine(content)

    def specs(self, engine: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Inputs and outputs of an engine, in its order."""
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        takes = self.module.TensorIOMode.INPUT
        both: tuple[list[TensorSpec], list[TensorSpec]] = ([], [])
        for name in names:
            dtype = self.torch_type(engine.get_tensor_dtype(name))
            shape, layout = tuple(engine.get_tensor_shape(name)), torch.contiguous_format
            if len(shape) == 4 and engine.get_tensor_format(name).name == 'HWC8':
                layout = torch.channels_last  # as order_channels_last() made it
            spec = TensorSpec(name, shape, dtype, layout)
            both[engine.get_tensor_mode(name) != takes].append(spec)
        return tuple(both[0]), tuple(both[1])

    def torch_type(self, dtype: Any) -> torch.dtype:
        """Torch's name of a TensorRT type; raises ValueError for one that torch has not."""
        require(
            dtype.name in TORCH_TYPES,
            f'TensorRT type {dtype.name} has no counterpart here, only {", ".join(TORCH_TYPES)}',
        )
        return TORCH_TYPES[dtype.name]

    def context(self, engine: Any) -> Any:
        """Create an execution context that brings no workspace of its own (None if it cannot)."""
        if not hasattr(self.module, 'ExecutionContextAllocationStrategy'):
            return engine.create_execution_context_without_device_memory()
        managed = self.module.ExecutionContextAllocationStrategy.USER_MANAGED
        if not self.is_rtx:
            return engine.create_execution_context(managed)
        config = engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(managed)
        # The graphs are ours, and what is compiled after a capture would never be in one.
        config.cuda_graph_strategy = self.module.CudaGraphStrategy.DISABLED
        eager = self.module.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = eager
        return engine.create_execution_context(config)

    def select_profile(self, context: Any, index: int, stream: torch.cuda.Stream) -> bool:
        """Give a new context its optimization profile; done on the device when this returns."""
        done = context.set_optimization_profile_async(index, stream.cuda_stream)
        stream.synchronize()
        return bool(done)

    def workspace_bytes(self, engine: Any) -> int:
        """Workspace that serves a context at the largest shape of the profile."""
        current = getattr(engine, 'device_memory_size_v2', None)
        return int(engine.device_memory_size if current is None else current)

    def give_workspace(self, context: Any, workspace: torch.Tensor) -> None:
        """Hand a context its workspace: bytes on the device."""
        if hasattr(context, 'set_device_memory'):
            context.set_device_memory(workspace.data_ptr(), workspace.nbytes)
        else:
            context.device_memory = workspace.data_ptr()


def _parse_error(error: Any) -> str:
    name = error.node_name() if hasattr(error, 'node_name') else ''
    operator = error.node_operator() if hasattr(error, 'node_operator') else ''
    where = f'node {error.node()}' if error.node() >= 0 else ''
    return ' '.join(filter(None, (where, name, operator and f'({operator})', error.desc())))


def load_api(backend: str) -> TensorRtApi:
    """Import a TensorRT; raises ValueError when it is not installed or does not load.

    backend: 'tensorrt' | 'tensorrt_lean' | 'tensorrt_rtx'.
    """
    require(backend in MODULES, f'backend is "{backend}", must be one of {", ".join(MODULES)}')
    for name in MODULES[backend]:
        try:
            return TensorRtApi(importlib.import_module(name), backend)
        except (ImportError, OSError) as error:
            if isinstance(error, ModuleNotFoundError) and error.name == name:
                continue
            raise ValueError(
                f'{backend} is installed but does not load ({error}): install the one for this'
                f" machine's CUDA and Python, {REMEDIES[backend]}"
            ) from error
    raise ValueError(f'{backend} is not installed: {REMEDIES[backend]}')


def installed(backend: str) -> bool:
    """Whether a TensorRT can be imported; says nothing of a GPU."""
    try:
        load_api(backend)
    except ValueError as error:
        logger.debug('%s', error)
        return False
    return True
