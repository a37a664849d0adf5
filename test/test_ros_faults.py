"""A camera that fails in every way it may: the real tracker as a process, over DDS.

Every pose that comes, in any test, is compared with the truth of the stamp that it carries.
"""

from __future__ import annotations

import pytest

pytest.importorskip('rclpy', reason='ROS 2 (rclpy) is not installed')
import numpy as np
from faults_rig import KINDS, MS, RELIABLE, Camera, S, peer_of, tracker
from ros_rig import Rig
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from foundationpose_trt.ros import conversions

pytestmark = pytest.mark.ros


@pytest.fixture(scope='module')
def rig(tmp_path_factory):
    process = tracker(tmp_path_factory.mktemp('faults') / 'log', silence_warning_s=0.5)
    with peer_of(process) as peer:
        found = Camera(peer)
        found.connect()
        yield found, process


@pytest.fixture
def camera(rig):
    """The camera of a tracker that tracks; in the end it must be alive and no pose wrong."""
    found, process = rig
    found.track()
    yield found
    process.check()
    wrong, found.wrong = found.wrong, []
    assert not wrong


@pytest.fixture
def said(rig):
    """What the tracker has written since the test began."""
    process = rig[1]
    begin = len(process.text())
    return lambda: process.text()[begin:]


def states_of(camera, action):
    """States that were published in an action."""
    begin = len(camera.states)
    action()
    return camera.states[begin:]


def steps(camera, count, **how):
    """Outcomes of some frames, each sent when the one before was done."""
    begin = len(camera.outcomes)
    for _ in range(count):
        camera.step(**how)
    return camera.outcomes[begin:]


def dropped(camera, why):
    """How many halves of frames were dropped, by a summary that is made now."""
    before = camera.summaries
    camera.peer.until(lambda: camera.summaries > before)
    return camera.flow[f'dropped_{why}']


def test_colour_without_depth_is_counted_and_explained(camera, said):
    unmatched = dropped(camera, 'unmatched')
    sent, posed, outcomes = (len(camera.sent), len(camera.posed), len(camera.outcomes))
    explained = '/depth is announced and camera_info arrives, but no image'
    camera.peer.until(lambda: explained in said(), camera.feed(30.0, instead={'depth': None}))
    missed = len(camera.sent) - sent
    # 8 wait for their depth, and a machine that is busy loses some on the way
    counted = dropped(camera, 'unmatched') - unmatched
    assert 0.5 * (missed - 8) <= counted <= missed, (missed, counted)
    assert len(camera.posed) == posed and len(camera.outcomes) == outcomes
    camera.until_tracking()


def test_a_camera_that_stops_for_two_seconds(camera):
    before = len(camera.posed)
    lost = states_of(camera, lambda: camera.peer.until(lambda: 'LOST' in camera.states[-1]))
    assert lost == ['LOST: TIMEOUT'], 'without a frame: what is not seen is not tracked'
    camera.peer.wait(1.0)
    assert len(camera.posed) == before, 'nothing is seen, nothing is said'
    assert steps(camera, 3) == ['NO_MASK'] * 3 and len(camera.posed) == before
    assert states_of(camera, camera.until_tracking) == ['TRACKING: REGISTERED']


def test_a_camera_that_stops_for_half_a_second_is_tracked_on(camera):
    camera.peer.wait(0.5)
    assert states_of(camera, lambda: steps(camera, 3)) == []
    assert camera.outcomes[-3:] == ['OK'] * 3


def test_every_second_depth_image_missing_halves_the_poses_and_no_more(camera):
    before = len(camera.posed)
    whole = []
    for _ in range(10):
        camera.send(instead={'depth': None})
        camera.peer.wait(0.02)
        whole.append(camera.step())
    camera.settle()
    assert camera.posed[before:] == whole and camera.outcomes[-11:-1] == ['OK'] * 10


@pytest.mark.parametrize('dead', ['depth', 'image'])
def test_a_driver_that_died_is_missed(camera, said, dead):
    node = camera.peer.node
    node.destroy_publisher(camera.out[dead])
    rest = camera.feed(30.0, instead={dead: None})

    def warned():
        return [line for line in said().splitlines() if 'WARN' in line and f'/{dead}' in line]

    try:
        camera.peer.until(lambda: node.count_publishers(f'/{dead}') == 0, rest)
        camera.peer.until(warned, rest, timeout_s=8.0)
    finally:
        camera.out[dead] = node.create_publisher(KINDS[dead], f'/{dead}', RELIABLE)
    camera.peer.until(camera.out[dead].get_subscription_count)
    camera.until_tracking()


def test_depth_that_nobody_has_ever_published_is_missed(tmp_path, monkeypatch, capfd):
    """As with a topic that is remapped wrongly; a node of its own, in this process."""
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path))
    rig, written = Rig(connect=False, silence_warning_s=0.5), ''
    try:
        rig.publish_on({'image': Image, 'camera_info': CameraInfo})
        for k in range(120):
            rig.send('camera_info', k * 33 * MS)
            rig.send('image', k * 33 * MS)
            rig.spin(0.033)
            written += capfd.readouterr().err
            if '/depth' in written:
                return
    finally:
        rig.close()
    raise AssertionError(f'4 s of colour images alone, not a word of depth: {written}')


def test_depth_of_another_size(camera, said):
    posed = len(camera.posed)
    small = np.full((60, 80), 450, np.uint16)
    header = Header(frame_id=camera.frame_id)
    instead = {'depth': conversions.image_message(small, '16UC1', header)}
    assert steps(camera, 10, instead=instead) == ['SIZE_MISMATCH'] * 10
    assert len(camera.posed) == posed
    (line,) = [line for line in said().splitlines() if 'SIZE_MISMATCH' in line]
    assert 'depth must be registered to colour' in line and '(60, 80)' in line
    camera.until_tracking()


def test_depth_in_another_frame_is_warned_of_and_poses_are_in_the_colours(camera, said):
    posed = len(camera.posed)
    for _ in range(10):
        index = camera.indices[len(camera.sent) % len(camera.indices)]
        depth = camera._pictures[index]['depth']
        header = Header(frame_id='depth_optical')
        pixels = conversions.pixel_view(depth, np.dtype('u2'), 1)
        other = conversions.image_message(pixels, '16UC1', header)
        camera.step(instead={'depth': other})
    camera.settle()
    assert len(camera.posed) == posed + 10, 'and Camera has seen that they are in its frame'
    lines = [line for line in said().splitlines() if 'depth_optical' in line]
    assert len(lines) == 1, said()
    assert 'WARN' in lines[0] and f"'{camera.frame_id}'" in lines[0]
    assert 'registered to the colour' in lines[0]


def test_a_stamp_that_comes_again_is_of_the_first_image(camera):
    stale, outcomes = dropped(camera, 'stale'), len(camera.outcomes)
    first = camera.step()
    for _ in range(5):
        camera.send(stamp_ns=first)  # the pictures of other poses
        camera.peer.wait(0.04)
    assert states_of(camera, lambda: steps(camera, 3)) == []
    assert camera.outcomes[outcomes:] == ['OK'] * 4
    assert 5 <= dropped(camera, 'stale') - stale <= 10, 'two halves of five frames'


def test_stamps_that_stand_still_are_explained(camera, said):
    stamp_ns = camera.step()

    def warned():
        return [line for line in said().splitlines() if 'WARN' in line and 'stamp' in line]

    camera.peer.until(warned, camera.feed(30.0, stamp_ns=stamp_ns), timeout_s=8.0)
    camera.until_tracking()


def test_a_step_back_of_100_ms_costs_only_the_frames_until_time_is_there_again(camera):
    posed, last_ns = len(camera.posed), camera.sent[-1]
    late = [camera.send(stamp_ns=last_ns - 100 * MS + k * 33 * MS) for k in range(3)]
    assert states_of(camera, lambda: steps(camera, 5)) == []
    camera.settle()
    assert not set(late) & set(camera.posed)
    assert len(camera.posed) == posed + 5 and camera.outcomes[-6:-1] == ['OK'] * 5


def test_a_recording_that_begins_anew_is_lost_and_found(camera):
    camera.shift_ns = -10 * S
    assert states_of(camera, lambda: steps(camera, 3)) == ['LOST: TIME_JUMPED_BACK']
    assert camera.outcomes[-3:] == ['EXPIRED', 'NO_MASK', 'NO_MASK']
    assert states_of(camera, camera.until_tracking) == ['TRACKING: REGISTERED']
    assert min(camera.posed[-3:]) < camera.now_ns() - 9 * S


def test_a_short_recording_in_a_loop_has_an_outcome_for_every_frame_again(camera):
    """Its stamps are those of frames that were handled, which must not be remembered as done."""
    begin_ns = camera.now_ns()
    stamps = [begin_ns + k * 100 * MS for k in range(20)]
    indices, at = camera.indices, len(camera.sent)
    for stamp_ns in stamps:
        camera.step(stamp_ns=stamp_ns)
    camera.repeat(stamps)
    camera.indices = (indices * 2)[(at - len(camera.sent)) % 24 :][:24]  # the same pictures
    camera.send(stamp_ns=stamps[0])
    camera.peer.until(lambda: camera.states[-1] == 'LOST: TIME_JUMPED_BACK')
    camera.send(stamp_ns=stamps[1])
    camera.peer.until(lambda: camera.outcomes[-2:] == ['EXPIRED', 'NO_MASK'], timeout_s=8.0)
    for stamp_ns in stamps[2:5]:
        camera.step(masked=True, stamp_ns=stamp_ns)
    camera.peer.until(lambda: camera.posed[-3:] == stamps[2:5])
    assert camera.states[-1] == 'TRACKING: REGISTERED'


def test_an_hour_ahead_and_back_again(camera):
    camera.shift_ns = 3600 * S
    assert states_of(camera, lambda: steps(camera, 2)) == ['LOST: TIMEOUT']
    assert states_of(camera, camera.until_tracking) == ['TRACKING: REGISTERED']
    camera.shift_ns = 0
    assert states_of(camera, lambda: steps(camera, 2)) == ['LOST: TIME_JUMPED_BACK']
    assert states_of(camera, camera.until_tracking) == ['TRACKING: REGISTERED']


@pytest.mark.parametrize('alone', ['image', 'depth'])
def test_one_stamp_an_hour_ahead_on_one_topic_only(camera, alone):
    other = {'image': 'depth', 'depth': 'image'}[alone]
    camera.send(stamp_ns=camera.now_ns() + 3600 * S, instead={other: None, 'camera_info': None})
    camera.peer.wait(0.05)
    states = len(camera.states)
    camera.send()  # may be the price
    camera.settle()
    assert steps(camera, 5) == ['OK'] * 5
    assert len(camera.states) == states, 'there was no such pair, so nothing has happened'
