"""Convolutions in 8-bit integers: against integer arithmetic; scales against brute force."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import network_rig as rig
import numpy as np
import pytest
import torch
from torch.nn import functional as F

from foundationpose_trt.pose import backends, export
from foundationpose_trt.pose.crop_blocks import in_blocks
from foundationpose_trt.pose.networks import RefineNet, ScoreNet
from foundationpose_trt.pose.quantization import (
    KEPT,
    SCALES,
    Observed,
    best_scale,
    observing,
    quantized_convolutions,
    read_scales,
    write_scales,
)
from foundationpose_trt.pose.quantized_networks import quantized_stage
from foundationpose_trt.pose.self_check import reference_of
from foundationpose_trt.pose.weights import (
    WEIGHTS_FOLDER,
    PoseNetworks,
    load_networks,
    save_network,
    write_manifest,
)
from foundationpose_trt.runtime.choice import BackendChoice
from foundationpose_trt.runtime.engine_manifest import sha256_of
from foundationpose_trt.runtime.onnx_engine import OnnxEngine
from foundationpose_trt.tools import cli
from foundationpose_trt.tools.wider_weights import wider_set

WIDTH = 0.0625
NAMES = [
    '0.conv1', '0.conv2', '1.conv1', '1.conv2', '2.net.0', '3.conv1', '3.conv2', '4.conv1',
    '4.conv2',
]  # fmt: skip
STATE = rig.folded(rig.random_state('refiner', WIDTH, seed=3))
GIVEN = {name: 0.01 + 0.003 * place for place, name in enumerate(NAMES)}


def network() -> RefineNet:
    made = RefineNet(WIDTH).eval()
    made.load_state_dict(rig.random_state('refiner', WIDTH, seed=3))
    return made


def integers(x: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor:
    return (x.double() / scale).round().clamp(-128, 127)


def convolved(name: str, given: torch.Tensor, stride: int = 1) -> torch.Tensor:
    """A convolution of integers (held in doubles, exactly) of what GIVEN[name] scales."""
    weight = STATE[f'encodeAB.{name}.weight'].double()
    each = weight.abs().amax((1, 2, 3)) / 127
    total = F.conv2d(given, integers(weight, each[:, None, None, None]), None, stride, 1)
    bias = STATE[f'encodeAB.{name}.bias'].double()
    return total * (GIVEN[name] * each)[:, None, None] + bias[:, None, None]


def block(place: int, x: torch.Tensor) -> torch.Tensor:
    first, second = f'{place}.conv1', f'{place}.conv2'
    read = integers(x, GIVEN[first])
    hidden = integers(convolved(first, read).relu(), GIVEN[second])
    return (convolved(second, hidden) + read * GIVEN[first]).relu()


def stage_of_integers(x: torch.Tensor) -> torch.Tensor:
    x = block(1, block(0, x))
    x = convolved('2.net.0', integers(x, GIVEN['2.net.0']), 2).relu()
    return block(4, block(3, x))


def folded_stage() -> torch.nn.Sequential:
    made = network()
    export.fold_batch_norm(made)
    return made.encodeAB


def size(x: torch.Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def test_the_stage_over_both_images_computes_with_integers():
    x = torch.rand(2, 16, 40, 40, generator=torch.Generator().manual_seed(0)) * 3
    with torch.inference_mode():
        found = quantized_stage(folded_stage(), GIVEN).double()(x.double())
        wanted, plain = stage_of_integers(x), folded_stage()(x)
    # of batch norms folded in another order: a value between two integers goes to either
    assert size(found - wanted) < 0.02 * size(found - plain)


def test_scales_of_other_convolutions_are_refused():
    with pytest.raises(ValueError, match=r"must be of \['0.conv1', .*calibrate again"):
        quantized_stage(folded_stage(), {**GIVEN, '5.conv1': 0.1})


@pytest.mark.parametrize('outlier', [1.0, 2.5])
def test_the_best_scale_loses_least(outlier):
    """One value far from very many is worth less than their digits."""
    values = np.random.default_rng(0).uniform(0, 1, 1_000_000)
    values[7] = outlier
    scale = best_scale(torch.tensor(values), outlier)

    def lost(s: float) -> float:
        return float(np.mean((np.minimum(np.round(values / s), 127) * s - values) ** 2))

    wanted = min(np.linspace(0.2, 1.2, 60) * outlier / 127, key=lost)
    assert lost(scale) < 1.05 * lost(wanted)
    assert (scale < 0.7 * outlier / 127) == (outlier > 1)


@pytest.mark.parametrize('largest', [0.0, float('nan'), float('inf')])
def test_values_that_have_no_scale_are_refused(largest):
    with pytest.raises(ValueError, match='must be positive and finite'):
        best_scale(torch.ones(3), largest)


def test_what_convolutions_read_is_observed_and_nothing_after():
    made, crops = network(), rig.crops(2, seed=4)
    with observing(made) as observed, torch.inference_mode():
        made(*crops)
    scales = observed.scales()
    assert list(scales) == list(quantized_convolutions(made)) == NAMES
    one = [made.encodeA(crop) for crop in crops]
    read = torch.cat(one, 1).abs()
    assert 0.2 * read.max() / 127 < scales['0.conv1'] <= read.max() / 127 * 1.0001
    made(*rig.crops(2, seed=5))
    assert observed.scales() == scales


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A weight set with scales."""
    folder = tmp_path / 'mine'
    folder.mkdir()
    for kind in ('refiner', 'scorer'):
        made = {'refiner': RefineNet, 'scorer': ScoreNet}[kind](WIDTH).eval()
        made.load_state_dict(rig.random_state(kind, WIDTH, seed=3))
        save_network(made, folder / f'{kind}.safetensors')
        write_manifest(folder, kind, {'width': WIDTH})
    write_scales(folder, sha256_of(folder / 'refiner.safetensors'), GIVEN)
    return folder


def quantized(folder: Path) -> PoseNetworks:
    return replace(load_networks(str(folder)), dtype=torch.float16, int8=True)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        (None, 'with the scales for precision int8, is missing'),
        ('{', 'holds no scales'),
        ('[]', 'holds no scales'),
        ('{"format": 1, "weights_sha256": "x", "scales": {"a": 1}}', 'is of another refiner'),
        ('{"format": 1, "weights_sha256": "own", "scales": {"a": 0}}', 'must be positive'),
        ('{"format": 2, "weights_sha256": "own", "scales": {"a": 1}}', 'format 2, must be 1'),
    ],
)
def test_scales_that_cannot_be_used_name_the_remedy(folder, content, message):
    (folder / SCALES).unlink()
    if content is not None:
        (folder / SCALES).write_text(content)
    remedy = f'run `foundationpose-trt calibrate --weights {folder}`'
    with pytest.raises(ValueError, match=message) as error:
        read_scales(folder, 'own')
    assert remedy in str(error.value)


def test_a_wider_set_takes_its_scales_along(folder, tmp_path):
    wide = wider_set(str(folder), 2 * WIDTH, tmp_path / 'wide')
    assert read_scales(wide, sha256_of(wide / 'refiner.safetensors')) == pytest.approx(GIVEN)
    crops = rig.crops(1, seed=6)
    with torch.inference_mode():
        narrow, doubled = (load_networks(str(one)).refiner for one in (folder, wide))
        halves = [torch.cat([one.encodeA(crop) for crop in crops], 1) for one in (narrow, doubled)]
    largest = [float(half.max()) for half in halves]
    assert largest[0] == pytest.approx(largest[1], rel=1e-3), 'what they read differs'


def test_an_engine_of_int8_is_compared_with_rounded_convolutions(folder):
    networks, crops = quantized(folder), rig.crops(2, seed=7)
    plain = reference_of(load_networks(str(folder)), 'refiner')
    with torch.inference_mode():
        found, off = (one(*crops)['trans'] for one in (reference_of(networks, 'refiner'), plain))
    assert not torch.allclose(found, off, rtol=1e-3)
    with torch.inference_mode():
        both = torch.cat([networks.refiner.encodeA(crop) for crop in crops], 1)
        tokens = stage_of_integers(both).flatten(2).transpose(1, 2).float() + STATE['pos_embed.pe']
    wanted = rig.head(STATE, 'trans_head', tokens)
    torch.testing.assert_close(found, wanted, rtol=2e-2, atol=2e-2 * float(wanted.abs().max()))


onnx = pytest.importorskip('onnx')


@pytest.mark.parametrize(('form', 'opset', 'kind'), [('fused', 19, 10), ('untyped', 17, 1)])
def test_files_for_either_tensorrt_quantize_what_they_say(folder, tmp_path, form, opset, kind):
    """Single around integers, as TensorRT 8.6 wants; half, as later ones do."""
    file = tmp_path / 'x.onnx'
    export.write_onnx(quantized(folder), 'refiner_trunk', file, 'int8', form=form)
    model = onnx.load(str(file))
    assert [one.version for one in model.opset_import] == [opset]
    assert {one.type.tensor_type.elem_type for one in model.graph.input} == {kind}
    nodes = model.graph.node
    assert not [node for node in nodes if node.op_type == 'Identity']
    made = {node.output[0]: node for node in nodes}
    rounded = [
        [made[name].op_type for name in node.input[:2] if name in made]
        for node in nodes
        if node.op_type == 'Conv'
    ]
    assert sum(both == ['DequantizeLinear'] * 2 for both in rounded) == 9
    assert len(rounded) == 15
    pytest.importorskip('onnxruntime')
    engine = OnnxEngine(file, optimized=False)
    crops = [crop.to(engine.inputs[0].dtype) for crop in rig.crops(2, 8)]
    found = engine.execution({'crops': in_blocks(torch.cat(crops)).contiguous()}).enqueue()[
        'image'
    ]
    with torch.inference_mode():
        refiner = load_networks(str(folder)).refiner
        both = torch.cat([refiner.encodeA(crop.float()) for crop in crops], 1)
        wanted, plain = stage_of_integers(both), refiner.encodeAB(both)
    # of weights that were saved in half
    assert size(found - wanted) < 0.1 * size(plain - wanted)


def test_what_is_not_quantized_is_refused_and_needs_no_scales(folder):
    networks = quantized(folder)
    for kind in ('extractor_trunk', 'refiner'):
        with pytest.raises(ValueError, match='precision is "int8", must be one of fp32, fp16$'):
            export.typed_network(networks, kind, 'int8')
    with pytest.raises(ValueError, match='form of the refiner_trunk is "apart", must be fused or'):
        export.typed_network(networks, 'refiner_trunk', 'int8', 'apart')


def test_the_scales_are_part_of_what_a_file_is_made_from(folder):
    asked = export.export_request(str(folder), 'refiner_trunk', 'int8')
    assert asked['scales'] == GIVEN
    content = json.loads((folder / SCALES).read_text())
    content['scales']['0.conv1'] *= 2
    (folder / SCALES).write_text(json.dumps(content))
    assert export.export_request(str(folder), 'refiner_trunk', 'int8') != asked


@pytest.mark.parametrize('backend', ['torch', 'auto'])
def test_back_ends_without_integers_refuse_them(folder, backend, monkeypatch):
    """Never silently in half."""
    monkeypatch.setattr(backends, '_automatic_on_cpu', lambda *_: ('torch', 'none is there'))
    with pytest.raises(
        ValueError, match='int8 is of TensorRT engines, and backend torch'
    ) as error:
        backends.open_engines(quantized(folder), BackendChoice(backend))
    assert f'build --weights {folder} --precision int8 --backend tensorrt' in str(error.value)


def test_the_command_measures_a_weight_set(folder):
    (folder / SCALES).unlink()
    words = ['calibrate', '--weights', str(folder), '--objects', '1', '--views', '1']
    assert cli.main([*words, '--device', 'cpu']) == 0
    found = read_scales(folder, sha256_of(folder / 'refiner.safetensors'))
    assert list(found) == NAMES
    made = load_networks(str(folder)).refiner
    quantized_stage(made.encodeAB, found)


def test_a_folder_that_cannot_be_written_is_refused_at_once(folder, monkeypatch, capsys):
    monkeypatch.setattr('os.access', lambda path, mode: Path(path) != folder)
    assert cli.main(['calibrate', '--weights', str(folder), '--device', 'cpu']) == 2
    assert 'cannot be written: give a copy of it as --weights' in capsys.readouterr().err


def test_the_scales_of_shipped_sets_are_of_their_weights():
    for name in ('small', 'base'):
        folder = WEIGHTS_FOLDER / name
        found = read_scales(folder, sha256_of(folder / 'refiner.safetensors'))
        assert list(found) == NAMES


def test_what_is_kept_is_little_and_of_all_places():
    """Images have more in their middle than at their edges."""
    observed, x = Observed(), torch.zeros(16, 16, 40, 40)
    x[..., 10:30, 10:30] = torch.rand(16, 16, 20, 20)
    observed.note('x', x)
    (kept,) = observed._kept['x']
    assert len(kept) <= KEPT and kept.untyped_storage().nbytes() == kept.nbytes
    assert float(kept.mean()) == pytest.approx(float(x.mean()), rel=0.1)
    assert float((kept > 0).float().mean()) == pytest.approx(0.25, abs=0.02)


def test_values_seldom_seen_are_not_cut_to_nothing():
    assert best_scale(torch.zeros(1000), 2.0) > 0.5 * 2 / 127


def scaled_anew(folder: Path) -> None:
    content = json.loads((folder / SCALES).read_text())
    content['scales'] = {name: value / 3 for name, value in content['scales'].items()}
    (folder / SCALES).write_text(json.dumps(content))


def test_an_engine_with_the_scales_of_before_is_refused(folder, tmp_path):
    networks, file = quantized(folder), tmp_path / 'refiner_trunk.onnx'
    request = export.export_request(str(folder), 'refiner_trunk', 'int8')
    export.ensure_onnx(networks, request, file)
    plan, told = tmp_path / 'x' / 'refiner_trunk.engine', backends.comparison(networks, 'refiner')
    backends.require_same_weights(networks, plan, file, 'THUS')
    scaled_anew(folder)
    with pytest.raises(ValueError, match='built with other scales than .*build it again: THUS'):
        backends.require_same_weights(networks, plan, file, 'THUS')
    assert backends.comparison(networks, 'refiner') != told, 'it would not be compared again'
    half = replace(networks, int8=False)
    backends.require_same_weights(half, plan, file, 'THUS')


def test_scales_that_do_not_fit_are_not_taken_along(folder, tmp_path):
    """Who wants int8 of the wider set is told; who does not is not stopped."""
    wide = wider_set(str(folder), 2 * WIDTH, tmp_path / 'wide')
    assert (wide / SCALES).exists()
    content = json.loads((folder / SCALES).read_text())
    (folder / SCALES).write_text(json.dumps({**content, 'weights_sha256': 'others'}))
    assert not (wider_set(str(folder), 2 * WIDTH, tmp_path / 'wide') / SCALES).exists()
