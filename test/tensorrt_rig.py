"""Small ONNX files, and stand-ins for tensorrt 8.6, 10 and 11 that record how they are called.

The stand-ins have the names that the real bindings of these versions have, and lack what they
lack (read off the wheels' symbols, shared research roboflow.md E3). Their one network doubles its
input: it reads and writes the addresses it is given, in host memory.
"""

from __future__ import annotations

import ctypes
import enum
import types
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS, SIDE = 3, 16
INPUT_SHAPE = (CHANNELS, SIDE, SIDE)
WORKSPACE = 4096


def _save(nodes, inputs, outputs, weights, path: Path) -> Path:
    initial = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, 'tiny', inputs, outputs, initial)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    onnx.save(model, path)
    return path


def write_tiny(path: Path, half: bool = False, batch: int | str = 'batch', seed: int = 0) -> Path:
    """Convolution, ReLU, mean, LayerNorm: x (batch, 3, 16, 16) -> y (batch, 8) float32.

    half: convolution in fp16, LayerNorm in fp32, with the cast between them.
    """
    kind = np.float16 if half else np.float32
    rng = np.random.default_rng(seed)
    weights = {
        'w': rng.normal(size=(8, CHANNELS, 3, 3)).astype(kind),
        'scale': np.ones(8, np.float32),
        'shift': np.zeros(8, np.float32),
    }
    nodes = [
        helper.make_node('Conv', ['x', 'w'], ['c'], name='conv', pads=[1, 1, 1, 1]),
        helper.make_node('Relu', ['c'], ['r']),
        helper.make_node('ReduceMean', ['r'], ['m16'], axes=[2, 3], keepdims=0),
        helper.make_node('Cast', ['m16'], ['m'], to=TensorProto.FLOAT),
        helper.make_node('LayerNormalization', ['m', 'scale', 'shift'], ['y'], name='norm'),
    ]
    element = TensorProto.FLOAT16 if half else TensorProto.FLOAT
    x = helper.make_tensor_value_info('x', element, [batch, *INPUT_SHAPE])
    y = helper.make_tensor_value_info('y', TensorProto.FLOAT, [batch, 8])
    return _save(nodes, [x], [y], weights, path)


def write_one_node(path: Path, operator: str, shape: list, out: list, **attributes) -> Path:
    """y = operator(x), float32."""
    x = helper.make_tensor_value_info('x', TensorProto.FLOAT, shape)
    y = helper.make_tensor_value_info('y', TensorProto.FLOAT, out)
    node = helper.make_node(operator, ['x'], ['y'], name='the_node', **attributes)
    return _save([node], [x], [y], {}, path)


def write_row(path: Path) -> Path:
    """x (batch, 4) -> y (1, batch): scores as the official scorers give them."""
    x = helper.make_tensor_value_info('x', TensorProto.FLOAT, ['batch', 4])
    y = helper.make_tensor_value_info('y', TensorProto.FLOAT, [1, 'batch'])
    nodes = [
        helper.make_node('ReduceMean', ['x'], ['m'], axes=[1], keepdims=1),
        helper.make_node('Transpose', ['m'], ['y'], perm=[1, 0]),
    ]
    return _save(nodes, [x], [y], {}, path)


def write_reshape(path: Path, size: int) -> Path:
    """y = x (batch, 4) reshaped to (size,): right at one batch alone."""
    x = helper.make_tensor_value_info('x', TensorProto.FLOAT, ['batch', 4])
    y = helper.make_tensor_value_info('y', TensorProto.FLOAT, [size])
    node = helper.make_node('Reshape', ['x', 'size'], ['y'], name='the_reshape')
    return _save([node], [x], [y], {'size': np.array([size], np.int64)}, path)


class DataType(enum.Enum):
    FLOAT = 0
    HALF = 1
    INT32 = 3


class Mode(enum.Enum):
    INPUT = 1
    OUTPUT = 2


class Format(enum.Enum):
    LINEAR = 0
    HWC8 = 2


class Tensor:
    def __init__(self, name: str, shape: tuple[int, ...], dtype: DataType) -> None:
        self.name, self.shape, self.dtype = name, shape, dtype


class Layer:
    """A layer and what flows through it."""

    def __init__(self, kind: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        self.type = types.SimpleNamespace(name=kind)
        self._inputs, self._outputs = inputs, outputs
        self.num_inputs, self.num_outputs = len(inputs), len(outputs)

    def get_input(self, index: int) -> Tensor:
        return self._inputs[index]

    def get_output(self, index: int) -> Tensor:
        return self._outputs[index]


def mixed_layers() -> dict[str, Layer]:
    """x half -> conv -> cast to float -> norm (with constants) -> y, and an integer shape beside.

    As in a weakly typed network of TensorRT 8.6, where no layer's own output says half.
    """
    half, single, whole = DataType.HALF, DataType.FLOAT, DataType.INT32
    x = Tensor('x', (-1, *INPUT_SHAPE), half)
    c, m = Tensor('c', (-1, 8), single), Tensor('m', (-1, 8), single)
    y, scale = Tensor('y', (-1, *INPUT_SHAPE), single), Tensor('scale', (8,), single)
    weights, size = Tensor('w', (8, 3), half), Tensor('size', (4,), whole)
    return {
        'weights': Layer('CONSTANT', [], [weights]),
        'conv': Layer('CONVOLUTION', [x, weights], [c]),
        'shape': Layer('SHAPE', [x], [size]),
        'cast': Layer('CAST', [c], [m]),
        'scale': Layer('CONSTANT', [], [scale]),
        'norm': Layer('NORMALIZATION', [m, scale], [y]),
    }


class Network:
    def __init__(self, half: bool, quantized: bool = False) -> None:
        self.layers = mixed_layers()
        self._listed = list(self.layers.values()) if half else []
        self._listed += [Layer('QUANTIZE', [], [])] * quantized
        dtype = DataType.HALF if half else DataType.FLOAT
        self._x = Tensor('x', (-1, *INPUT_SHAPE), dtype)
        self._y = Tensor('y', (-1, *INPUT_SHAPE), DataType.FLOAT)
        self.num_inputs = self.num_outputs = 1
        self.num_layers = len(self._listed)

    def get_layer(self, index: int) -> Layer:
        return self._listed[index]

    def get_input(self, index: int) -> Tensor:
        return self._x

    def get_output(self, index: int) -> Tensor:
        return self._y


class Config:
    """Records flags; DeprecationWarnings of real versions are absences here."""

    def __init__(self) -> None:
        self.flags: dict[str, bool] = {}
        self.limits: dict[str, int] = {}
        self.previews: dict[str, bool] = {}
        self.cache: bytes | None = None

    def set_flag(self, flag: enum.Enum) -> None:
        self.flags[flag.name] = True

    def clear_flag(self, flag: enum.Enum) -> None:
        self.flags[flag.name] = False

    def set_preview_feature(self, feature: enum.Enum, enabled: bool) -> None:
        self.previews[feature.name] = enabled

    def set_memory_pool_limit(self, pool: enum.Enum, nbytes: int) -> None:
        self.limits[pool.name] = nbytes

    def add_optimization_profile(self, profile: object) -> int:
        return 0

    def create_timing_cache(self, content: bytes) -> bytes:
        return content

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        if cache not in (b'', b'timings') or ignore_mismatch:
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(serialize=lambda: b'timings')


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple] = {}

    def set_shape(self, name: str, low: tuple, tuned: tuple, high: tuple) -> None:
        self.shapes[name] = (low, tuned, high)


class Context:
    """Doubles x into y at the addresses given; every call goes to the trace."""

    def __init__(self, stub: Stub) -> None:
        self._stub, self._shape, self._addresses = stub, (), {}

    def _said(self, call: str, *arguments: object) -> bool:
        self._stub.trace.append((call, *arguments))
        if call in self._stub.fails:
            self._stub.error(f'no {call} today')
            return False
        return True

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        return self._said('set_optimization_profile_async', index, stream)

    def set_input_shape(self, name: str, shape: tuple) -> bool:
        self._shape = tuple(shape)
        return self._said('set_input_shape', name, tuple(shape))

    def infer_shapes(self) -> list[str]:
        return [] if self._said('infer_shapes') else ['x']

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shape if self._said('get_tensor_shape', name) else (-1, *self._shape[1:])

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return self._said('set_tensor_address', name)

    def execute_async_v3(self, stream: int) -> bool:
        if not self._said('execute_async_v3', stream):
            return False
        count = int(np.prod(self._shape))
        x, y = (
            np.ctypeslib.as_array((ctypes.c_float * count).from_address(self._addresses[name]))
            for name in ('x', 'y')
        )
        y[:] = 2 * x
        return True


class OldContext(Context):
    """TensorRT 8.6: the workspace is an attribute."""

    @property
    def device_memory(self) -> int:
        return 0

    @device_memory.setter
    def device_memory(self, address: int) -> None:
        self._said('device_memory =', address)


class NewContext(Context):
    def set_device_memory(self, address: int, size: int) -> None:
        self._said('set_device_memory', address, size)


class Engine:
    num_io_tensors = 2

    def __init__(self, stub: Stub, old: bool, memory: str) -> None:
        self._stub = stub
        setattr(self, memory, WORKSPACE)
        if old:
            self.create_execution_context_without_device_memory = lambda: self._new(OldContext)
        else:
            self.create_execution_context = lambda strategy: self._new(NewContext, strategy.name)

    def _new(self, kind: type, *arguments: object) -> Context | None:
        self._stub.trace.append(('context', *arguments))
        return None if 'context' in self._stub.fails else kind(self._stub)

    def get_tensor_name(self, index: int) -> str:
        return 'yx'[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == 'x' else Mode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, *INPUT_SHAPE)

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.FLOAT

    def get_tensor_format(self, name: str) -> Format:
        return Format.LINEAR


class Stub(types.ModuleType):
    """A module of the names of one TensorRT version: '8.6.1', '10.13.3.9' or '11.4.0.106'.

    fails: names of calls that fail from then on. half: what its parser finds in any file.
    """

    def __init__(self, version: str) -> None:
        super().__init__('tensorrt')
        self.__version__ = version
        self.trace: list[tuple] = []
        self.fails: set[str] = set()
        self.half = self.quantized = False
        self.networks: list[tuple[int, Network]] = []
        self.configs: list[Config] = []
        self.profiles: list[Profile] = []
        major = int(version.split('.')[0])
        self.ILogger, self._loggers = _logger_class(), []
        self.DataType, self.TensorIOMode = DataType, Mode
        self.MemoryPoolType = enum.Enum('MemoryPoolType', 'WORKSPACE')
        weak = 'FP16 INT8 OBEY_PRECISION_CONSTRAINTS ' if major < 11 else ''
        self.BuilderFlag = enum.Enum('BuilderFlag', weak + 'TF32 VERSION_COMPATIBLE')
        flags = {'EXPLICIT_BATCH': 0} if major < 11 else {}
        flags |= {'STRONGLY_TYPED': 1} if major >= 10 else {}
        self.NetworkDefinitionCreationFlag = enum.IntEnum('Flag', flags)
        if major >= 10:
            self.ExecutionContextAllocationStrategy = enum.Enum('Strategy', 'STATIC USER_MANAGED')
            self.IProgressMonitor = type('IProgressMonitor', (), {})
        if major < 11:
            self.PreviewFeature = enum.Enum('PreviewFeature', 'PROFILE_SHARING_0806')
        self._memory = 'device_memory_size' if major < 10 else 'device_memory_size_v2'
        self._old = major < 10

    def error(self, message: str) -> None:
        for logger in self._loggers:
            logger.log(self.ILogger.Severity.ERROR, message)

    def Builder(self, logger: object) -> types.SimpleNamespace:
        self._loggers = [logger]
        return types.SimpleNamespace(
            create_network=self._network,
            create_builder_config=self._config,
            create_optimization_profile=self._profile,
            build_serialized_network=self._serialize,
        )

    def OnnxParser(self, network: Network, logger: object) -> types.SimpleNamespace:
        return types.SimpleNamespace(parse_from_file=lambda path: True, num_errors=0)

    def Runtime(self, logger: object) -> types.SimpleNamespace:
        self._loggers = [logger]
        return types.SimpleNamespace(deserialize_cuda_engine=self._deserialize)

    def _network(self, flags: int) -> Network:
        self.networks.append((flags, Network(self.half, self.quantized)))
        return self.networks[-1][1]

    def _config(self) -> Config:
        self.configs.append(Config())
        return self.configs[-1]

    def _profile(self) -> Profile:
        self.profiles.append(Profile())
        return self.profiles[-1]

    def _serialize(self, network: Network, config: Config) -> bytes | None:
        monitor = getattr(config, 'progress_monitor', None)
        if monitor is not None:
            monitor.phase_start('build', None, 2)
            monitor.step_complete('build', 0)
            monitor.phase_finish('build')
        if 'build' in self.fails:
            self.error('no tactic')
            return None
        return b'a plan'

    def _deserialize(self, content: bytes) -> Engine | None:
        if 'deserialize' in self.fails:
            self.error('bad magic number')
            return None
        return Engine(self, self._old, self._memory)


def _logger_class() -> type:
    class ILogger:
        Severity = enum.Enum('Severity', 'INTERNAL_ERROR ERROR WARNING INFO VERBOSE')

    return ILogger
