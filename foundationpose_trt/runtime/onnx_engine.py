"""ONNX Runtime on the CPU as an engine: the reference that shares no code with torch's kernels."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..datatypes import require
from .specs import BATCH, TensorSpec, check_inputs

CPU = 'CPUExecutionProvider'
DTYPES = {
    'tensor(float)': torch.float32,
    'tensor(float16)': torch.float16,
    'tensor(double)': torch.float64,
    'tensor(int64)': torch.int64,
    'tensor(int32)': torch.int32,
    'tensor(uint8)': torch.uint8,
    'tensor(bool)': torch.bool,
}


class OnnxExecution:
    """The network over fixed input tensors. Its memory is ONNX Runtime's own: nbytes is 0."""

    nbytes = 0

    def __init__(self, engine: OnnxEngine, inputs: Mapping[str, torch.Tensor]) -> None:
        self._engine = engine
        # arrays over the tensors' own memory: what is written there later is read
        self._arrays = {spec.name: inputs[spec.name].detach().numpy() for spec in engine.inputs}

    def enqueue(self) -> dict[str, torch.Tensor]:
        """Compute and return new output tensors by name; returns when they are done."""
        return self._engine.compute(self._arrays)


class OnnxEngine:
    """An ONNX file loaded by ONNX Runtime; its executions may run in several threads at once."""

    graphable = False
    light = True
    warm_up_runs = 1

    def __init__(self, path: Path, threads: int | None = None, optimized: bool = True) -> None:
        """threads: how many one execution uses, by default as many as torch. optimized: let ONNX
        Runtime write the network anew; what it makes of quantized half is wrong (1.23).

        Raises ValueError when the package onnxruntime or the file is absent, the file is not
        readable ONNX, or a tensor's size other than the first is free.
        """
        self.name = path.name
        self.device = torch.device('cpu')
        count = torch.get_num_threads() if threads is None else threads
        self._session = _open(path, count, optimized)
        self.inputs = tuple(_spec(path, port) for port in self._session.get_inputs())
        ports = self._session.get_outputs()
        self._rows = {port.name for port in ports if _is_row(port)}
        self.outputs = tuple(_spec(path, port, port.name in self._rows) for port in ports)

    def execution(self, inputs: Mapping[str, torch.Tensor]) -> OnnxExecution:
        """Bind to these CPU tensors by reference; raises ValueError for what does not fit."""
        check_inputs(self.inputs, inputs, self.device)
        return OnnxExecution(self, inputs)

    def compute(self, arrays: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Run over numpy arrays by input name, their shapes and dtypes as the specs say."""
        names = [spec.name for spec in self.outputs]
        results = zip(names, self._session.run(names, dict(arrays)), strict=True)
        return {
            name: torch.from_numpy(result.reshape(-1) if name in self._rows else result)
            for name, result in results
        }


def _open(path: Path, threads: int, optimized: bool) -> Any:
    require(threads >= 1, f'{path}: threads is {threads}, must be at least 1')
    require(path.is_file(), f'{path}: there is no such ONNX file; write it with {_remedy(path)}')
    try:
        runtime = importlib.import_module('onnxruntime')
    except ImportError as error:
        raise ValueError(
            f'{path}: running it needs the package onnxruntime: pip install onnx onnxruntime'
        ) from error
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    if not optimized:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # idle threads that spin take the cores from the renderer and from other nodes
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    options.log_severity_level = 3  # errors; they are raised as well
    try:
        return runtime.InferenceSession(str(path), options, providers=[CPU])
    except Exception as error:  # onnxruntime raises types of its own, one for each status
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f'{path} is not an ONNX file that this ONNX Runtime reads; write it again with'
            f' {_remedy(path)} ({reason})'
        ) from error


def _remedy(path: Path) -> str:
    return f'`foundationpose-trt export --weights NAME --out {path.parent}`'


def _is_row(port: Any) -> bool:
    """Whether an output is (1, any): the official scorers' scores, here a vector of any size."""
    return len(port.shape) == 2 and port.shape[0] == 1 and not isinstance(port.shape[1], int)


def _spec(path: Path, port: Any, is_row: bool = False) -> TensorSpec:
    """Spec of an input or output as ONNX Runtime describes it."""
    require(
        port.type in DTYPES,
        f'{path}: {port.name} is {port.type}, must be one of {", ".join(DTYPES)}',
    )
    if is_row:
        return TensorSpec(port.name, (BATCH,), DTYPES[port.type])
    free = [place for place, size in enumerate(port.shape) if not isinstance(size, int)]
    require(
        free in ([], [0]),
        f'{path}: {port.name} has shape {port.shape}: only the first size may be free; load the'
        f' weights it holds and write it again with {_remedy(path)}',
    )
    shape = [BATCH if place in free else size for place, size in enumerate(port.shape)]
    return TensorSpec(port.name, tuple(shape), DTYPES[port.type])
