"""ONNX Runtime as an engine: specs, bound inputs, and files it must refuse."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from foundationpose_trt.runtime.onnx_engine import OnnxEngine

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

MATRIX = np.arange(12, dtype=np.float32).reshape(4, 3)
NUMBER = {np.float32: 1, np.float16: 10, np.str_: 8}  # numpy's type -> TensorProto's


def write_affine(
    path: Path, batch: object = 'n', dtype: type = np.float32, width: object = 4
) -> Path:
    """y = x @ MATRIX + shift, and twice = x + x."""
    make = onnx.helper
    ports = [
        make.make_tensor_value_info(name, NUMBER[dtype], shape)
        for name, shape in (
            ('x', [batch, width]), ('shift', [3]), ('y', [batch, 3]), ('twice', [batch, width])
        )
    ]  # fmt: skip
    nodes = [
        make.make_node('MatMul', ['x', 'matrix'], ['product']),
        make.make_node('Add', ['product', 'shift'], ['y']),
        make.make_node('Add', ['x', 'x'], ['twice']),
    ]
    matrix = onnx.numpy_helper.from_array(MATRIX.astype(dtype), 'matrix')
    graph = make.make_graph(nodes, 'affine', ports[:2], ports[2:], [matrix])
    model = make.make_model(graph, opset_imports=[make.make_opsetid('', 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


@pytest.fixture
def engine(tmp_path: Path) -> OnnxEngine:
    return OnnxEngine(write_affine(tmp_path / 'affine.onnx'))


def inputs_of(count: int) -> dict[str, torch.Tensor]:
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(count))
    return {'x': x, 'shift': torch.tensor([1.0, -2.0, 3.0])}


def affine(inputs: dict[str, torch.Tensor]) -> np.ndarray:
    x = inputs['x'].double().numpy()
    return np.stack(
        [sum(x[:, k] * float(MATRIX[k, j]) for k in range(4)) for j in range(3)], 1
    ) + np.array([1.0, -2.0, 3.0])


def described(specs: tuple) -> list[tuple]:
    return [(spec.name, spec.shape, spec.dtype) for spec in specs]


def test_it_says_what_the_file_takes_and_gives(engine):
    single = torch.float32
    assert described(engine.inputs) == [('x', (-1, 4), single), ('shift', (3,), single)]
    assert described(engine.outputs) == [('y', (-1, 3), single), ('twice', (-1, 4), single)]
    assert (engine.name, engine.device, engine.graphable) == (
        'affine.onnx', torch.device('cpu'), False
    )  # fmt: skip


@pytest.mark.parametrize('count', [1, 3, 17])
def test_it_computes_what_the_file_says(engine, count):
    inputs = inputs_of(count)
    outputs = engine.execution(inputs).enqueue()
    assert list(outputs) == ['y', 'twice']
    np.testing.assert_allclose(outputs['y'].numpy(), affine(inputs), atol=1e-5)
    assert torch.equal(outputs['twice'], inputs['x'] * 2)


def test_an_execution_reads_its_inputs_where_they_lie(engine):
    inputs = inputs_of(2)
    execution = engine.execution(inputs)
    before = execution.enqueue()['twice']
    old = inputs['x'].clone()
    inputs['x'].copy_(torch.full((2, 4), 7.0))
    assert torch.equal(execution.enqueue()['twice'], torch.full((2, 4), 14.0))
    assert torch.equal(before, old * 2), 'an earlier result changed'


@torch.inference_mode()
def test_it_takes_tensors_of_inference_mode(engine):
    inputs = inputs_of(2)
    assert torch.equal(engine.execution(inputs).enqueue()['twice'], inputs['x'] + inputs['x'])


def test_half_numbers_stay_half(tmp_path):
    engine = OnnxEngine(write_affine(tmp_path / 'half.onnx', dtype=np.float16))
    assert {spec.dtype for spec in (*engine.inputs, *engine.outputs)} == {torch.float16}
    inputs = {name: value.half() for name, value in inputs_of(3).items()}
    outputs = engine.execution(inputs).enqueue()
    assert outputs['y'].dtype == torch.float16
    np.testing.assert_allclose(outputs['y'].float().numpy(), affine(inputs), rtol=4e-3, atol=0.03)


def test_a_fixed_batch_is_part_of_the_spec(tmp_path):
    engine = OnnxEngine(write_affine(tmp_path / 'five.onnx', batch=5))
    assert engine.inputs[0].shape == (5, 4)
    with pytest.raises(ValueError, match=r'input x has shape \(4, 4\), must be \(5, 4\)'):
        engine.execution(inputs_of(4))


def test_threads_may_run_executions_of_one_engine_at_once(engine):
    def differs(seed: int) -> bool:
        inputs = inputs_of(1 + seed % 5)
        execution = engine.execution(inputs)
        return any(
            not np.allclose(execution.enqueue()['y'].numpy(), affine(inputs), atol=1e-5)
            for _ in range(20)
        )

    with ThreadPoolExecutor(4) as pool:
        assert not any(pool.map(differs, range(16)))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'x': torch.zeros(2, 5)}, r'input x has shape \(2, 5\), must be \(-1, 4\)'),
        ({'x': torch.zeros(2, 4).double()}, r'input x is torch\.float64, must be torch\.float32'),
        ({'x': torch.zeros(4, 2).T}, r'input x has strides \(1, 2\)'),
        ({'z': torch.zeros(1)}, r"unknown \['z'\]"),
    ],
)
def test_inputs_that_do_not_fit_are_named(engine, change, message):
    with pytest.raises(ValueError, match=message):
        engine.execution({**inputs_of(2), **change})


def test_a_missing_file_is_named_with_the_command_that_writes_it(tmp_path):
    remedy = rf'foundationpose-trt export --weights NAME --out {tmp_path}`'
    with pytest.raises(ValueError, match=rf'x\.onnx: there is no such ONNX file; .*{remedy}'):
        OnnxEngine(tmp_path / 'x.onnx')


@pytest.mark.parametrize('spoil', ['cut', 'html', 'empty'])
def test_a_broken_file_is_refused_by_name(tmp_path, spoil):
    path = write_affine(tmp_path / 'affine.onnx')
    if spoil == 'cut':
        os.truncate(path, path.stat().st_size * 2 // 3)
    else:
        path.write_text('<html>404 Not Found</html>' if spoil == 'html' else '')
    with pytest.raises(ValueError, match=r'affine\.onnx is not an ONNX file that .*export'):
        OnnxEngine(path)


def test_a_free_size_other_than_the_batch_is_refused(tmp_path):
    path = write_affine(tmp_path / 'free.onnx', width='m')
    with pytest.raises(ValueError, match=r"x has shape \['n', 'm'\]: only the first size may be"):
        OnnxEngine(path)


def test_a_type_without_a_tensor_is_refused(tmp_path):
    make = onnx.helper
    ports = [make.make_tensor_value_info(name, NUMBER[np.str_], [1]) for name in 'ab']
    graph = make.make_graph([make.make_node('Identity', ['a'], ['b'])], 'x', ports[:1], ports[1:])
    opset = make.make_opsetid('', 17)
    onnx.save(make.make_model(graph, opset_imports=[opset], ir_version=8), str(tmp_path / 'x'))
    with pytest.raises(ValueError, match=r'a is tensor\(string\), must be one of tensor\(float\)'):
        OnnxEngine(tmp_path / 'x')


def test_threads_below_one_are_refused(tmp_path):
    with pytest.raises(ValueError, match='threads is 0, must be at least 1'):
        OnnxEngine(write_affine(tmp_path / 'affine.onnx'), threads=0)


def test_without_the_package_the_message_says_what_to_install(tmp_path, monkeypatch):
    path = write_affine(tmp_path / 'affine.onnx')
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(ValueError, match=r'the package onnxruntime: pip install onnx onnxruntime'):
        OnnxEngine(path)


def test_a_row_of_scores_becomes_a_vector(tmp_path):
    import tensorrt_rig  # needs onnx

    engine = OnnxEngine(tensorrt_rig.write_row(tmp_path / 'row.onnx'))
    x = torch.arange(20.0).reshape(5, 4)
    assert engine.outputs[0].shape == (-1,)
    scores = engine.execution({'x': x}).enqueue()['y']
    np.testing.assert_allclose(scores, [1.5, 5.5, 9.5, 13.5, 17.5])
