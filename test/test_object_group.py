"""Several trackers on one scripted estimator: what is batched, and what is each object's own."""

from __future__ import annotations

from types import SimpleNamespace

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
    ScriptedGroup,
    failed,
    found,
    frame_at,
    pose,
)

from foundationpose_trt.datatypes import Frame, Outcome, PoseEstimate, PoseQuality
from foundationpose_trt.pose import object_group
from foundationpose_trt.pose.object_group import ObjectGroup
from foundationpose_trt.pose.tracker import TrackerSettings, TrackingStep, turned_copies

OK = Outcome.OK


def group_of(*objects: Scripted, **settings: object) -> ObjectGroup:
    return ObjectGroup(ScriptedGroup(*objects), [TrackerSettings(**settings)] * len(objects))


def tracking(*scripts: list, **settings: object) -> ObjectGroup:
    """A group that tracks every object, number k from x = k."""
    group = group_of(*(Scripted(track=script) for script in scripts), **settings)
    for index in range(len(scripts)):
        group.start_from(index, pose(float(index)))
    return group


def rows(steps: dict[int, TrackingStep]) -> dict[int, tuple]:
    """State, stage and outcome by object; no step carries a pose without OK."""
    for step in steps.values():
        estimate = step.estimate
        assert (estimate.camera_from_object is not None) == (estimate.outcome is OK)
    return {i: (step.state, step.stage, step.estimate.outcome) for i, step in steps.items()}


# --- the batch -------------------------------------------------------------------------------
def test_objects_with_a_pose_are_tracked_in_one_batch_and_others_are_left_out():
    group = group_of(Scripted(track=[found(0.1)]), Scripted(), Scripted(track=[found(0.3)]))
    assert group.track(FRAME) == {} and not group.estimator.batches
    group.start_from(0, pose(0.0))
    group.start_from(2, pose(2.0))
    steps = group.track(FRAME)
    assert group.estimator.batches == [[0, 2]]
    assert rows(steps) == dict.fromkeys((0, 2), (TRACKING, 'track', OK))
    assert [steps[i].estimate.camera_from_object[0, 3] for i in (0, 2)] == [0.1, 0.3]
    assert steps[0].elapsed_ms == steps[2].elapsed_ms >= 0


def test_every_object_goes_on_from_its_own_last_good_pose():
    group = tracking(
        [found(0.1), BAD, found(0.3), found(0.4)], [HIDDEN, found(1.2), BAD, found(1.4)]
    )
    outcomes = [[row[2] for row in rows(group.track(FRAME)).values()] for _ in range(4)]
    assert outcomes == [
        [OK, Outcome.LOW_SUPPORT],
        [Outcome.LOW_QUALITY, OK],
        [OK, Outcome.LOW_QUALITY],
        [OK, OK],
    ]
    one, two = group.estimator.objects
    assert one.tracked_from == [0.0, 0.1, 0.1, 0.3] and two.tracked_from == [1.0, 1.0, 1.2, 1.2]


def test_an_object_that_is_lost_leaves_the_batch():
    group = tracking([HIDDEN, BAD], [found(1.1)] * 3, lost_after=2)
    found_rows = [rows(group.track(FRAME)) for _ in range(3)]
    assert [row.get(0) for row in found_rows] == [
        (TRACKING, 'track', Outcome.LOW_SUPPORT), (LOST, 'track', Outcome.LOW_QUALITY), None,
    ]  # fmt: skip
    assert group.estimator.batches == [[0, 1], [0, 1], [1]]
    assert group.states == (LOST, TRACKING) and group.reasons == ('LOW_QUALITY', 'STARTED')


def test_gates_are_each_objects_own():
    group = tracking(*[[found(0.1, PoseQuality(1000, 650, 0, 350))]] * 2)
    group.set_settings([TrackerSettings(min_agreement=0.7), TrackerSettings(min_agreement=0.6)])
    assert [row[2] for row in rows(group.track(FRAME)).values()] == [Outcome.LOW_QUALITY, OK]
    assert [one.min_agreement for one in group.settings] == [0.7, 0.6]


def test_settings_change_without_touching_the_states():
    group = tracking([HIDDEN, HIDDEN], [found(1.1)] * 2, lost_after=15)
    group.track(FRAME)
    group.set_settings([TrackerSettings(lost_after=2)] * 2)
    assert group.states == (TRACKING, TRACKING)
    assert rows(group.track(FRAME))[0] == (LOST, 'track', Outcome.LOW_SUPPORT)


# --- poses that cannot be tracked from any more ----------------------------------------------
def test_a_pose_too_old_expires_alone_and_is_named():
    group = tracking([found(0.1), BAD, BAD], [found(1.1), found(1.2), found(1.3)])
    for at_s in (0.0, 0.8):
        group.track(frame_at(at_s))
    steps = group.track(frame_at(1.5))
    assert rows(steps) == {0: (LOST, 'idle', Outcome.EXPIRED), 1: (TRACKING, 'track', OK)}
    assert group.reasons == ('TIMEOUT', 'STARTED') and group.estimator.batches[-1] == [1]


def test_a_jump_back_in_time_ends_every_track_and_computes_nothing():
    group = tracking([found(0.1)], [found(1.1)])
    group.track(frame_at(50.0))
    steps = group.track(frame_at(1.0))
    assert rows(steps) == dict.fromkeys((0, 1), (LOST, 'idle', Outcome.EXPIRED))
    assert group.reasons == ('TIME_JUMPED_BACK',) * 2 and len(group.estimator.batches) == 1
    assert group.track(frame_at(1.1)) == {}


class Clock:
    """Stands in for the module time; registrations move it on."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


class Slow(Scripted):
    """Takes nine seconds to register."""

    clock: Clock

    def register(self, frame: Frame, mask: np.ndarray) -> PoseEstimate:
        self.clock.now_s += 9.0
        return super().register(frame, mask)


@pytest.mark.parametrize('registration', [found(0.5), failed(Outcome.NO_DEPTH_IN_MASK)])
def test_the_time_of_a_registration_lets_nothing_else_expire(monkeypatch, registration):
    clock = Clock()
    monkeypatch.setattr(object_group, 'time', SimpleNamespace(perf_counter=clock.perf_counter))
    slow, other = Slow([registration]), Scripted(track=[found(1.1), HIDDEN, HIDDEN])
    slow.clock = clock
    group = group_of(slow, other)
    group.start_from(1, pose(1.0))
    group.track(frame_at(0.0))
    assert group.register(0, frame_at(0.0), MASK).elapsed_ms == 9e3
    if group.states[0] is TRACKING:
        group.reset(0)
    assert rows(group.track(frame_at(9.9)))[1] == (TRACKING, 'track', Outcome.LOW_SUPPORT)
    assert rows(group.track(frame_at(10.1)))[1] == (LOST, 'idle', Outcome.EXPIRED)


# --- registrations ---------------------------------------------------------------------------
def test_objects_register_one_by_one_through_the_stricter_gate():
    weak = found(0.2, PoseQuality(1000, 650, 0, 350))
    group = group_of(Scripted([weak]), Scripted([found(0.5)], [found(0.6)]))
    assert group.any_seeking and group.states == (SEARCHING, SEARCHING)
    step = group.register(0, FRAME, MASK)
    assert (step.state, step.stage, step.estimate.outcome) == (
        SEARCHING, 'register', Outcome.LOW_QUALITY,
    )  # fmt: skip
    other = np.zeros_like(MASK)
    step = group.register(1, FRAME, other)
    assert (step.state, step.stage, step.estimate.outcome) == (TRACKING, 'register', OK)
    one, two = group.estimator.objects
    assert one.masks[0] is MASK and two.masks[0] is other
    assert group.states == (SEARCHING, TRACKING) and group.reasons == ('STARTED', 'REGISTERED')
    assert (group.seeking(0), group.seeking(1), group.any_seeking) == (True, False, True)
    assert list(group.track(FRAME)) == [1] and two.tracked_from == [0.5]


def test_a_request_keeps_the_track_until_a_registration_passes():
    script = [failed(Outcome.NO_DEPTH_IN_MASK), BAD, found(0.7)]
    group = group_of(Scripted(script, [found(0.1), found(0.2), found(0.3), found(0.8)]))
    group.start_from(0, pose(0.0))
    assert not group.seeking(0) and not group.any_seeking
    group.request_registration(0)
    for outcome in (Outcome.NO_DEPTH_IN_MASK, Outcome.LOW_QUALITY):
        assert group.seeking(0) and group.any_seeking
        assert rows(group.track(FRAME)) == {0: (TRACKING, 'track', OK)}
        step = group.register(0, FRAME, MASK)
        assert (step.state, step.stage) == (TRACKING, 'register')
        assert step.estimate.outcome is outcome and group.reasons == ('STARTED',)
    group.track(FRAME)
    assert group.register(0, FRAME, MASK).estimate.outcome is OK
    assert group.reasons == ('REGISTERED',) and not group.seeking(0)
    group.track(FRAME)
    assert group.estimator.objects[0].tracked_from == [0.0, 0.1, 0.2, 0.7]


def test_a_failed_registration_does_not_count_as_a_bad_frame():
    script = [failed(Outcome.EMPTY_MASK)] * 5
    group = group_of(Scripted(script, [BAD, found(0.1)]), lost_after=2)
    group.start_from(0, pose(0.0))
    group.track(FRAME)
    for _ in script:
        group.register(0, FRAME, MASK)
    assert rows(group.track(FRAME)) == {0: (TRACKING, 'track', OK)}


def test_requests_and_resets_are_for_one_or_for_all():
    group = tracking([], [], [])
    group.request_registration(1)
    assert [group.seeking(i) for i in range(3)] == [False, True, False]
    group.request_registration()
    assert [group.seeking(i) for i in range(3)] == [True] * 3
    assert group.states == (TRACKING,) * 3
    group.reset(2)
    assert group.states == (TRACKING, TRACKING, SEARCHING)
    assert group.reasons == ('STARTED', 'STARTED', 'RESET')
    group.start_from(2, pose(0.0))
    group.start_from(0, pose(0.0))
    # a known pose settles what was requested
    assert [group.seeking(i) for i in range(3)] == [False, True, False]
    group.reset()
    assert group.states == (SEARCHING,) * 3 and group.reasons == ('RESET',) * 3
    group.start_from(1, pose(0.0))
    assert not group.seeking(1)


# --- the scorer ------------------------------------------------------------------------------
def test_the_scorer_is_asked_for_each_object_at_its_interval():
    wins, loses = [3.0, 2, 1, 0, 4.9, 2, 1], [3.0, 2, 1, 0, 5.1, 2, 1]
    one = Scripted(track=[found(float(k)) for k in range(4)], scores=[wins] * 2)
    two = Scripted(track=[found(float(k)) for k in range(4)], scores=[loses, wins])
    group = ObjectGroup(
        ScriptedGroup(one, two),
        [TrackerSettings(score_interval=2), TrackerSettings(score_interval=3, score_margin=2.0)],
    )
    for index in range(2):
        group.start_from(index, pose(0.0))
    outcomes = [[row[2] for row in rows(group.track(FRAME)).values()] for _ in range(4)]
    assert outcomes == [[OK, OK], [OK, OK], [OK, Outcome.LOW_QUALITY], [OK, OK]]
    assert [poses[0, 0, 3] for poses in one.scored] == [1, 3]
    assert [poses[0, 0, 3] for poses in two.scored] == [2, 3]
    copies = turned_copies(two.scored[0][0], two.center_m)
    np.testing.assert_array_equal(two.scored[0][1:], copies)


# --- what is refused -------------------------------------------------------------------------
@pytest.mark.parametrize('index', [-1, 2])
def test_an_unknown_object_is_refused(index):
    group = group_of(Scripted(), Scripted())
    calls = (
        lambda: group.register(index, FRAME, MASK),
        lambda: group.seeking(index),
        lambda: group.request_registration(index),
        lambda: group.reset(index),
        lambda: group.start_from(index, pose(0.0)),
    )
    for call in calls:
        with pytest.raises(ValueError, match=f'index is {index}, must be between 0 and 1'):
            call()
    assert not group.estimator.objects[0].masks and not group.estimator.objects[1].masks


@pytest.mark.parametrize('count', [0, 1, 3])
def test_settings_come_one_per_object(count):
    settings = [TrackerSettings()] * count
    message = f'{count} tracker settings for 2 objects: give one for each'
    with pytest.raises(ValueError, match=message):
        ObjectGroup(ScriptedGroup(Scripted(), Scripted()), settings)
    group = group_of(Scripted(), Scripted())
    with pytest.raises(ValueError, match=message):
        group.set_settings(settings)
