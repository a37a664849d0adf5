"""Objects tracked together on a CUDA device: no host sync, and as one by one."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from oracle_rig import CAMERA, errors, oracle_networks
from scene_rig import MESHES, STARTS, THINGS, TRUTH, scene_of
from test_gpu import no_host_sync

from foundationpose_trt.datatypes import Outcome, TrackingState
from foundationpose_trt.pose.estimator import PRUNED_SCHEDULE, EstimatorSettings, PoseEstimator
from foundationpose_trt.pose.object_group import ObjectGroup
from foundationpose_trt.pose.tracker import TrackerSettings
from foundationpose_trt.pose.weights import load_networks
from foundationpose_trt.runtime.graph_cache import flush_allocator

pytestmark = pytest.mark.gpu
DEVICE = 'cuda'


def estimator_of(precision: str, graphs: int = 0) -> PoseEstimator:
    """Three objects with one, three and two iterations, warmed up."""
    settings = [
        EstimatorSettings(
            schedule=PRUNED_SCHEDULE, track_iterations=count, cuda_graph_cache_capacity=graphs
        )
        for count in (1, 3, 2)
    ]
    estimator = PoseEstimator(MESHES, load_networks('small', DEVICE, precision), settings)
    estimator.warm_up(CAMERA)
    return estimator


@pytest.mark.parametrize('graphs', [0, 8])
@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
def test_a_batch_never_waits_but_for_the_result(precision, graphs):
    estimator = estimator_of(precision, graphs)
    frame, masks = scene_of(THINGS, TRUTH)
    captures = {name: stats.captures for name, stats in estimator.inference.stats().items()}
    with no_host_sync():
        tracked = estimator.track_all(frame, dict(enumerate(STARTS)))
        pair = estimator.track_all(frame, {2: STARTS[2], 0: STARTS[0]})
        registered = estimator.register(frame, masks[2], 2)
        scores = estimator.score(frame, np.stack([TRUTH[1]] * 7), 1)
    assert list(tracked) == [0, 1, 2] and list(pair) == [2, 0]
    assert {one.outcome for one in (*tracked.values(), registered)} == {Outcome.OK}
    assert np.isfinite(scores).all()
    # the warm-up met every number of crops
    after = {name: stats.captures for name, stats in estimator.inference.stats().items()}
    assert after.get('refiner') == captures.get('refiner')


@pytest.mark.parametrize('precision', ['fp32', 'fp16'])
def test_together_is_as_one_by_one(precision):
    estimator = estimator_of(precision)
    frame, _ = scene_of(THINGS, TRUTH)
    together = estimator.track_all(frame, dict(enumerate(STARTS)))
    for index, (thing, start) in enumerate(zip(THINGS, STARTS, strict=True)):
        alone = estimator.track(frame, start, index)
        poses = together[index].camera_from_object, alone.camera_from_object
        turn_deg, shift_mm = errors(*poses, np.array(thing.center_m))
        assert turn_deg < 0.2 and shift_mm < 0.3  # other kernels for other batches


def test_oracle_networks_reach_the_truth_on_the_device():
    settings = EstimatorSettings(track_iterations=3)
    estimator = PoseEstimator(MESHES, oracle_networks(DEVICE), settings)
    frame, _ = scene_of(THINGS, TRUTH)
    estimates = estimator.track_all(frame, dict(enumerate(STARTS)))
    for index, thing in enumerate(THINGS):
        pose, center_m = estimates[index].camera_from_object, np.array(thing.center_m)
        turn_deg, shift_mm = errors(pose, TRUTH[index], center_m)
        assert turn_deg < 1.0 and shift_mm < 1.6


def test_a_group_with_its_scorer_check_never_waits():
    settings = TrackerSettings(
        score_interval=1, score_margin=1e9, min_agreement=0.0, min_visible=0.0, min_support_px=0
    )
    group = ObjectGroup(estimator_of('fp16'), [settings] * 3)
    for index, pose in enumerate(TRUTH):
        group.start_from(index, pose)
    frame, _ = scene_of(THINGS, TRUTH)
    with no_host_sync():
        for _ in range(3):
            steps = group.track(frame)
            assert {step.estimate.outcome for step in steps.values()} == {Outcome.OK}
    assert group.states == (TrackingState.TRACKING,) * 3


def test_what_a_node_drops_at_cleanup_gives_its_memory_back():
    """As tracker_node does: made, warmed up, used, dropped, flushed; what libraries keep of the
    first two times is not more after the fifth."""

    def level(graphs: int) -> int:
        estimator = estimator_of('fp16', graphs)
        frame, masks = scene_of(THINGS, TRUTH)
        estimator.register(frame, masks[0], 0)
        estimator.track_all(frame, dict(enumerate(STARTS)))
        del estimator
        gc.collect()
        flush_allocator()
        return torch.cuda.memory_reserved()

    levels = [level(graphs) for graphs in (8, 8, 8, 8, 0)]
    assert max(levels[2:]) <= levels[1], f'bytes that torch holds after each time: {levels}'
