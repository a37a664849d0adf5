"""Settings of an estimator of several objects: which may differ, and which may change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from oracle_rig import oracle_networks
from scene_rig import MESHES, STARTS, THINGS, TRUTH, scene_of

from foundationpose_trt.datatypes import Outcome
from foundationpose_trt.pose.estimator import EstimatorSettings, PoseEstimator, RegisterStage
from foundationpose_trt.pose.symmetry import symmetry_rotations
from foundationpose_trt.pose.weights import PoseNetworks

TURNS = symmetry_rotations(['z_full'])  # leave 20 of the 252 start rotations


def made(
    settings: EstimatorSettings | Sequence[EstimatorSettings] | None = None,
    networks: PoseNetworks | None = None,
    meshes: Sequence = MESHES,
) -> PoseEstimator:
    return PoseEstimator(meshes, networks or oracle_networks(), settings)


@pytest.fixture(scope='module')
def view():
    return scene_of(THINGS, TRUTH)


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        ([EstimatorSettings()] * 2, '2 settings for 3 objects: give one for all or one for each'),
        ([EstimatorSettings(chunk=c) for c in (4, 4, 8)], 'chunk is 4, 4, 8: objects of one'),
        (
            [EstimatorSettings(cuda_graph_cache_capacity=c) for c in (0, 2, 0)],
            'cuda_graph_cache_capacity is 0, 2, 0: .* give all the same value',
        ),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        made(settings)
    estimator = made()
    with pytest.raises(ValueError, match=message):
        estimator.set_settings(settings)
    assert estimator.settings == (EstimatorSettings(),) * 3


def test_an_estimator_of_nothing_is_refused():
    with pytest.raises(ValueError, match='no mesh: an estimator needs at least one object'):
        made(meshes=())


def test_settings_change_while_running(view):
    networks = oracle_networks()
    estimator = made(EstimatorSettings(track_iterations=1), networks)
    estimator.track_all(view[0], dict(enumerate(STARTS)))
    new = [
        EstimatorSettings(track_iterations=2),
        EstimatorSettings(min_depth_m=0.5),
        EstimatorSettings(schedule=(RegisterStage(0, 3),), symmetries=TURNS),
    ]
    networks.refiner.calls.clear()
    estimator.set_settings(new)
    assert estimator.settings == tuple(new)
    estimates = estimator.track_all(view[0], dict(enumerate(STARTS)))
    assert networks.refiner.calls == [3, 3]  # two is the default
    assert [estimates[i].outcome for i in range(3)] == [
        Outcome.OK, Outcome.OUT_OF_RANGE, Outcome.OK,
    ]  # fmt: skip
    registered = estimator.register(view[0], view[1][2], 2)
    assert len(registered.ranked_scores) == 3 and networks.scorer.ranked == [(1, 20, 1)]


def test_changes_that_would_need_other_buffers_are_refused(view):
    symmetric = EstimatorSettings(chunk=64, symmetries=TURNS)
    estimator = made([symmetric] * 3)
    with pytest.raises(ValueError, match='symmetries leave 64 crops at once, the buffers hold 20'):
        estimator.set_settings([symmetric, symmetric, replace(symmetric, symmetries=())])
    with pytest.raises(ValueError, match='chunk is 32 and was 64: it is the size of the buffers'):
        estimator.set_settings([replace(symmetric, chunk=32)] * 3)
    assert estimator.settings == (symmetric,) * 3
    estimator.set_settings([replace(symmetric, symmetries=symmetry_rotations(['z_1']))] * 3)
    assert estimator.track(view[0], STARTS[1], 1).outcome is Outcome.OK


def test_a_new_number_of_graphs_reaches_the_sessions(monkeypatch):
    estimator, told = made(), []
    monkeypatch.setattr(estimator.inference, 'set_cuda_graph_cache_capacity', told.append)
    estimator.set_settings([EstimatorSettings(min_depth_m=0.2)] * 3)
    assert told == []
    estimator.set_settings([EstimatorSettings(cuda_graph_cache_capacity=4)] * 3)
    assert told == [4]
