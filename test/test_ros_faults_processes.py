"""Processes that die, end in the middle, share a machine or live in simulated time.

The trackers and the detector are real processes. Every pose that comes is compared with the truth
of the stamp that it carries.
"""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 (rclpy) is not installed')
import detector_rig
import soak_scene
from faults_rig import MS, RELIABLE, SLOP_MS, START_S, Camera, Process, S, peer_of, tracker
from rosgraph_msgs.msg import Clock
from std_srvs.srv import Trigger

from foundationpose_trt.ros import conversions

pytestmark = pytest.mark.ros
ALONE, TOGETHER = ('/left', '/right'), ('/other', '/right')  # the last two in one process
NEIGHBOURS = [0, 1, 2]  # pictures in which the object stays within the detector's box


@pytest.fixture(scope='module')
def cameras(tmp_path_factory):
    """Cameras by namespace: the first tracker is a process of its own, two others share one."""
    logs = tmp_path_factory.mktemp('cameras')
    processes = [
        tracker(logs / 'one', '--namespaces', ALONE[0]),
        tracker(logs / 'two', '--namespaces', *TOGETHER),
    ]
    with peer_of(*processes) as peer:
        found = {
            name: Camera(peer, name, first=soak_scene.POSES // 2 * name.endswith('right'))
            for name in {*ALONE, *TOGETHER}
        }
        for camera in found.values():
            camera.connect()
        yield found
        for process in processes:
            process.check()


def check(*cameras):
    for camera in cameras:
        wrong, camera.wrong = camera.wrong, []
        assert not wrong


@pytest.mark.parametrize('names', [ALONE, TOGETHER], ids=['two processes', 'one process'])
def test_two_cameras_at_the_same_time_each_see_their_own_object(cameras, names):
    left, right = (cameras[name] for name in names)
    for camera in (left, right):
        camera.track()
    before = [len(left.posed), len(right.posed)]
    for _ in range(30):
        stamp_ns = left.now_ns()
        outcomes = len(left.outcomes), len(right.outcomes)
        left.send(stamp_ns=stamp_ns)
        right.send(stamp_ns=stamp_ns)
        left.peer.until(
            lambda: len(left.outcomes) > outcomes[0] and len(right.outcomes) > outcomes[1]  # noqa: B023
        )
    left.settle()
    right.settle()
    assert [len(left.posed), len(right.posed)] == [count + 30 for count in before]
    states = len(right.states)
    assert left.peer.call(Trigger, f'{names[0]}/tracker_node/reset').success
    left.peer.until(lambda: left.states[-1] == 'SEARCHING: RESET')
    right.step()
    assert len(right.states) == states and right.outcomes[-1] == 'OK', 'it was not asked'
    check(left, right)


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """A detector that always finds a can where the middle one of the neighbours is."""
    _, _, mask = soak_scene.picture(NEIGHBOURS[1])
    rows, columns = np.nonzero(mask)
    size = soak_scene.CAMERA.width, soak_scene.CAMERA.height
    low = np.array([columns.min(), rows.min()]) / size
    high = np.array([columns.max() + 1, rows.max() + 1]) / size
    box = (*(low + high) / 2, *(high - low))
    folder = tmp_path_factory.mktemp('model') / 'm'
    return detector_rig.write_fixed(folder, *detector_rig.scene([(1, 0.9, box)]))


def detector(log, model, namespace):
    parameters = {
        'model': model, 'objects': '[can]', 'device': 'cpu', 'warm_up_width': 160,
        'warm_up_height': 120, 'sync_slop_ms': SLOP_MS,
    }  # fmt: skip
    words = [word for name, value in parameters.items() for word in ('-p', f'{name}:={value}')]
    return Process(
        log, '-m', 'foundationpose_trt.ros.detector_node', '--ros-args',
        '-r', f'__ns:={namespace}', *words,
    )  # fmt: skip


def test_a_detector_that_is_killed_and_comes_back(cameras, model, tmp_path):
    camera = cameras[ALONE[0]]
    peer, name = camera.peer, camera.namespace
    assert peer.call(Trigger, f'{name}/tracker_node/reset').success
    camera.indices = NEIGHBOURS
    feed = camera.feed(20.0)  # without masks: those are the detector's
    states = len(camera.states)
    with detector(tmp_path / 'first.log', model, name) as first:
        peer.until(lambda: 'TRACKING: REGISTERED' in camera.states[states:], feed, START_S)
        first.kill()
        assert first.child.returncode == -signal.SIGKILL
    peer.wait(0.5, feed)  # Fast DDS may hold up the others now, for a second at most, and then
    assert peer.call(Trigger, f'{name}/tracker_node/reset').success
    camera.settle()
    posed, begin = len(camera.posed), len(camera.outcomes)
    peer.until(lambda: camera.states[-1] == 'SEARCHING: RESET')
    with detector(tmp_path / 'second.log', model, name) as second:
        peer.until(lambda: camera.states[-1] == 'TRACKING: REGISTERED', feed, START_S)
        assert camera.outcomes[begin : begin + 3] == ['NO_MASK'] * 3, 'it was searching meanwhile'
        peer.until(lambda: len(camera.posed) >= posed + 10, feed)
        second.check()
        assert second.end() == 0, second.text()
    check(camera)


def test_sigterm_in_the_middle_of_a_registration(tmp_path):
    """One of half a minute: it is not waited for, and nothing is left over."""
    process = tracker(tmp_path / 'log', '--namespaces', '/slow', '--iterations', '1000')
    with peer_of(process) as peer:
        camera = Camera(peer, '/slow')
        camera.connect()
        camera.settle()
        before_s = process.cpu_s()
        camera.send(masked=True)
        peer.until(lambda: process.cpu_s() > before_s + 0.5)
        assert process.session() == [process.child.pid]
        begin_s = time.monotonic()
        process.child.send_signal(signal.SIGTERM)
        assert process.child.wait(20.0) == 0, process.text()
        elapsed_s = time.monotonic() - begin_s
        assert not process.session()
        peer.wait(0.2)
        assert camera.posed == [] and camera.states == ['SEARCHING: STARTED']
    assert 'ending in the middle of a frame' in process.text()
    assert 'Traceback' not in process.text()
    assert elapsed_s < 2.0, elapsed_s


class SimulatedTime:
    """Publishes /clock, and gives it to a camera."""

    def __init__(self, camera):
        self.camera, self.ns = camera, 100 * S
        self._out = camera.peer.node.create_publisher(Clock, '/clock', RELIABLE)
        camera.now_ns = self.tick

    def connect(self):
        self.camera.peer.until(self._out.get_subscription_count)

    def tick(self):
        """A camera's frame, 33 ms after the last one."""
        self.ns += 33 * MS
        self.publish()
        return self.ns

    def publish(self):
        self._out.publish(Clock(clock=conversions.stamp_message(self.ns)))


@pytest.fixture(scope='module')
def simulated(tmp_path_factory):
    process = tracker(
        tmp_path_factory.mktemp('simulated') / 'log', '--namespaces', '/sim', use_sim_time=True,
        max_frame_age_ms=500.0,
    )  # fmt: skip
    with peer_of(process) as peer:
        camera = Camera(peer, '/sim')
        camera.connect()
        yield camera, process


def test_simulated_time(simulated):
    """Before it is told, while it runs, when images lag it, and when it jumps back."""
    camera, process = simulated
    camera.now_ns = lambda: len(camera.sent) * 33 * MS + 50 * S
    camera.until_tracking()  # nobody has told the time yet
    clock = SimulatedTime(camera)
    clock.connect()
    camera.until_tracking(10)
    stale = camera.flow.get('dropped_stale', 0)
    clock.ns += 2 * S  # and the stamps stay behind it
    lagging = [clock.ns - 1500 * MS + k * 33 * MS for k in range(5)]
    clock.publish()
    for stamp_ns in lagging:
        camera.send(stamp_ns=stamp_ns)
        camera.peer.wait(0.03)
    camera.peer.until(lambda: camera.flow.get('dropped_stale', 0) >= stale + 3)
    assert not set(lagging) & set(camera.posed)
    assert 'is use_sim_time right?' in process.text()
    camera.until_tracking()
    states = len(camera.states)
    clock.ns -= 10 * S
    clock.publish()
    camera.step()
    camera.step()
    assert camera.states[states:] == ['LOST: TIME_JUMPED_BACK']
    assert camera.outcomes[-2:] == ['EXPIRED', 'NO_MASK']
    camera.until_tracking(10)
    summaries = camera.summaries
    camera.peer.until(lambda: camera.summaries >= summaries + 2)
    assert camera.summary_ns <= clock.ns, 'the node has gone back with the clock'
    process.check()
    check(camera)
