"""Reading a state_dict out of the published ONNX exports (foundationpose.md §6.4).

Exports fold batch norm into the convolutions, give matrix weights anonymous names and store
them transposed; biases keep their names. So convolutions are found by the module path in the
node's name, matrices by following the graph back from the named bias they are added to.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..datatypes import require

if TYPE_CHECKING:
    import onnx


def module_path(node_name: str) -> str:
    """Turn '/encodeA/encodeA.0/net/net.0/Conv' into 'encodeA.0.net.0'."""
    path: list[str] = []
    for part in node_name.strip('/').split('/')[:-1]:
        if path and part.startswith(path[-1] + '.'):
            path[-1] = part
        else:
            path.append(part)
    return '.'.join(path)


def state_from_onnx(file: Path, network: nn.Module) -> dict[str, torch.Tensor]:
    """Collect the tensors of a folded network from an ONNX file; float32 on the CPU.

    Raises ValueError when the file is no ONNX model or the `onnx` package is absent; what is
    missing in the result shows when it is loaded strictly.
    """
    model = _read(file)
    from onnx import numpy_helper

    initializers = {
        tensor.name: torch.from_numpy(numpy_helper.to_array(tensor).copy())
        for tensor in model.graph.initializer
    }
    state = {key: value for key, value in initializers.items() if key in network.state_dict()}
    producers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        if node.op_type == 'Conv':
            path = module_path(node.name)
            for suffix, name in zip(('weight', 'bias'), node.input[1:], strict=False):
                if name in initializers:
                    state[f'{path}.{suffix}'] = initializers[name]
        elif node.op_type == 'Add':
            state.update(_matrix_before(node, producers, initializers))
    if 'pos_embed.pe' not in state:
        state['pos_embed.pe'] = network.state_dict()['pos_embed.pe']  # a fixed formula, §1.1
    return state


def _read(file: Path) -> onnx.ModelProto:
    try:
        import onnx
    except ImportError as error:
        raise ValueError(f'{file}: reading it needs the package onnx: pip install onnx') from error
    try:
        return onnx.load(str(file))
    except Exception as error:  # onnx raises protobuf's own DecodeError type
        raise ValueError(f'{file} is not a readable ONNX model: {error}') from error


def _matrix_before(
    add: onnx.NodeProto,
    producers: dict[str, onnx.NodeProto],
    initializers: dict[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Weight of the MatMul whose product this Add gives a named bias, transposed back."""
    biases = [name for name in add.input if name in initializers and name.endswith('bias')]
    if len(biases) != 1:
        return {}
    product = next(name for name in add.input if name != biases[0])
    node = producers.get(product)
    if node is None or node.op_type != 'MatMul' or node.input[1] not in initializers:
        return {}
    key = biases[0].removesuffix('bias') + 'weight'
    matrix = initializers[node.input[1]]
    require(matrix.ndim == 2, f'{key}: expected a matrix in the ONNX file, got {matrix.shape}')
    return {key: matrix.T.contiguous()}
