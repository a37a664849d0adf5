"""What the estimator says when it cannot answer: named outcomes, never a pose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracle_rig import (
    CAMERA,
    CENTER_M,
    OracleRefiner,
    OracleScorer,
    ellipsoid,
    errors,
    frame_of,
    oracle_networks,
    pose_of,
)

from foundationpose_trt.datatypes import Frame, Outcome, PoseEstimate
from foundationpose_trt.pose.estimator import EstimatorSettings, PoseEstimator, RegisterStage

# half turns about the three axes leave 63 of the 252 start rotations
FEW = EstimatorSettings(
    schedule=(RegisterStage(0, 4), RegisterStage(1, 4)),
    symmetries=tuple(
        tuple(np.roll(np.diag([-1.0, -1.0, 1.0]), k, (0, 1)).ravel()) for k in range(3)
    ),
)


def made(settings: EstimatorSettings = FEW, **networks: object) -> PoseEstimator:
    return PoseEstimator(ellipsoid(), oracle_networks(**networks), settings)


def fails(estimate: PoseEstimate, outcome: Outcome) -> None:
    assert estimate.outcome is outcome
    assert estimate.camera_from_object is None
    assert estimate.score is None and estimate.quality is None
    assert len(estimate.ranked_camera_from_object) == len(estimate.ranked_scores) == 0


@pytest.fixture(scope='module')
def estimator() -> PoseEstimator:
    return made()


@pytest.fixture(scope='module')
def view() -> tuple[Frame, np.ndarray]:
    return frame_of(pose_of(3))


def test_an_empty_mask_costs_no_network_call(view):
    estimator = made()
    fails(estimator.register(view[0], np.zeros_like(view[1])), Outcome.EMPTY_MASK)
    assert not estimator.networks.refiner.calls and not estimator.networks.scorer.calls


@pytest.mark.parametrize('value', [0.0, np.nan, np.inf, -np.inf, -1.0])
def test_no_depth_at_all(estimator, view, value):
    frame = replace(view[0], depth_m=np.full_like(view[0].depth_m, value))
    fails(estimator.register(frame, view[1]), Outcome.NO_DEPTH_IN_MASK)


def test_depth_around_the_mask_does_not_count(estimator, view):
    frame, mask = view
    rows, columns = np.nonzero(mask)
    depth = np.full_like(frame.depth_m, 0.5)
    # the depth filter fills holes of up to two pixels
    depth[rows.min() - 3 : rows.max() + 4, columns.min() - 3 : columns.max() + 4] = 0
    fails(estimator.register(replace(frame, depth_m=depth), mask), Outcome.NO_DEPTH_IN_MASK)


@pytest.mark.parametrize(('pixels', 'enough'), [(3, False), (4, True)])
def test_four_valid_pixels_are_needed(view, pixels, enough):
    frame, mask = view
    few = np.zeros_like(mask)
    rows, columns = np.nonzero(mask)
    middle = len(rows) // 2
    few[rows[middle], columns[middle] : columns[middle] + pixels] = True
    outcome = made().register(frame, few).outcome
    assert (outcome is Outcome.NO_DEPTH_IN_MASK) != enough


@pytest.mark.parametrize('limits', [{'min_depth_m': 0.7}, {'max_depth_m': 0.3}])
def test_a_mask_outside_the_depth_range(view, limits):
    fails(made(replace(FEW, **limits)).register(*view), Outcome.OUT_OF_RANGE)


class Leaving(OracleRefiner):
    """Sends the object away along the optical axis."""

    radii = 400.0

    def __call__(self, rendered: torch.Tensor, observed: torch.Tensor) -> dict[str, torch.Tensor]:
        zero = torch.zeros(len(rendered), 3)
        return {'trans': zero + torch.tensor([0.0, 0.0, self.radii]), 'rot': zero}


@pytest.mark.parametrize('radii', [400.0, -400.0, -9.5])
def test_a_pose_refined_out_of_the_range(view, radii):
    refiner = Leaving()
    refiner.radii = radii
    fails(made(refiner=refiner).register(*view), Outcome.OUT_OF_RANGE)
    fails(made(refiner=refiner).track(view[0], pose_of(3)), Outcome.OUT_OF_RANGE)


def test_tracking_from_behind_the_camera(estimator, view):
    behind = pose_of(3)
    behind[2, 3] -= 2.0
    fails(estimator.track(view[0], behind), Outcome.OUT_OF_RANGE)


class Broken(OracleRefiner):
    """Answers like the oracle, but spoils some of the numbers."""

    spoil: Callable[[dict[str, torch.Tensor]], None]

    def __call__(self, rendered: torch.Tensor, observed: torch.Tensor) -> dict[str, torch.Tensor]:
        update = super().__call__(rendered, observed)
        type(self).spoil(update)
        return update


def spoiled(key: str, rows: slice, value: float) -> Broken:
    def spoil(update: dict[str, torch.Tensor]) -> None:
        update[key][rows] = value

    return type('Spoiled', (Broken,), {'spoil': staticmethod(spoil)})()


@pytest.mark.parametrize('key', ['trans', 'rot'])
@pytest.mark.parametrize('rows', [slice(None), slice(0, 1)], ids=['all', 'one'])
def test_a_refiner_that_produces_nan(view, key, rows):
    refiner = spoiled(key, rows, float('nan'))
    fails(made(refiner=refiner).register(*view), Outcome.NOT_FINITE)
    fails(made(refiner=refiner).track(view[0], pose_of(3)), Outcome.NOT_FINITE)


def test_a_refiner_that_produces_infinity(view):
    refiner = spoiled('trans', slice(None), float('inf'))
    fails(made(refiner=refiner).register(*view), Outcome.NOT_FINITE)
    fails(made(refiner=refiner).track(view[0], pose_of(3)), Outcome.NOT_FINITE)


class BlindScorer(OracleScorer):
    def rank(self, features: torch.Tensor) -> torch.Tensor:
        return torch.full(features.shape[:2], float('nan'))


def test_a_scorer_that_produces_nan(view):
    fails(made(scorer=BlindScorer()).register(*view), Outcome.NOT_FINITE)


def test_a_failure_leaves_no_trace(view):
    estimator, truth = made(), pose_of(3)
    frame, mask = view
    before = estimator.track(frame, truth).camera_from_object
    estimator.register(replace(frame, depth_m=np.zeros_like(frame.depth_m)), mask)
    estimator.register(frame, np.zeros_like(mask))
    after = estimator.track(frame, truth).camera_from_object
    np.testing.assert_array_equal(before, after)
    turn_deg, shift_mm = errors(after, truth, CENTER_M)
    assert turn_deg < 1.0 and shift_mm < 1.5


@pytest.mark.parametrize(
    'shape',
    [
        (CAMERA.height, CAMERA.width - 1),
        (CAMERA.width, CAMERA.height),
        (1, 300, 400),
        (300 * 400,),
    ],
)
def test_a_mask_of_another_size_is_refused(estimator, view, shape):
    with pytest.raises(ValueError, match=r'mask is \(.*the image \(300, 400\): publish the mask'):
        estimator.register(view[0], np.ones(shape, bool))


@pytest.mark.filterwarnings('ignore:invalid value:RuntimeWarning')
@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_tracking_from_a_pose_that_is_not_finite_is_refused(estimator, view, value):
    start = pose_of(3)
    start[0, 3] = value
    with pytest.raises(ValueError, match='the pose to track from is not finite'):
        estimator.track(view[0], start)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'schedule': ()}, 'schedule is empty: give at least one RegisterStage'),
        ({'schedule': (RegisterStage(-1, 5),)}, 'iterations=-1.* must be >= 0 and keep >= 1'),
        ({'schedule': (RegisterStage(1, 0),)}, 'keep=0.* must be >= 0 and keep >= 1'),
        ({'schedule': (RegisterStage(1, 9, 'eye'),)}, "judge must be 'scorer' or 'depth'"),
        (
            {'schedule': (RegisterStage(1, 9, 'depth'),)},
            'last stage: its judge must be the',
        ),
        ({'track_iterations': 0}, 'track_iterations is 0, must be at least 1'),
        ({'min_depth_m': 2.0, 'max_depth_m': 1.0}, r'depth range 2\.0\.\.1\.0 m: min must be'),
        ({'min_depth_m': -0.5}, r'depth range -0\.5\.\.'),
        ({'chunk': -1}, r'chunk is -1, must be 0 \(by device\) or more'),
        ({'symmetries': ((1.0, 0.0, 0.0),)}, r'symmetry \(1\.0, 0\.0, 0\.0\) is no rotation'),
        ({'symmetries': ((2.0, 0, 0, 0, 1, 0, 0, 0, 1),)}, 'is no rotation matrix: give nine'),
        ({'symmetries': ((-1.0, 0, 0, 0, 1, 0, 0, 0, 1),)}, 'is no rotation matrix'),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        EstimatorSettings(**changes)
