"""ONNX files of refiner and scorer: what they compute, their types, and the files themselves."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from itertools import product
from pathlib import Path

import network_rig as rig
import numpy as np
import pytest
import torch

from foundationpose_trt.pose import export
from foundationpose_trt.pose.networks import RefineNet, ScoreNet
from foundationpose_trt.pose.weights import WEIGHTS_FOLDER, PoseNetworks
from foundationpose_trt.tools import export as tool

onnx = pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')

WIDTH = 0.0625
CHANNELS = 32  # 512 x WIDTH
NETWORKS = {'refiner': RefineNet, 'scorer': ScoreNet}
KINDS = ('refiner', 'scorer', 'extractor')
OUTPUTS = {
    'refiner': {'trans': (3,), 'rot': (3,)},
    'scorer': {'score_logit': ()},
    'extractor': {'features': (CHANNELS,)},
}
STATES = {kind: rig.random_state(kind, WIDTH, seed) for seed, kind in enumerate(NETWORKS)}
FORMS = (export.FUSED, export.APART)
HALF, SINGLE = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT


def made_networks() -> PoseNetworks:
    """Networks of STATES as they come out of training: batch norm not folded."""
    made = []
    for kind, make in NETWORKS.items():
        network = make(WIDTH).eval()
        network.load_state_dict(STATES[kind])
        made.append(network)
    return PoseNetworks(made[0], made[1], 'random', torch.device('cpu'), torch.float32)


@pytest.fixture(scope='module')
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files <kind>_<precision>.onnx of STATES with a free batch, and scorer_three of batch 3."""
    folder = tmp_path_factory.mktemp('onnx')
    networks = made_networks()
    for kind in KINDS:
        for precision in ('fp32', 'fp16'):
            export.write_onnx(networks, kind, folder / f'{kind}_{precision}.onnx', precision)
    export.write_onnx(networks, 'scorer', folder / 'scorer_three.onnx', 'fp32', 3)
    for kind, form, precision in product(export.TRUNKS, FORMS, ('fp32', 'fp16')):
        file = folder / f'{kind}_{form}_{precision}.onnx'
        export.write_onnx(networks, kind, file, precision, form=form)
    return folder


def compute(file: Path, *crops: torch.Tensor) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    names = [port.name for port in session.get_outputs()]
    given = ('inputA', 'inputB') if len(crops) == 2 else ('crops',)
    inputs = dict(zip(given, (crop.numpy() for crop in crops), strict=True))
    return dict(zip(names, session.run(names, inputs), strict=True))


def expected(kind: str, *crops: torch.Tensor) -> dict[str, np.ndarray]:
    """What the documented arithmetic gives for STATES."""
    if kind == 'scorer':
        return {'score_logit': rig.score(STATES[kind], *crops)[0].numpy()}
    if kind == 'extractor':
        tokens = rig.trunk(STATES['scorer'], 'scorer', *crops)
        return {'features': rig.attention(STATES['scorer'], 'att', tokens).mean(1).numpy()}
    return {name: value.numpy() for name, value in rig.refine(STATES[kind], *crops).items()}


def assert_close(actual: dict, wanted: dict, tolerance: float) -> None:
    assert list(actual) == list(wanted)
    for name, value in wanted.items():
        assert actual[name].dtype == np.float32
        assert actual[name].shape == value.shape
        np.testing.assert_allclose(actual[name], value, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize('count', [1, 3, 17])
@pytest.mark.parametrize('kind', KINDS)
def test_one_file_computes_the_network_at_every_batch(folder, kind, count):
    crops = rig.crops(count, seed=count)
    wanted = expected(kind, *crops)
    assert_close(compute(folder / f'{kind}_fp32.onnx', *crops), wanted, 2e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_half_precision_stays_near_the_network(folder, kind):
    crops = rig.crops(17, seed=5)
    actual = compute(folder / f'{kind}_fp16.onnx', *(crop.half() for crop in crops))
    wanted = expected(kind, *crops)
    assert_close(actual, wanted, 4e-3)
    if kind == 'scorer':
        assert np.argmax(actual['score_logit']) == np.argmax(wanted['score_logit'])


def trunk_of(kind: str, *crops: torch.Tensor) -> np.ndarray:
    """What the documented arithmetic gives without the code of places, (N, d, 20, 20)."""
    network = 'refiner' if kind == 'refiner_trunk' else 'scorer'
    state = STATES[network]
    tokens = rig.trunk(state, network, *crops) - state['pos_embed.pe']
    return tokens.transpose(1, 2).reshape(len(tokens), -1, 20, 20).numpy()


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('kind', export.TRUNKS)
def test_a_trunk_computes_what_comes_before_the_attention(folder, kind, form):
    """In half of crops in blocks, which are told here pixel by pixel."""
    crops = rig.crops(3, seed=3)
    wanted, pairs = trunk_of(kind, *crops), torch.cat(crops)
    single = compute(folder / f'{kind}_{form}_fp32.onnx', pairs)['image']
    np.testing.assert_allclose(single, wanted, atol=2e-5, rtol=2e-5)
    blocks = torch.cat([pairs[:, :, y::4, x::4] for y in range(4) for x in range(4)], 1)
    half = compute(folder / f'{kind}_{form}_fp16.onnx', blocks.half())
    assert half['image'].dtype == np.float16
    np.testing.assert_allclose(half['image'], wanted, atol=2e-2, rtol=4e-3)


@pytest.mark.parametrize(('form', 'apart'), [('fused', 0), ('apart', 4)])
def test_the_sums_over_both_images_stand_apart_where_asked(folder, form, apart):
    """Of six blocks, each with two ReLUs, those four; three ReLUs are of no block."""
    nodes = onnx.load(str(folder / f'refiner_trunk_{form}_fp16.onnx')).graph.node
    kinds = Counter(node.op_type for node in nodes)
    assert (kinds['Max'], kinds['Relu']) == (apart, 15 - apart)


def test_a_fixed_batch_is_taken_and_no_other(folder):
    crops = rig.crops(3)
    file = folder / 'scorer_three.onnx'
    assert_close(compute(file, *crops), expected('scorer', *crops), 2e-5)
    with pytest.raises(Exception, match='Got: 2 Expected: 3'):
        compute(file, *rig.crops(2))


def ports(values: list) -> dict[str, tuple]:
    """Name -> (element type, sizes) of graph inputs or outputs."""
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim],
        )
        for value in values
    }


@pytest.mark.parametrize(
    'file',
    [f'{kind}_{precision}' for kind in KINDS for precision in ('fp32', 'fp16')] + ['scorer_three'],
)
def test_the_file_declares_names_shapes_and_types(folder, file):
    model = onnx.load(str(folder / f'{file}.onnx'))
    kind, variant = file.split('_')
    batch = 3 if variant == 'three' else 'batch'
    given = HALF if variant == 'fp16' else SINGLE
    crop = (given, [batch, 6, 160, 160])
    assert ports(model.graph.input) == {'inputA': crop, 'inputB': crop}
    results = {name: (SINGLE, [batch, *rest]) for name, rest in OUTPUTS[kind].items()}
    assert ports(model.graph.output) == results
    assert {(entry.domain, entry.version) for entry in model.opset_import} == {('', 17)}
    assert model.ir_version <= 8, 'TensorRT 8.6 reads ONNX 1.13'


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    """Name -> element type of every tensor of the graph."""
    graph = model.graph
    known = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        known[value.name] = value.type.tensor_type.elem_type
    for node in graph.node:
        if node.op_type == 'Constant':
            known[node.output[0]] = node.attribute[0].t.data_type
    return known


@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
@pytest.mark.parametrize('kind', KINDS)
def test_operators_take_one_type_of_number_and_only_casts_change_it(folder, kind, precision):
    model = onnx.load(str(folder / f'{kind}_{precision}.onnx'))
    types = types_of(model)
    for node in model.graph.node:
        numbers = {types[name] for name in (*node.input, *node.output)} & {HALF, SINGLE}
        assert len(numbers) == (2 if node.op_type == 'Cast' else 1) or not numbers, node.name
        assert node.op_type != 'Cast' or precision == 'fp16'


@pytest.mark.parametrize('kind', KINDS)
def test_means_and_what_follows_them_are_single(folder, kind):
    model = onnx.load(str(folder / f'{kind}_fp16.onnx'))
    types = types_of(model)
    found = Counter((node.op_type, types[node.output[0]]) for node in model.graph.node)
    # half, single: over the tokens in half, over the hypotheses (the scorer's ranking) in single
    counts = {
        'Softmax': {'refiner': (1, 0), 'scorer': (1, 1), 'extractor': (1, 0)},
        'LayerNormalization': {'refiner': (2, 0), 'scorer': (0, 0), 'extractor': (0, 0)},
        'ReduceMean': {'refiner': (0, 1), 'scorer': (0, 1), 'extractor': (0, 1)},
        'Gemm': {'refiner': (0, 0), 'scorer': (0, 1), 'extractor': (0, 1)},
        'Conv': dict.fromkeys(KINDS, (15, 0)),
        # q, k, v, their two products; the heads, side by side, also out, linear1, linear2, last
        'MatMul': {'refiner': (8, 1), 'scorer': (5, 7), 'extractor': (5, 0)},
    }
    for operator, wanted in counts.items():
        assert (found[operator, HALF], found[operator, SINGLE]) == wanted[kind], operator


@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
@pytest.mark.parametrize('kind', KINDS)
def test_the_same_weights_give_the_same_bytes(folder, tmp_path, kind, precision):
    export.write_onnx(made_networks(), kind, tmp_path / 'again.onnx', precision)
    written = (folder / f'{kind}_{precision}.onnx').read_bytes()
    assert (tmp_path / 'again.onnx').read_bytes() == written


def test_the_networks_stay_as_they_were(tmp_path):
    networks = made_networks()
    for kind in NETWORKS:
        export.write_onnx(networks, kind, tmp_path / 'x.onnx', 'fp16')
        state = getattr(networks, kind).state_dict()
        torch.testing.assert_close(dict(state), STATES[kind], atol=0, rtol=0)


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (('detector',), r'network is "detector", must be one of refiner, scorer, extractor'),
        (('scorer', 'int8'), r'precision is "int8", must be one of fp32, fp16$'),
        (('scorer', 'fp32', 0), r'batch is 0, must be at least 1, or dynamic'),
        (
            ('refiner_trunk', 'fp16', 1, 'x'),
            r'form of the refiner_trunk is "x", must be fused or apart',
        ),
        (('scorer', 'fp16', 1, 'apart'), r'form of the scorer is "apart", must be fused$'),
    ],
)
def test_other_words_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        export.onnx_model(made_networks(), *words)


def test_weights_that_half_cannot_hold_are_refused():
    networks = made_networks()
    networks.scorer.att.in_proj_bias.detach()[-1] = 1e5
    with pytest.raises(ValueError, match=r"scorer: \['extract\.attention\.value\.bias'\] .* fp16"):
        export.onnx_model(networks, 'scorer', 'fp16')
    export.onnx_model(networks, 'scorer', 'fp32')


def test_without_the_package_the_message_says_what_to_install(monkeypatch):
    networks = made_networks()
    monkeypatch.setitem(sys.modules, 'onnx', None)
    with pytest.raises(ValueError, match=r'needs the package onnx: pip install onnx onnxruntime'):
        export.onnx_model(networks, 'scorer')


@pytest.mark.parametrize('step', ['fsync', 'replace'])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    def fail(*rest: object) -> None:
        raise OSError('no space left')

    path = tmp_path / 'x.onnx'
    path.write_bytes(b'old')
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match='no space left'):
        export.write_onnx(made_networks(), 'scorer', path)
    monkeypatch.undo()
    assert path.read_bytes() == b'old'
    assert list(tmp_path.iterdir()) == [path]


def run_tool(*words: str) -> int:
    parser = argparse.ArgumentParser()
    tool.add_arguments(parser)
    return tool.run(parser.parse_args(words))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_command_writes_both_networks_with_manifests(tmp_path, capsys):
    assert run_tool('--weights', 'small', '--out', str(tmp_path / 'made')) == 0
    assert 'refiner.onnx: 4.5 MB, fp32, batch dynamic' in capsys.readouterr().out
    names = {path.name for path in (tmp_path / 'made').iterdir()}
    assert names == {f'{kind}.onnx{end}' for kind in NETWORKS for end in ('', '.json')}
    manifest = json.loads((tmp_path / 'made/refiner.onnx.json').read_text())
    crop = {'shape': ['batch', 6, 160, 160], 'dtype': 'float32'}
    result = {'shape': ['batch', 3], 'dtype': 'float32'}
    source = WEIGHTS_FOLDER / 'small/refiner.safetensors'
    assert manifest.pop('foundationpose_trt')
    assert manifest == {
        'format': 7,
        'kind': 'refiner',
        'precision': 'fp32',
        'form': 'fused',
        'batch': 'dynamic',
        'opset': 17,
        'weights': {'name': 'small', 'file': source.name, 'sha256': sha256(source)},
        'file': 'refiner.onnx',
        'sha256': sha256(tmp_path / 'made/refiner.onnx'),
        'width': 0.25,
        'inputs': [{'name': 'inputA', **crop}, {'name': 'inputB', **crop}],
        'outputs': [{'name': 'trans', **result}, {'name': 'rot', **result}],
        'exporter': export.EXPORTER,
        'torch': torch.__version__,
    }


def test_the_command_keeps_what_is_up_to_date_and_writes_the_rest_again(tmp_path, capsys):
    weights, out = tmp_path / 'mine', tmp_path / 'out'
    shutil.copytree(WEIGHTS_FOLDER / 'small', weights)
    words = ['--weights', str(weights), '--out', str(out), '--networks', 'scorer']
    path = out / 'scorer.onnx'

    def written(*more: str) -> bool:
        run_tool(*words, *more)
        return 'is up to date' not in capsys.readouterr().out

    assert written()
    assert not (out / 'refiner.onnx').exists()
    first = path.read_bytes()
    assert not written()
    assert written('--force')
    assert written('--batch', '2')
    assert json.loads((out / 'scorer.onnx.json').read_text())['batch'] == 2
    assert written()
    for spoil in (
        lambda: os.truncate(path, len(first) // 2),
        lambda: (out / 'scorer.onnx.json').write_text('{"format"'),
        lambda: (out / 'scorer.onnx.json').unlink(),
        path.unlink,
    ):
        spoil()
        assert written()
        assert path.read_bytes() == first


def test_other_weights_under_the_same_name_are_exported_again(tmp_path):
    weights = tmp_path / 'small'
    shutil.copytree(WEIGHTS_FOLDER / 'small', weights)
    before = export.export_request(str(weights), 'scorer')
    with (weights / 'scorer.safetensors').open('ab') as file:
        file.write(b' ')
    assert export.export_request(str(weights), 'scorer') != before


@pytest.mark.parametrize('batch', ['0', '-1', 'many', '1.5'])
def test_the_command_names_a_batch_it_does_not_take(tmp_path, batch):
    with pytest.raises(ValueError, match=f'--batch is {batch}, must be a number from 1'):
        run_tool('--weights', 'small', '--out', str(tmp_path), f'--batch={batch}')


def test_an_official_set_is_found_by_its_own_names(tmp_path):
    for name in ('refiner_net.onnx', 'score_net.onnx'):
        (tmp_path / name).write_text(name)
    for kind in export.OUTPUTS:
        name = 'refiner_net.onnx' if kind.startswith('refiner') else 'score_net.onnx'
        assert export.source_file(str(tmp_path), kind) == tmp_path / name
    (tmp_path / 'score_net.onnx').unlink()
    with pytest.raises(ValueError, match=r'holds no manifest\.json and no official set'):
        export.source_file(str(tmp_path), 'refiner')
