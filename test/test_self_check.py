"""The check that an engine computes what its network does."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from foundationpose_trt.pose.backends import open_engines
from foundationpose_trt.pose.export import write_onnx
from foundationpose_trt.pose.network_engines import PairedEngine
from foundationpose_trt.pose.self_check import (
    measured_tolerance,
    random_crops,
    reference_of,
    rendered_crops,
    require_agreement,
)
from foundationpose_trt.pose.weights import PoseNetworks, load_networks
from foundationpose_trt.runtime.choice import BackendChoice
from foundationpose_trt.runtime.engine import Engine
from foundationpose_trt.runtime.onnx_engine import OnnxEngine


@pytest.fixture(scope='module')
def networks() -> PoseNetworks:
    return load_networks('small')


def onnx_engine(networks: PoseNetworks, kind: str, folder: Path, precision: str) -> Engine:
    pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    path = folder / f'{kind}.onnx'
    write_onnx(networks, kind, path, precision)
    return PairedEngine(OnnxEngine(path))


@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
@pytest.mark.parametrize(('kind', 'outputs'), [('refiner', 2), ('extractor', 1)])
@pytest.mark.parametrize('batch', [1, 3, 8, 11])
def test_a_right_engine_agrees_in_any_batch(networks, tmp_path, kind, outputs, precision, batch):
    engine = onnx_engine(networks, kind, tmp_path, precision)
    found = measured_tolerance(engine, reference_of(networks, kind), batch)
    assert list(found) == ['random_crops_relative', 'rendered_crops_relative']
    limit = 1e-3 if precision == 'fp32' else 0.1
    for values in found.values():
        assert len(values) == outputs and all(0 < value < limit for value in values.values())
    require_agreement('engine', found, 'nothing')


@pytest.mark.parametrize('damage', ['weights', 'nan', 'swapped'])
def test_a_wrong_engine_is_refused(networks, tmp_path, damage):
    wrong = copy.deepcopy(networks)
    first = wrong.refiner.encodeA[0].net[0].weight
    if damage == 'weights':
        first.mul_(-1)
    elif damage == 'nan':
        wrong.refiner.rot_head[1].bias[0] = float('nan')
    else:  # the two crops in the wrong order, as a file of another program may have them
        forward = wrong.refiner.forward
        wrong.refiner.forward = lambda a, b: forward(b, a)
    engine = open_engines(wrong, BackendChoice('torch')).refiner
    found = measured_tolerance(engine, reference_of(networks, 'refiner'), 4)
    words = 'refiner.engine: output .* on random crops.* computes something else; do'
    with pytest.raises(ValueError, match=words):
        require_agreement('refiner.engine', found, 'do that')
    del found['random_crops_relative']  # the rendered ones alone would tell as well
    with pytest.raises(ValueError, match='on rendered crops'):
        require_agreement('refiner.engine', found, 'do that')


def test_test_crops_are_noise_and_shapes_and_always_the_same():
    rendered, observed = random_crops()
    assert rendered.shape == observed.shape == (8, 6, 160, 160)
    assert rendered.abs().max() <= 1 and torch.equal(rendered, random_crops()[0])
    black = (rendered == 0).float().mean((1, 2, 3))
    assert (black[:4] < 0.01).all() and (black[4:] > 0.1).all()
    assert not torch.equal(rendered[4:], observed[4:])


def test_rendered_crops_show_the_object_twice_a_little_apart(networks):
    rendered, observed = rendered_crops(networks.device)
    for half in (rendered, observed):
        assert half.shape == (8, 6, 160, 160) and half.abs().max() < 2
        seen = (half[:, 5] != 0).float().mean((1, 2))
        assert (seen > 0.15).all() and (seen < 0.6).all()
    both = (rendered[:, 5] != 0) & (observed[:, 5] != 0)
    apart = (rendered - observed)[:, 3:].abs().sum(1)[both]
    assert 0.01 < apart.median() < 0.5
    assert torch.equal(rendered, rendered_crops(networks.device)[0])


def test_the_reference_is_the_network_in_float32(networks):
    half = PoseNetworks(
        copy.deepcopy(networks.refiner).half(), copy.deepcopy(networks.scorer).half(), 'half',
        networks.device, torch.float16,
    )  # fmt: skip
    crops = [half[-2:] for half in random_crops()]
    with torch.inference_mode():
        wanted, given = networks.refiner(*crops), reference_of(half, 'refiner')(*crops)
    torch.testing.assert_close(given['rot'], wanted['rot'], atol=5e-3, rtol=0.05)
    assert half.refiner.encodeA[0].net[0].weight.dtype == torch.float16
