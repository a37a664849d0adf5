"""An ONNX network in half precision, every type spelled out, what needs float32 kept so.

Plain fp16 is known to ruin RF-DETR (shared research, roboflow.md D2). float32 stay: LayerNorm;
the sampling of deformable attention with the coordinates it samples at; the selection of
queries; and what leads to all of these and to the outputs, back to the matrix products that it
begins with. Those, convolutions and attention are half.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..datatypes import require
from ..runtime.engine_manifest import write_atomically

if TYPE_CHECKING:
    import onnx

# Where a chain of float32 ends, seen from its result.
PRODUCTS = ('MatMul', 'Gemm', 'Conv', 'ConvTranspose', 'LayerNormalization', 'Softmax')
# Always float32: sensitive, or makers of numbers whose type stands in an attribute.
SINGLE = ('LayerNormalization', 'GridSample', 'TopK', 'ConstantOfShape', 'Range', 'Resize')
LARGEST_HALF = 65504.0
FEWEST_STORED = 1024  # numbers of a weight that is worth a cast


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the network with half inputs and float32 outputs.

    Raises ValueError for networks with control flow, and for weights too large for half.
    """
    import onnx

    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = model.graph
    flow = [node.op_type for node in graph.node if node.op_type in ('If', 'Loop', 'Scan')]
    require(not flow, f'the network has control flow ({flow[0] if flow else ""}): export it flat')
    typing = _Typing(graph, single_nodes(graph))
    nodes = list(typing.nodes())
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    used = {name for node in nodes for name in node.input}
    weights = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(weights)
    for port in graph.input:
        if port.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            port.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    model = onnx.shape_inference.infer_shapes(
        model, check_type=True, strict_mode=True, data_prop=True
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def write_half(single: Path, half: Path) -> None:
    """Write the network of a float32 file in half, whole or not at all.

    Raises ValueError where the package onnx is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise ValueError(
            f'making the half network of {single} needs onnx: pip install onnx onnxruntime'
        ) from error
    write_atomically(half, to_half(onnx.load(str(single))).SerializeToString())


def stored_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the same float32 network with its large weights stored in half: half the size.

    Each is cast once, when the network is loaded. Raises ValueError for weights too large.
    """
    import onnx

    graph, casts = model.graph, []
    for tensor in graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or _count(tensor) < FEWEST_STORED:
            continue
        name, values = tensor.name, onnx.numpy_helper.to_array(tensor)
        require(
            bool((np.abs(values) <= LARGEST_HALF).all()),
            f'{name} holds {np.abs(values).max():.3g}, too large for half',
        )
        stored = f'{name}_stored'
        tensor.CopyFrom(onnx.numpy_helper.from_array(values.astype(np.float16), stored))
        casts.append(onnx.helper.make_node('Cast', [stored], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    return model


def _count(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims)) if tensor.dims else 1


def single_nodes(graph: onnx.GraphProto) -> set[str]:
    """First outputs of the nodes that stay float32."""
    producers = {name: node for node in graph.node for name in node.output}
    pending = [port.name for port in graph.output]
    kept = set()
    for node in graph.node:
        if node.op_type in SINGLE:
            kept.add(node.output[0])
        if node.op_type == 'GridSample':
            pending.append(node.input[1])  # the coordinates; what is sampled may be half before
        if node.op_type == 'TopK':
            pending.append(node.input[0])
    while pending:
        node = producers.get(pending.pop())
        if node is None or node.output[0] in kept or node.op_type in PRODUCTS:
            continue
        kept.add(node.output[0])
        pending.extend(node.input)
    return kept


class _Typing:
    """Goes through a graph once and gives every node inputs of its own type."""

    def __init__(self, graph: onnx.GraphProto, single: set[str]) -> None:
        import onnx

        self._onnx, self._graph, self._single = onnx, graph, single
        self._floats = _float_names(graph)
        self._halves = {port.name for port in graph.input if port.name in self._floats}
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self._converted: dict[tuple[str, bool], str] = {}
        self._outputs = {port.name for port in graph.output}

    def nodes(self) -> Iterator[Any]:
        """Yield the nodes, casts before the first node that needs them."""
        for node in self._graph.node:
            if node.op_type == 'Constant' and node.output[0] in self._floats:
                self._keep_constant(node)
                continue
            half = node.output[0] not in self._single
            for place, name in enumerate(node.input):
                if name in self._floats and not (node.op_type == 'Resize' and place in (1, 2)):
                    yield from self._convert(name, half)
                    node.input[place] = self._name(name, half)
            if half:
                self._retype(node)
            yield node
            yield from self._restore_outputs(node)

    def _keep_constant(self, node: onnx.NodeProto) -> None:
        """Turn a Constant into an initializer, which can have a twin in half."""
        tensor = self._onnx.TensorProto()
        tensor.CopyFrom(node.attribute[0].t)
        tensor.name = node.output[0]
        self._constants[tensor.name] = self._graph.initializer.add()
        self._constants[tensor.name].CopyFrom(tensor)

    def _is_half(self, name: str) -> bool:
        return name in self._halves

    def _name(self, name: str, half: bool) -> str:
        return name if self._is_half(name) == half else self._converted[name, half]

    def _convert(self, name: str, half: bool) -> Iterator[Any]:
        """Make the other version of a tensor, once."""
        if self._is_half(name) == half or (name, half) in self._converted:
            return
        other = f'{name}_{"half" if half else "single"}'
        self._converted[name, half] = other
        if name in self._constants:
            values = self._onnx.numpy_helper.to_array(self._constants[name])
            finite = np.isfinite(values)
            require(
                not (np.abs(values[finite]) > LARGEST_HALF).any(),
                f'{name} holds {np.abs(values[finite]).max(initial=0):.3g}, too large for half',
            )
            tensor = self._onnx.numpy_helper.from_array(values.astype(np.float16), other)
            self._graph.initializer.append(tensor)
            return
        kind = self._onnx.TensorProto.FLOAT16 if half else self._onnx.TensorProto.FLOAT
        yield self._onnx.helper.make_node('Cast', [name], [other], name=f'{other}_cast', to=kind)

    def _retype(self, node: onnx.NodeProto) -> None:
        """Note the outputs of a half node; a cast to float becomes one to half."""
        self._halves.update(name for name in node.output if name in self._floats)
        if node.op_type == 'Cast':
            for attribute in node.attribute:
                if attribute.name == 'to' and attribute.i == self._onnx.TensorProto.FLOAT:
                    attribute.i = self._onnx.TensorProto.FLOAT16

    def _restore_outputs(self, node: onnx.NodeProto) -> Iterator[Any]:
        """Give outputs of the graph that became half their name back in float32."""
        for place, name in enumerate(node.output):
            if name in self._outputs and self._is_half(name):
                inner = f'{name}_inner'
                node.output[place] = inner
                self._halves.discard(name)
                self._halves.add(inner)
                self._floats.add(inner)
                self._converted[name, True] = inner
                kind = self._onnx.TensorProto.FLOAT
                yield self._onnx.helper.make_node('Cast', [inner], [name], to=kind)


def _float_names(graph: onnx.GraphProto) -> set[str]:
    """Names of all float32 tensors of a graph whose shapes were inferred."""
    import onnx

    single = onnx.TensorProto.FLOAT
    ports = (*graph.input, *graph.output, *graph.value_info)
    names = {port.name for port in ports if port.type.tensor_type.elem_type == single}
    names.update(t.name for t in graph.initializer if t.data_type == single)
    for node in graph.node:
        if node.op_type == 'Constant' and node.attribute[0].t.data_type == single:
            names.add(node.output[0])
    return names
