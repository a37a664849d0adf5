"""Trunk and heads joined, as TensorRT runs them, with torch in its place: the same poses."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from oracle_rig import ellipsoid, errors, frame_of, pose_of

from foundationpose_trt.pose.backends import NetworkEngines
from foundationpose_trt.pose.crops import pairs_spec
from foundationpose_trt.pose.estimator import EstimatorSettings, PoseEstimator
from foundationpose_trt.pose.export import APART, FUSED, typed_network
from foundationpose_trt.pose.heads import ExtractorHead, RefinerHeads
from foundationpose_trt.pose.networks import fold_batch_norm
from foundationpose_trt.pose.self_check import measured_tolerance, reference_of
from foundationpose_trt.pose.typed_networks import TypedTrunk
from foundationpose_trt.pose.weights import PoseNetworks, load_networks
from foundationpose_trt.runtime.joined_engine import JoinedEngine
from foundationpose_trt.runtime.specs import BATCH, TensorSpec
from foundationpose_trt.runtime.torch_engine import TorchEngine

OUTPUTS = {'refiner': {'trans': 3, 'rot': 3}, 'extractor': {'features': 128}}
BLOCKS = 'blocks'  # of crops
SETTINGS = EstimatorSettings(chunk=16)


@pytest.fixture(scope='module')
def networks() -> PoseNetworks:
    return load_networks('small')


def trunk_on_blocks(networks: PoseNetworks, kind: str) -> TypedTrunk:
    """As it is exported in half, in float32."""
    network = copy.deepcopy(networks.refiner if kind == 'refiner' else networks.scorer)
    fold_batch_norm(network)
    return TypedTrunk(network, torch.float32, on_blocks=True).eval().requires_grad_(False)


def joined(networks: PoseNetworks, kind: str, form: str) -> JoinedEngine:
    """What backends makes of a TensorRT engine, which writes its output pixel by pixel."""
    float32, last = torch.float32, torch.channels_last
    between = [TensorSpec('image', (BATCH, 128, 20, 20), float32, last)]
    if form == BLOCKS:
        trunk, shape = trunk_on_blocks(networks, kind), (BATCH, 96, 40, 40)
        crops = TensorSpec('crops', shape, float32, last)
    else:
        trunk = typed_network(networks, f'{kind}_trunk', 'fp32', form)
        crops = pairs_spec(float32)

    def written(pairs: torch.Tensor) -> torch.Tensor:
        return trunk(pairs).contiguous(memory_format=last)

    first = TorchEngine(kind, written, [crops], between, 'cpu')
    outputs = [TensorSpec(name, (BATCH, size), float32) for name, size in OUTPUTS[kind].items()]
    makes = {'refiner': RefinerHeads, 'extractor': ExtractorHead}
    network = networks.refiner if kind == 'refiner' else networks.scorer
    return JoinedEngine(first, makes[kind](network, float32), outputs, per_output=2)


@pytest.mark.parametrize('form', [FUSED, APART, BLOCKS])
def test_poses_and_scores_are_those_of_the_networks(networks, form):
    """Also where the crops go through the networks in two parts."""
    engines = NetworkEngines(*(joined(networks, k, form) for k in OUTPUTS), 'joined', 16)
    truth = pose_of(5)
    frame, _ = frame_of(truth, wall_m=1.0)
    both = [PoseEstimator(ellipsoid(), networks, SETTINGS, given) for given in (None, engines)]
    tracked = [estimator.track(frame, truth).camera_from_object for estimator in both]
    assert max(errors(*tracked)) < 0.01
    poses = np.stack([pose_of(seed) for seed in range(20)])
    scores = [estimator.score(frame, poses) for estimator in both]
    np.testing.assert_allclose(scores[1], scores[0], atol=1e-3)
    assert np.ptp(scores[0]) > 0.1


@pytest.mark.parametrize('form', [FUSED, BLOCKS])
def test_the_self_check_gives_an_engine_its_crops_as_it_takes_them(networks, form):
    for kind in OUTPUTS:
        engine, reference = joined(networks, kind, form), reference_of(networks, kind)
        for values in measured_tolerance(engine, reference, 3).values():
            assert all(value < 1e-3 for value in values.values())
