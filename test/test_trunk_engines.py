"""Trunk and heads joined, as TensorRT runs them, with torch in its place: the same poses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle_rig import ellipsoid, errors, frame_of, pose_of

from foundationpose_trt.pose.backends import NetworkEngines
from foundationpose_trt.pose.estimator import EstimatorSettings, PoseEstimator
from foundationpose_trt.pose.export import APART, FUSED, typed_network
from foundationpose_trt.pose.heads import ExtractorHead, RefinerHeads
from foundationpose_trt.pose.weights import PoseNetworks, load_networks
from foundationpose_trt.runtime.joined_engine import JoinedEngine
from foundationpose_trt.runtime.specs import BATCH, TensorSpec
from foundationpose_trt.runtime.torch_engine import TorchEngine

OUTPUTS = {'refiner': {'trans': 3, 'rot': 3}, 'extractor': {'features': 128}}
SETTINGS = EstimatorSettings(chunk=16)


@pytest.fixture(scope='module')
def networks() -> PoseNetworks:
    return load_networks('small')


def joined(networks: PoseNetworks, kind: str, form: str) -> JoinedEngine:
    """What backends makes of a TensorRT engine, which writes its output pixel by pixel."""
    float32, last = torch.float32, torch.channels_last
    crops = [TensorSpec(name, (BATCH, 6, 160, 160), float32) for name in ('inputA', 'inputB')]
    between = [TensorSpec('image', (BATCH, 128, 20, 20), float32, last)]
    trunk = typed_network(networks, f'{kind}_trunk', 'fp32', form)

    def written(*halves: torch.Tensor) -> torch.Tensor:
        return trunk(*halves).contiguous(memory_format=last)

    first = TorchEngine(kind, written, crops, between, 'cpu')
    outputs = [TensorSpec(name, (BATCH, size), float32) for name, size in OUTPUTS[kind].items()]
    makes = {'refiner': RefinerHeads, 'extractor': ExtractorHead}
    network = networks.refiner if kind == 'refiner' else networks.scorer
    return JoinedEngine(first, makes[kind](network, float32), outputs)


@pytest.mark.parametrize('form', [FUSED, APART])
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
