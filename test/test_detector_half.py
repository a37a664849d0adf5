"""ONNX networks in half: which nodes stay float32, every type checked, the result near."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from foundationpose_trt.detection import half
from foundationpose_trt.detection.half import single_nodes, stored_half, to_half, write_half

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
SINGLE, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


class Deformable(nn.Module):
    """In small what RF-DETR does: products, norm, selection, sampling at learned places."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.LayerNorm(8)
        self.score, self.place = nn.Linear(8, 1), nn.Linear(8, 2)
        self.mix, self.out = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, image: torch.Tensor):
        features = torch.relu(self.conv(image))
        tokens = self.norm(features.flatten(2).transpose(1, 2))
        best = self.score(tokens)[..., 0].topk(5).indices
        chosen = torch.gather(tokens, 1, best[..., None].expand(-1, -1, 8))
        places = torch.tanh(self.place(chosen) * 0.5 + 0.1)
        sampled = nn.functional.grid_sample(features, places[:, None], align_corners=False)
        values = self.mix(sampled[:, :, 0].transpose(1, 2) + chosen)
        attention = torch.softmax(values @ values.transpose(1, 2), -1)
        return self.out(attention @ values).sigmoid() * 2.0, places


def exported(tmp_path: Path) -> onnx.ModelProto:
    file = tmp_path / 'net.onnx'
    torch.onnx.export(
        Deformable(), (torch.zeros(1, 3, 12, 12),), str(file), dynamo=False, opset_version=17,
        input_names=['input'], output_names=['dets', 'places'],
    )  # fmt: skip
    return onnx.load(str(file))


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(model).graph
    known = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        known[value.name] = value.type.tensor_type.elem_type
    return known


def runs(model: onnx.ModelProto, image: np.ndarray) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {'input': image})


def test_products_are_half_and_what_is_sensitive_is_single(tmp_path):
    model = to_half(exported(tmp_path))
    types = types_of(model)
    for node in model.graph.node:
        numbers = {types[n] for n in (*node.input, *node.output) if n} & {HALF, SINGLE}
        assert len(numbers) <= 1 or node.op_type == 'Cast', node.op_type
        if node.op_type in ('Conv', 'MatMul', 'Gemm', 'Softmax'):
            assert numbers == {HALF}, node.op_type
        if node.op_type in ('LayerNormalization', 'GridSample', 'TopK', 'Tanh', 'Sigmoid'):
            assert numbers == {SINGLE}, node.op_type
    assert types['input'] == HALF and types['dets'] == types['places'] == SINGLE
    used = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= used


def test_the_chain_of_coordinates_begins_at_a_product(tmp_path):
    graph = onnx.shape_inference.infer_shapes(exported(tmp_path)).graph
    kinds = {node.output[0]: node.op_type for node in graph.node}
    kept = {kinds[name] for name in single_nodes(graph)}
    assert {'Tanh', 'GridSample', 'TopK', 'Sigmoid', 'LayerNormalization'} <= kept
    assert not kept & {'MatMul', 'Conv', 'Softmax', 'Relu'}


def test_the_result_is_near_and_of_the_input(tmp_path):
    single = exported(tmp_path)
    half = to_half(single)
    answers = []
    for seed in (0, 1):
        image = np.random.default_rng(seed).standard_normal((1, 3, 12, 12)).astype(np.float32)
        wanted, given = runs(single, image), runs(half, image.astype(np.float16))
        for a, b in zip(wanted, given, strict=True):
            assert a.dtype == b.dtype == np.float32
            # the choice of five may be made in another order
            np.testing.assert_allclose(np.sort(b, None), np.sort(a, None), atol=5e-3)
        answers.append(given[0])
    assert np.abs(answers[0] - answers[1]).max() > 0.01


def test_a_half_output_gets_its_type_back(tmp_path):
    class Product(nn.Module):
        def forward(self, a: torch.Tensor) -> torch.Tensor:
            return a @ a.transpose(1, 2)

    file = tmp_path / 'net.onnx'
    torch.onnx.export(
        Product(), (torch.zeros(1, 4, 4),), str(file), dynamo=False, opset_version=17,
        input_names=['input'], output_names=['y'],
    )  # fmt: skip
    model = to_half(onnx.load(str(file)))
    image = np.random.default_rng(0).standard_normal((1, 4, 4)).astype(np.float32)
    result = runs(model, image.astype(np.float16))[0]
    np.testing.assert_allclose(result, image @ image.transpose(0, 2, 1), atol=2e-2)
    assert result.dtype == np.float32


def test_weights_too_large_and_control_flow_are_refused(tmp_path):
    model = exported(tmp_path)
    weight = next(t for t in model.graph.initializer if t.name == 'conv.weight')
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0, 0, 0] = 1e6
    weight.CopyFrom(onnx.numpy_helper.from_array(values, 'conv.weight'))
    with pytest.raises(ValueError, match=r'conv\.weight holds 1e\+06, too large for half'):
        to_half(model)
    model = exported(tmp_path)
    model.graph.node.add(op_type='If', output=['y'], name='branch')
    with pytest.raises(ValueError, match=r'control flow \(If\)'):
        to_half(model)


def test_weights_stored_in_half_are_cast_once_and_computed_with_in_single(tmp_path, monkeypatch):
    monkeypatch.setattr(half, 'FEWEST_STORED', 32)
    plain = exported(tmp_path)
    rounded = onnx.ModelProto()
    rounded.CopyFrom(plain)
    for tensor in rounded.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32 and values.size >= 32:
            near = values.astype(np.float16).astype(np.float32)
            tensor.CopyFrom(onnx.numpy_helper.from_array(near, tensor.name))
    stored = stored_half(plain)
    kinds = {t.name: t.data_type for t in stored.graph.initializer}
    assert HALF in kinds.values()
    assert all(kind != HALF or name.endswith('_stored') for name, kind in kinds.items())
    types = types_of(stored)
    assert types['input'] == types['dets'] == SINGLE
    image = np.random.default_rng(0).standard_normal((1, 3, 12, 12)).astype(np.float32)
    for actual, expected in zip(runs(stored, image), runs(rounded, image), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_network_stored_in_half_turns_half_as_any_other(tmp_path, monkeypatch):
    monkeypatch.setattr(half, 'FEWEST_STORED', 32)
    file, out = tmp_path / 'stored.onnx', tmp_path / 'half.onnx'
    onnx.save(stored_half(exported(tmp_path)), str(file))
    write_half(file, out)
    made = onnx.load(str(out))
    types = types_of(made)
    assert types['input'] == HALF and types['dets'] == SINGLE
    image = np.random.default_rng(0).standard_normal((1, 3, 12, 12)).astype(np.float32)
    wanted = runs(onnx.load(str(file)), image)
    for actual, expected in zip(runs(made, image.astype(np.float16)), wanted, strict=True):
        np.testing.assert_allclose(actual, expected, atol=0.02)


def test_weights_too_large_for_half_are_not_stored_so(tmp_path):
    model = exported(tmp_path)
    large = np.full((64, 64), 1e6, np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(large, 'huge'))
    with pytest.raises(ValueError, match='huge holds 1e\\+06, too large'):
        stored_half(model)
