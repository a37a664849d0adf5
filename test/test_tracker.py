"""The tracker's state machine, driven by an estimator whose answers are scripted."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from tracker_rig import (
    BAD,
    FRAME,
    HIDDEN,
    LOST,
    MASK,
    SEARCHING,
    TRACKING,
    Scripted,
    failed,
    found,
    pose,
)

from foundationpose_trt.datatypes import Outcome, PoseEstimate, PoseQuality
from foundationpose_trt.pose.tracker import ObjectTracker, TrackerSettings, turned_copies


def run(tracker: ObjectTracker, masks: list[np.ndarray | None]) -> list[tuple]:
    """(state, stage, outcome) of every frame; no frame may carry a pose without OK."""
    rows = []
    for mask in masks:
        step = tracker.step(FRAME, mask)
        estimate = step.estimate
        assert (estimate.camera_from_object is not None) == (estimate.outcome is Outcome.OK)
        assert step.elapsed_ms >= 0 and step.state is tracker.state
        rows.append((step.state, step.stage, estimate.outcome))
    return rows


def tracking(track: list[PoseEstimate], settings: TrackerSettings, scores: list = ()):
    estimator = Scripted(track=track, scores=scores)
    tracker = ObjectTracker(estimator, settings)
    tracker.start_from(pose(0.0))
    return tracker, estimator


def test_without_a_mask_it_searches_and_computes_nothing():
    tracker = ObjectTracker(Scripted())
    assert tracker.state is SEARCHING
    assert run(tracker, [None, None]) == [(SEARCHING, 'idle', Outcome.NO_MASK)] * 2


def test_a_registration_that_passes_starts_tracking_from_its_pose():
    estimator = Scripted([found(0.5)], [found(0.51), found(0.52)])
    rows = run(ObjectTracker(estimator), [None, MASK, None, MASK])
    assert rows == [
        (SEARCHING, 'idle', Outcome.NO_MASK),
        (TRACKING, 'register', Outcome.OK),
        (TRACKING, 'track', Outcome.OK),
        (TRACKING, 'track', Outcome.OK),  # masks are not used while tracking
    ]
    assert len(estimator.masks) == 1 and estimator.masks[0] is MASK
    assert estimator.tracked_from == [0.5, 0.51]


@pytest.mark.parametrize(
    'outcome',
    [Outcome.EMPTY_MASK, Outcome.NO_DEPTH_IN_MASK, Outcome.OUT_OF_RANGE, Outcome.NOT_FINITE],
)
def test_a_failed_registration_keeps_searching_and_names_why(outcome):
    tracker = ObjectTracker(Scripted([failed(outcome), found(0.1)]))
    rows = run(tracker, [MASK, MASK])
    assert rows == [(SEARCHING, 'register', outcome), (TRACKING, 'register', Outcome.OK)]


@pytest.mark.parametrize(
    ('quality', 'outcome'),
    [
        (PoseQuality(1000, 500, 0, 300), Outcome.LOW_QUALITY),  # 62 % agree: enough for tracking
        (PoseQuality(1000, 200, 800, 0), Outcome.LOW_SUPPORT),  # 20 % visible: same
        (PoseQuality(100, 50, 0, 0), Outcome.LOW_SUPPORT),  # 50 px
        (PoseQuality(0, 0, 0, 0), Outcome.LOW_SUPPORT),
        (PoseQuality(1000, 0, 0, 900), Outcome.LOW_QUALITY),
    ],
)
def test_the_gate_after_a_registration_is_stricter(quality, outcome):
    tracker = ObjectTracker(Scripted([found(0.1, quality)]))
    step = tracker.step(FRAME, MASK)
    assert (step.state, step.estimate.outcome) == (SEARCHING, outcome)
    assert step.estimate.camera_from_object is None and step.estimate.quality == quality


@pytest.mark.parametrize(
    ('quality', 'outcome'),
    [
        (PoseQuality(1000, 620, 0, 380), Outcome.OK),
        (PoseQuality(1000, 580, 0, 420), Outcome.LOW_QUALITY),
        (PoseQuality(1000, 160, 840, 0), Outcome.OK),  # mostly occluded, nothing contradicts
        (PoseQuality(1000, 140, 860, 0), Outcome.LOW_SUPPORT),
        (PoseQuality(100, 61, 0, 0), Outcome.OK),
        (PoseQuality(100, 59, 0, 0), Outcome.LOW_SUPPORT),
    ],
)
def test_the_gate_while_tracking(quality, outcome):
    settings = TrackerSettings(min_agreement=0.6, min_visible=0.15, min_support_px=60)
    tracker, _ = tracking([found(0.1, quality)], settings)
    assert run(tracker, [None]) == [(TRACKING, 'track', outcome)]


def test_a_short_occlusion_is_survived_from_the_last_good_pose():
    script = [found(0.1), HIDDEN, BAD, failed(Outcome.OUT_OF_RANGE), found(0.2), found(0.3)]
    tracker, estimator = tracking(script, TrackerSettings(lost_after=4))
    rows = run(tracker, [None] * 6)
    assert [row[0] for row in rows] == [TRACKING] * 6
    assert [row[2].value for row in rows] == [
        'OK', 'LOW_SUPPORT', 'LOW_QUALITY', 'OUT_OF_RANGE', 'OK', 'OK',
    ]  # fmt: skip
    # never from the pose of a frame that failed
    assert estimator.tracked_from == [0.0, 0.1, 0.1, 0.1, 0.1, 0.2]


def test_it_is_lost_after_so_many_bad_frames_in_a_row():
    script = [HIDDEN, HIDDEN, found(0.1), HIDDEN, BAD, HIDDEN]
    tracker, _ = tracking(script, TrackerSettings(lost_after=3))
    rows = run(tracker, [None] * 7)
    assert [row[0] for row in rows] == [TRACKING] * 5 + [LOST] * 2
    assert rows[-1] == (LOST, 'idle', Outcome.NO_MASK)


def test_lost_after_one_gives_up_at_once():
    tracker, _ = tracking([HIDDEN], TrackerSettings(lost_after=1))
    assert run(tracker, [MASK]) == [(LOST, 'track', Outcome.LOW_SUPPORT)]


def test_a_lost_object_is_registered_again_from_the_next_mask():
    estimator = Scripted([failed(Outcome.EMPTY_MASK), found(0.7)], [BAD, BAD, found(0.8), BAD])
    tracker = ObjectTracker(estimator, TrackerSettings(lost_after=2))
    tracker.start_from(pose(0.0))
    rows = run(tracker, [None, MASK, None, MASK, MASK, None, None])
    assert [row[:2] for row in rows] == [
        (TRACKING, 'track'),
        (LOST, 'track'),
        (LOST, 'idle'),
        (LOST, 'register'),
        (TRACKING, 'register'),
        (TRACKING, 'track'),
        (TRACKING, 'track'),  # the count of bad frames began anew
    ]
    assert estimator.tracked_from == [0.0, 0.0, 0.7, 0.8]


def test_reset_forgets_everything():
    tracker, _ = tracking([BAD, BAD], TrackerSettings(lost_after=2))
    run(tracker, [None])
    tracker.reset()
    assert run(tracker, [None]) == [(SEARCHING, 'idle', Outcome.NO_MASK)]
    tracker.start_from(pose(0.4))
    assert run(tracker, [None]) == [(TRACKING, 'track', Outcome.LOW_QUALITY)]


def test_start_from_takes_any_float_array():
    tracker, estimator = tracking([found(0.1)], TrackerSettings())
    tracker.start_from(pose(0.25).astype(np.float32).tolist())
    run(tracker, [None])
    assert estimator.tracked_from == [0.25]


WINS, LOSES = [3.0, 2, 1, 0, 4.9, 2, 1], [3.0, 2, 1, 0, 5.1, 2, 1]  # a margin of 2 logits


def test_the_scorer_is_asked_at_its_interval():
    settings = TrackerSettings(score_interval=3, score_margin=2.0)
    tracker, estimator = tracking([found(x) for x in range(9)], settings, [WINS] * 3)
    rows = run(tracker, [None] * 9)
    assert [row[2] for row in rows] == [Outcome.OK] * 9
    assert [poses[0, 0, 3] for poses in estimator.scored] == [2, 5, 8]
    for poses in estimator.scored:
        copies = turned_copies(poses[0], estimator.center_m)
        np.testing.assert_array_equal(poses, [poses[0], *copies])


def test_no_scorer_by_default():
    tracker, estimator = tracking([found(0.1)] * 20, TrackerSettings())
    run(tracker, [None] * 20)
    assert not estimator.scored


@pytest.mark.parametrize(
    ('scores', 'outcome'),
    [(LOSES, Outcome.LOW_QUALITY), ([np.nan] + LOSES[1:], Outcome.NOT_FINITE)],
)
def test_a_pose_that_loses_to_a_turned_copy_is_withheld_until_it_wins(scores, outcome):
    settings = TrackerSettings(score_interval=2, lost_after=5)
    script = [found(x) for x in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)]
    tracker, estimator = tracking(script, settings, [scores, scores, WINS, WINS])
    rows = run(tracker, [None] * 6)
    expected = [Outcome.OK, outcome, outcome, Outcome.OK, Outcome.OK, Outcome.OK]
    assert [row[2] for row in rows] == expected
    assert estimator.tracked_from == [0.0, 0.0, 0.0, 0.0, 0.3, 0.4]


def test_losing_to_turned_copies_again_and_again_ends_the_track():
    settings = TrackerSettings(score_interval=10, lost_after=3)
    tracker, _ = tracking([found(0.1)] * 12, settings, [LOSES] * 3)
    states = [row[0] for row in run(tracker, [None] * 12)]
    assert states == [TRACKING] * 11 + [LOST]


@pytest.mark.parametrize('center_m', [(0, 0, 0), (0.3, -0.1, 0.05)])
def test_turned_copies_are_30_degrees_off_about_the_cameras_axes_in_place(center_m):
    start = pose(0.2)
    start[:3, :3] = Rotation.from_rotvec([0.4, -1.0, 0.7]).as_matrix()
    copies = turned_copies(start, np.array(center_m))
    vectors = np.deg2rad(30.0) * np.concatenate([np.eye(3), -np.eye(3)])
    expected = Rotation.from_rotvec(vectors).as_matrix() @ start[:3, :3]
    for copy in copies:
        seen, turned = (one @ [*center_m, 1.0] for one in (start, copy))
        np.testing.assert_allclose(turned, seen, atol=1e-12)
        np.testing.assert_array_equal(copy[3], [0, 0, 0, 1])
    nearest = [np.abs(expected - copy[:3, :3]).max((1, 2)) for copy in copies]
    assert sorted(int(errors.argmin()) for errors in nearest) == [0, 1, 2, 3, 4, 5]
    assert max(errors.min() for errors in nearest) < 1e-12


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'min_agreement': 1.5}, 'min_agreement is 1.5, must be a share between 0 and 1'),
        ({'min_visible': -0.1}, 'min_visible is -0.1, must be a share'),
        ({'register_min_agreement': 60}, 'register_min_agreement is 60, must be a share'),
        ({'register_min_visible': float('nan')}, 'register_min_visible is nan, must be a share'),
        ({'lost_after': 0}, 'lost_after is 0, must be at least 1'),
        ({'recover_margin': -0.05}, 'recover_margin is -0.05, must be a share between 0 and 1'),
        ({'recover_margin': 2}, 'recover_margin is 2, must be a share'),
        ({'recover_margin': float('nan')}, 'recover_margin is nan, must be a share'),
        ({'timeout_s': -1.0}, 'timeout_s is -1.0, must be a number of seconds, or 0 for no'),
        ({'timeout_s': float('nan')}, 'timeout_s is nan, must be a number of seconds'),
        ({'score_interval': -1}, 'score_interval is -1 .* neither may be negative'),
        ({'min_support_px': -5}, 'min_support_px -5, neither may be negative'),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        TrackerSettings(**changes)


def test_an_ok_estimate_must_bring_its_quality():
    estimator = Scripted([PoseEstimate(Outcome.OK, pose(0.1))])
    with pytest.raises(ValueError, match='OK estimate came without quality'):
        ObjectTracker(estimator).step(FRAME, MASK)
