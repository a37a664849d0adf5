"""Why a tracker is in its state, when its last pose is too old, and the margin to recover."""

from __future__ import annotations

import numpy as np
import pytest
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
    frame_at,
    pose,
)

from foundationpose_trt.datatypes import Outcome, PoseQuality
from foundationpose_trt.pose.tracker import ObjectTracker, TrackerSettings


def tracker_of(estimator: Scripted, **settings: object) -> ObjectTracker:
    return ObjectTracker(estimator, TrackerSettings(**settings))


def registered(track: list, at_s: float = 0.0, **settings: object) -> ObjectTracker:
    """A tracker that registered on a frame of this time, at x = 0.5."""
    tracker = tracker_of(Scripted([found(0.5)], track), **settings)
    step = tracker.step(frame_at(at_s), MASK)
    assert (step.stage, tracker.state, tracker.reason) == ('register', TRACKING, 'REGISTERED')
    return tracker


def seen(tracker: ObjectTracker, at_s: float, mask: np.ndarray | None = None) -> tuple:
    """What a frame of this time led to: stage, outcome, state, reason."""
    step = tracker.step(frame_at(at_s), mask)
    assert step.state is tracker.state
    return step.stage, step.estimate.outcome, tracker.state, tracker.reason


# --- reasons ---------------------------------------------------------------------------------
def test_a_new_tracker_was_started():
    tracker = ObjectTracker(Scripted())
    assert (tracker.state, tracker.reason) == (SEARCHING, 'STARTED')
    assert seen(tracker, 0.0) == ('idle', Outcome.NO_MASK, SEARCHING, 'STARTED')


def test_a_known_pose_starts_and_a_reset_resets():
    tracker = ObjectTracker(Scripted(track=[BAD]))
    tracker.reset()
    assert (tracker.state, tracker.reason) == (SEARCHING, 'RESET')
    tracker.start_from(pose(0.1))
    assert (tracker.state, tracker.reason) == (TRACKING, 'STARTED')
    assert seen(tracker, 0.0) == ('track', Outcome.LOW_QUALITY, TRACKING, 'STARTED')
    tracker.reset()
    assert (tracker.state, tracker.reason) == (SEARCHING, 'RESET')


def test_a_failed_registration_leaves_state_and_reason():
    script = [failed(Outcome.EMPTY_MASK), BAD, failed(Outcome.EMPTY_MASK)]
    tracker = tracker_of(Scripted(script), lost_after=1)
    for outcome in (Outcome.EMPTY_MASK, Outcome.LOW_QUALITY):
        assert seen(tracker, 0.0, MASK) == ('register', outcome, SEARCHING, 'STARTED')
    tracker.reset()
    assert seen(tracker, 0.0, MASK)[2:] == (SEARCHING, 'RESET')


@pytest.mark.parametrize(
    ('last', 'reason'),
    [
        (HIDDEN, 'LOW_SUPPORT'),
        (BAD, 'LOW_QUALITY'),
        (failed(Outcome.OUT_OF_RANGE), 'OUT_OF_RANGE'),
        (failed(Outcome.NOT_FINITE), 'NOT_FINITE'),
    ],
)
def test_the_outcome_that_ended_the_track_is_the_reason(last, reason):
    tracker = registered([BAD, HIDDEN, last], lost_after=3)
    assert [seen(tracker, k / 30)[2:] for k in (1, 2)] == [(TRACKING, 'REGISTERED')] * 2
    assert seen(tracker, 0.1) == ('track', Outcome(reason), LOST, reason)
    assert seen(tracker, 0.2) == ('idle', Outcome.NO_MASK, LOST, reason)


# --- a pose that is too old ------------------------------------------------------------------
def test_a_gap_longer_than_the_timeout_ends_the_track_before_anything_is_computed():
    tracker = registered([found(0.6), found(0.7)], timeout_s=0.5)
    assert seen(tracker, 0.1)[2:] == (TRACKING, 'REGISTERED')
    assert seen(tracker, 0.6)[2:] == (TRACKING, 'REGISTERED')  # not more than the timeout
    assert seen(tracker, 1.101) == ('idle', Outcome.EXPIRED, LOST, 'TIMEOUT')
    assert tracker.estimator.tracked_from == [0.5, 0.6]
    assert seen(tracker, 1.2) == ('idle', Outcome.NO_MASK, LOST, 'TIMEOUT')


def test_time_runs_from_the_last_accepted_pose_not_the_last_frame():
    tracker = registered([found(0.6), HIDDEN, BAD, HIDDEN], timeout_s=1.0)
    outcomes = [seen(tracker, at)[1] for at in (0.1, 0.5, 0.9, 1.1, 1.11)]
    assert outcomes == [
        Outcome.OK, Outcome.LOW_SUPPORT, Outcome.LOW_QUALITY, Outcome.LOW_SUPPORT,
        Outcome.EXPIRED,
    ]  # fmt: skip
    assert (tracker.state, tracker.reason) == (LOST, 'TIMEOUT')


def test_a_frame_may_come_late_by_what_the_registration_took_and_no_more():
    late = registered([found(0.6), found(0.7)], timeout_s=1.0)
    late.excuse(9.0)  # a CPU took nine seconds to register
    assert seen(late, 9.0)[:2] == ('track', Outcome.OK)
    assert seen(late, 9.9)[:2] == ('track', Outcome.OK)
    assert seen(late, 11.0) == ('idle', Outcome.EXPIRED, LOST, 'TIMEOUT')
    stale = registered([found(0.6)], timeout_s=1.0)
    assert seen(stale, 9.0) == ('idle', Outcome.EXPIRED, LOST, 'TIMEOUT')


def test_the_first_frame_after_start_from_may_have_any_time():
    tracker = registered([found(0.6), HIDDEN], timeout_s=1.0)
    for at_s, expected in ((1e3, Outcome.OK), (-1e3, Outcome.LOW_SUPPORT)):
        tracker.start_from(pose(0.2))
        assert seen(tracker, at_s)[1:3] == (expected, TRACKING)
    # the pose counts as that frame's
    assert seen(tracker, -1e3 + 1.01) == ('idle', Outcome.EXPIRED, LOST, 'TIMEOUT')


def test_a_mask_on_the_frame_that_comes_too_late_registers_at_once():
    estimator = Scripted([found(0.5), found(0.8)], [found(0.6), found(0.9)])
    tracker = tracker_of(estimator, timeout_s=1.0)
    seen(tracker, 0.0, MASK)
    seen(tracker, 0.1)
    assert seen(tracker, 5.0, MASK) == ('register', Outcome.OK, TRACKING, 'REGISTERED')
    assert seen(tracker, 5.1)[1] is Outcome.OK and estimator.tracked_from == [0.5, 0.8]


def test_without_a_timeout_no_pose_is_too_old():
    tracker = registered([found(0.6), found(0.7)], timeout_s=0.0)
    assert seen(tracker, 0.1)[1] is seen(tracker, 1e6)[1] is Outcome.OK


def test_time_that_was_excused_does_not_count_until_the_next_accepted_pose():
    tracker = registered([found(x) for x in (0.6, 0.7)], timeout_s=1.0)
    seen(tracker, 0.1)
    tracker.excuse(3.0)
    tracker.excuse(2.0)
    assert seen(tracker, 6.0)[1] is Outcome.OK  # 5.9 s, of 1 + 5
    assert seen(tracker, 7.1) == ('idle', Outcome.EXPIRED, LOST, 'TIMEOUT')


def test_frames_that_all_have_one_stamp_never_expire():
    estimator = Scripted([found(0.5)], [found(0.1)] * 10 + [BAD] * 10)
    tracker = tracker_of(estimator, timeout_s=1e-9, lost_after=11)
    tracker.step(FRAME, MASK)
    assert FRAME.stamp_ns == 0
    assert {tracker.step(FRAME, None).stage for _ in range(20)} == {'track'}
    assert tracker.state is TRACKING


# --- steps back in time ----------------------------------------------------------------------
@pytest.mark.parametrize('first_frame', [True, False], ids=['after registration', 'later'])
def test_a_recording_that_begins_anew_ends_the_track(first_frame):
    tracker = registered([found(0.6)], at_s=60.0)
    if not first_frame:
        seen(tracker, 60.1)
    assert seen(tracker, 58.9) == ('idle', Outcome.EXPIRED, LOST, 'TIME_JUMPED_BACK')
    assert seen(tracker, 59.0) == ('idle', Outcome.NO_MASK, LOST, 'TIME_JUMPED_BACK')


def test_smaller_steps_back_are_tracked():
    tracker = registered([found(0.1 * k) for k in range(4)], at_s=60.0)
    for at_s in (60.1, 59.1, 58.1, 58.2):  # one second each at most
        assert seen(tracker, at_s)[:3] == ('track', Outcome.OK, TRACKING)


def test_a_step_back_means_nothing_while_nothing_is_tracked():
    estimator = Scripted([found(0.5)], [BAD, found(0.6)])
    tracker = tracker_of(estimator, lost_after=1)
    for at_s in (100.0, 50.0):
        assert seen(tracker, at_s) == ('idle', Outcome.NO_MASK, SEARCHING, 'STARTED')
    tracker.start_from(pose(0.1))
    assert seen(tracker, 40.0)[2:] == (LOST, 'LOW_QUALITY')
    assert seen(tracker, 0.0)[2:] == (LOST, 'LOW_QUALITY')
    assert seen(tracker, -9.0, MASK)[2:] == (TRACKING, 'REGISTERED')
    assert seen(tracker, -8.9)[1] is Outcome.OK


def test_a_registration_on_an_older_frame_sets_the_time_anew():
    """A late mask: its frame lies before those that came since."""
    tracker = tracker_of(Scripted(track=[found(0.6)]))
    seen(tracker, 100.0)
    old = frame_at(97.0)
    assert tracker.judge_registration(old, found(0.5)).outcome is Outcome.OK
    assert seen(tracker, 98.0)[:3] == ('track', Outcome.OK, TRACKING)


# --- the margin ------------------------------------------------------------------------------
def agreeing(share: float) -> PoseQuality:
    return PoseQuality(1000, round(1000 * share), 0, 1000 - round(1000 * share))


def visible(share: float) -> PoseQuality:
    return PoseQuality(1000, round(1000 * share), 1000 - round(1000 * share), 0)


LIMITS = {'min_agreement': 0.6, 'min_visible': 0.2, 'min_support_px': 10, 'recover_margin': 0.05}


@pytest.mark.parametrize(
    ('quality', 'low'), [(agreeing, Outcome.LOW_QUALITY), (visible, Outcome.LOW_SUPPORT)]
)
def test_below_the_gate_once_needs_the_margin_until_one_passes(quality, low):
    limit = 0.6 if quality is agreeing else 0.2
    above = [0.01, -0.01, 0.01, 0.04, 0.06, 0.01, -0.01]
    tracker = registered([found(0.1, quality(limit + extra)) for extra in above], **LIMITS)
    outcomes = [seen(tracker, k / 30)[1] for k in range(1, 8)]
    ok = Outcome.OK
    assert outcomes == [ok, low, low, low, ok, ok, low]


def test_any_failure_calls_for_the_margin_and_a_registration_ends_it():
    script = [failed(Outcome.OUT_OF_RANGE), found(0.1, agreeing(0.61)), found(0.2, agreeing(0.61))]
    tracker = registered(script, **LIMITS)
    assert [seen(tracker, 0.1)[1], seen(tracker, 0.2)[1]] == [
        Outcome.OUT_OF_RANGE, Outcome.LOW_QUALITY,
    ]  # fmt: skip
    tracker.judge_registration(frame_at(0.3), found(0.5))
    assert seen(tracker, 0.4)[1] is Outcome.OK


def test_the_margin_ends_at_one_and_zero_is_none():
    perfect, imperfect = PoseQuality(1000, 1000, 0, 0), PoseQuality(1000, 999, 0, 1)
    strict = {**LIMITS, 'min_agreement': 0.98, 'min_visible': 0.99}
    script = [BAD, found(0.1, imperfect), found(0.2, perfect)]
    tracker = registered(script, **strict)
    outcomes = [seen(tracker, k / 30)[1] for k in (1, 2, 3)]
    assert outcomes == [Outcome.LOW_QUALITY, Outcome.LOW_QUALITY, Outcome.OK]
    tracker = registered([BAD, found(0.1, agreeing(0.61))], **{**LIMITS, 'recover_margin': 0.0})
    assert [seen(tracker, k / 30)[1] for k in (1, 2)] == [Outcome.LOW_QUALITY, Outcome.OK]


# --- the parts of a step ---------------------------------------------------------------------
def test_the_parts_do_what_a_step_does():
    script = [found(0.6), BAD, HIDDEN, found(0.7), BAD]
    whole, parts = (registered(list(script), lost_after=2) for _ in range(2))
    for k, estimate in enumerate(script[:3]):
        frame = frame_at((k + 1) / 30)
        step = whole.step(frame, None)
        last = parts.begin(frame)
        assert last[0, 3] == whole.estimator.tracked_from[-1]
        judged = parts.judge_track(frame, estimate)
        assert judged.outcome is step.estimate.outcome
        assert (parts.state, parts.reason) == (whole.state, whole.reason)
    assert parts.state is LOST and parts.begin(frame_at(0.2)) is None
    assert not parts.estimator.tracked_from
