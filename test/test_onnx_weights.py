"""Published ONNX sets, imitated with onnx.helper as foundationpose.md §6.4 describes them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import network_rig as rig
import numpy as np
import pytest
import torch

from foundationpose_trt.pose.networks import RefineNet, ScoreNet, fold_batch_norm
from foundationpose_trt.pose.onnx_weights import module_path, state_from_onnx
from foundationpose_trt.pose.weights import load_networks

onnx = pytest.importorskip('onnx')
FILES = {
    'Isaac': ('refine_model.onnx', 'score_model.onnx'),
    'TAO': ('refiner_net.onnx', 'score_net.onnx'),
}
KINDS = {'refiner': RefineNet, 'scorer': ScoreNet}


class GraphWriter:
    """Collects nodes and initializers the way torch's exporter names them."""

    def __init__(self, state: rig.State, gemm: bool) -> None:
        self.state, self.gemm = state, gemm
        self.nodes: list = []
        self.tensors: list = []
        self.count = 0

    def put(self, name: str, value: torch.Tensor) -> str:
        array = np.ascontiguousarray(value.numpy())
        self.tensors.append(onnx.numpy_helper.from_array(array, name))
        return name

    def anonymous(self, kind: str, value: torch.Tensor) -> str:
        self.count += 1
        return self.put(f'onnx::{kind}_{400 + self.count}', value)

    def node(self, kind: str, inputs: list[str], name: str, **attributes: object) -> str:
        output = f'{name}_output_0'
        self.nodes.append(onnx.helper.make_node(kind, inputs, [output], name, **attributes))
        return output

    def conv(self, x: str, key: str) -> str:
        weight, bias = self.state[f'{key}.weight'], self.state[f'{key}.bias']
        inputs = [x, self.anonymous('Conv', weight), self.anonymous('Conv', bias)]
        pad = weight.shape[-1] // 2
        return self.node('Conv', inputs, conv_name(key), pads=[pad] * 4)

    def linear(self, x: str, weight: str, bias: str, bias_first: bool = True) -> str:
        """MatMul with a transposed anonymous matrix, then Add with the named bias."""
        matrix = self.anonymous('MatMul', self.state[weight].T.contiguous())
        where = '/' + weight.replace('.', '/')
        product = self.node('MatMul', [x, matrix], f'{where}/MatMul')
        named = self.put(bias, self.state[bias])
        terms = [named, product] if bias_first else [product, named]
        return self.node('Add', terms, f'{where}/Add')

    def attention(self, x: str, key: str) -> str:
        x = self.linear(x, f'{key}.in_proj_weight', f'{key}.in_proj_bias')
        weight, bias = f'{key}.out_proj.weight', f'{key}.out_proj.bias'
        if not self.gemm:
            return self.linear(x, weight, bias, bias_first=False)
        names = [self.put(weight, self.state[weight]), self.put(bias, self.state[bias])]
        return self.node('Gemm', [x, *names], f'/{key}/Gemm', transB=1)

    def norm(self, x: str, key: str) -> str:
        names = [self.put(f'{key}.{n}', self.state[f'{key}.{n}']) for n in ('weight', 'bias')]
        return self.node('LayerNormalization', [x, *names], f'/{key}/LayerNormalization')

    def save(self, file: Path, output: str) -> None:
        make = onnx.helper
        ports = [
            make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            for name in ('inputA', 'inputB', output)
        ]
        graph = make.make_graph(self.nodes, 'main_graph', ports[:2], ports[2:], self.tensors)
        onnx.save(make.make_model(graph), str(file))


def conv_name(key: str) -> str:
    """'encodeA.0.net.0' -> '/encodeA/encodeA.0/net/net.0/Conv'."""
    parts: list[str] = []
    for part in key.split('.'):
        parts.append(f'{parts[-1]}.{part}' if part.isdigit() else part)
    return '/' + '/'.join(parts) + '/Conv'


def write_trunk(graph: GraphWriter) -> str:
    convolutions = [
        k[:-7] for k, v in graph.state.items() if k.endswith('.weight') and v.ndim == 4
    ]
    x = graph.node('Concat', ['inputA', 'inputB'], '/Concat', axis=0)
    for key in convolutions:
        x = graph.node('Relu', [graph.conv(x, key)], conv_name(key).replace('Conv', 'Relu'))
    code = graph.anonymous('Add', graph.state['pos_embed.pe'].transpose(1, 2).contiguous())
    return graph.node('Add', [x, code], '/pos_embed/Add')


def write_onnx(file: Path, kind: str, state: rig.State, gemm: bool = True) -> Path:
    """An export of a folded state; only names, links and tensors matter, not that it runs."""
    graph = GraphWriter(state, gemm)
    x = write_trunk(graph)
    if kind == 'scorer':
        x = graph.attention(graph.attention(x, 'att'), 'att_cross')
        graph.save(file, graph.linear(x, 'linear.weight', 'linear.bias'))
        return file
    for head in ('trans_head', 'rot_head'):
        y = graph.node('Add', [x, graph.attention(x, f'{head}.0.self_attn')], f'/{head}/Add')
        y = graph.norm(y, f'{head}.0.norm1')
        for layer in ('linear1', 'linear2'):
            y = graph.linear(y, f'{head}.0.{layer}.weight', f'{head}.0.{layer}.bias')
        y = graph.norm(y, f'{head}.0.norm2')
        y = graph.linear(y, f'{head}.1.weight', f'{head}.1.bias')
    graph.save(file, y)
    return file


@pytest.mark.parametrize('gemm', [True, False], ids=['gemm', 'matmul'])
@pytest.mark.parametrize('kind', ['refiner', 'scorer'])
def test_every_tensor_is_found(tmp_path, kind, gemm):
    state = rig.folded(rig.random_state(kind, 0.0625))
    file = write_onnx(tmp_path / 'x.onnx', kind, state, gemm)
    network = KINDS[kind](0.0625)
    fold_batch_norm(network)
    torch.testing.assert_close(state_from_onnx(file, network), state, atol=5e-5, rtol=0)


def write_official(folder: Path, published: str) -> dict[str, rig.State]:
    states = {kind: rig.random_state(kind, 1.0, 11) for kind in KINDS}
    for name, kind in zip(FILES[published], KINDS, strict=True):
        write_onnx(folder / name, kind, rig.folded(states[kind]))
    return states


def test_an_isaac_set_computes_what_the_networks_it_was_made_from_do(tmp_path):
    states = write_official(tmp_path, 'Isaac')
    loaded = load_networks(str(tmp_path))
    pair = rig.crops(1)
    close = {'atol': 3e-4, 'rtol': 3e-4}
    with torch.no_grad():
        refined, scores = loaded.refiner(*pair), loaded.scorer(*pair)
        torch.testing.assert_close(refined, rig.refine(states['refiner'], *pair), **close)
        torch.testing.assert_close(scores, rig.score(states['scorer'], *pair), **close)


def test_a_tao_set_gives_the_tensors_it_was_made_from(tmp_path):
    states = write_official(tmp_path, 'TAO')
    loaded = load_networks(str(tmp_path))
    for network, kind in ((loaded.refiner, 'refiner'), (loaded.scorer, 'scorer')):
        expected = rig.folded(states[kind])
        torch.testing.assert_close(dict(network.state_dict()), expected, atol=5e-5, rtol=0)


def exported(file: Path, network: torch.nn.Module) -> Path:
    try:
        torch.onnx.export(
            network, rig.crops(1), str(file), dynamo=False, input_names=['inputA', 'inputB']
        )
    except (ImportError, TypeError, torch.onnx.errors.OnnxExporterError) as error:
        pytest.skip(f'this torch has no legacy ONNX exporter: {error}')
    return file


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', ['refiner', 'scorer'])
def test_what_torchs_own_exporter_writes_is_read_back(tmp_path, kind):
    network = KINDS[kind](0.125).eval()
    network.load_state_dict(rig.random_state(kind, 0.125))
    file = exported(tmp_path / 'x.onnx', network)
    names = [tensor.name for tensor in onnx.load(str(file)).graph.initializer]
    assert any('onnx::Conv' in name for name in names), 'batch norm is not folded: no such export'
    again = KINDS[kind](0.125).eval()
    fold_batch_norm(again)
    again.load_state_dict(state_from_onnx(file, again))
    pair = rig.crops(2, seed=4)
    with torch.no_grad():
        torch.testing.assert_close(again(*pair), network(*pair), atol=1e-4, rtol=1e-4)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size * 2 // 3)


def write_text(file: Path) -> None:
    file.write_text('<html>404 Not Found</html>')


@pytest.mark.parametrize('spoil', [truncate, write_text])
def test_a_broken_file_is_refused_by_name(tmp_path, spoil: Callable[[Path], None]):
    state = rig.folded(rig.random_state('refiner', 0.0625))
    for name in FILES['TAO']:
        spoil(write_onnx(tmp_path / name, 'refiner', state))
    with pytest.raises(ValueError, match=r'refiner_net\.onnx is not a readable ONNX model'):
        load_networks(str(tmp_path))


def test_a_missing_matrix_is_listed(tmp_path):
    state = rig.folded(rig.random_state('scorer', 1.0))
    refiner = rig.folded(rig.random_state('refiner', 1.0))
    write_onnx(tmp_path / 'score_net.onnx', 'scorer', state)
    file = write_onnx(tmp_path / 'refiner_net.onnx', 'refiner', refiner)
    model = onnx.load(str(file))
    for node in [n for n in model.graph.node if 'rot_head/1' in n.name]:
        model.graph.node.remove(node)
    onnx.save(model, str(file))
    with pytest.raises(ValueError, match=r"refiner_net\.onnx.*missing \['rot_head\.1\.weight'\]"):
        load_networks(str(tmp_path))


def test_a_set_of_another_width_names_the_shapes(tmp_path):
    for name, kind in zip(FILES['Isaac'], KINDS, strict=True):
        write_onnx(tmp_path / name, kind, rig.folded(rig.random_state(kind, 0.0625)))
    with pytest.raises(ValueError, match=r'refine_model\.onnx does not fit RefineNet of'):
        load_networks(str(tmp_path))


@pytest.mark.parametrize(
    ('node', 'path'),
    [
        ('/encodeA/encodeA.0/net/net.0/Conv', 'encodeA.0.net.0'),
        ('/encodeAB/encodeAB.3/conv1/Conv', 'encodeAB.3.conv1'),
        ('/encoderA/encoderA.2/conv2/Conv', 'encoderA.2.conv2'),
    ],
)
def test_node_names_become_module_paths(node, path):
    assert module_path(node) == path
    assert conv_name(path) == node


def test_without_the_package_the_message_says_what_to_install(tmp_path, monkeypatch):
    file = write_onnx(tmp_path / 'x.onnx', 'scorer', rig.random_state('scorer', 0.0625))
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(ValueError, match=r'x\.onnx: reading it needs .*pip install onnx'):
        state_from_onnx(file, ScoreNet(0.0625))
