"""Storms of requests, readers that do not read, and a long run: the real tracker as a process.

Every pose that comes, in any test, is compared with the truth of the stamp that it carries.
SOAK_FRAMES in the environment makes the long run longer.
"""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time

import pytest

pytest.importorskip('rclpy', reason='ROS 2 (rclpy) is not installed')
from faults_rig import START_S, Camera, Peer, Process, peer_of, tracker
from geometry_msgs.msg import PoseStamped
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import HistoryPolicy, QoSProfile
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger

pytestmark = pytest.mark.ros
SOAK_FRAMES = int(os.environ.get('SOAK_FRAMES', '600'))
SETTLED_FRAMES = min(100, SOAK_FRAMES // 2)
STORM, AT_ONCE, PAUSE_S = 200, 4, 0.008
HZ = 30.0
DEAF = textwrap.dedent("""
    import os, signal, rclpy
    from geometry_msgs.msg import PoseStamped
    from rclpy.qos import QoSProfile
    from sensor_msgs.msg import Image
    rclpy.init()
    node = rclpy.create_node('deaf')
    heard = set()
    for kind, topic in ((PoseStamped, 'pose'), (Image, 'debug/pose')):
        node.create_subscription(kind, topic, lambda m: heard.add(type(m)), QoSProfile(depth=10))
    while len(heard) < 2:
        rclpy.spin_once(node)
    os.kill(os.getpid(), signal.SIGSTOP)
""")


@pytest.fixture(scope='module')
def rig(tmp_path_factory):
    process = tracker(tmp_path_factory.mktemp('faults') / 'log', publish_debug=True)
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


def storm(camera, client, requests, **how):
    """Make some calls per frame that is fed, some at a time; return the answers."""
    feed, futures = camera.feed(HZ, **how), []
    for request in requests:
        futures.append(client.call_async(request))
        camera.peer.wait(PAUSE_S, feed)
        camera.peer.until(lambda: sum(not f.done() for f in futures) < AT_ONCE, feed)
    camera.peer.until(lambda: all(future.done() for future in futures), feed)
    return [future.result() for future in futures]


def parameter_calls():
    """The name, the value and what the refusal says ('' where it is accepted), STORM times."""
    kinds = (
        lambda k: ('lost_after', 20 + k, ''),
        lambda k: ('budget_track_ms', 10.0 + k, ''),
        lambda k: ('mesh_scale', 2.0 + k, 'fixed while the node is configured'),
        lambda k: ('lost_after', 0, 'range'),
        lambda k: ('min_depth_m', 20.0, 'the first must be smaller'),
        lambda k: ('min_visible', 'much', 'type'),
        lambda k: ('no_such_parameter', k, 'undeclared'),
        lambda k: ('min_visible', 0.1 + k * 1e-4, ''),
    )
    return [kinds[k % len(kinds)](k) for k in range(STORM)]


def setting(name, value) -> SetParameters.Request:
    return SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])


def set_one(camera, name, value):
    found = camera.peer.call(
        SetParameters, '/tracker_node/set_parameters', parameters=setting(name, value).parameters
    )
    assert found.results[0].successful, found.results[0].reason


def longest_gap(camera, begin, posed):
    """Most frames in a row without a pose, of those sent since `begin`, but the newest few."""
    longest = gap = 0
    for stamp_ns in camera.sent[begin:-3]:
        gap = 0 if stamp_ns in posed else gap + 1
        longest = max(longest, gap)
    return longest


def test_a_storm_of_parameters(camera):
    begin, begun = len(camera.sent), len(camera.states)
    client = camera.peer.client(SetParameters, '/tracker_node/set_parameters')
    calls = parameter_calls()
    answers = storm(camera, client, [setting(name, value) for name, value, _ in calls])
    camera.peer.node.destroy_client(client)
    for (name, value, words), answer in zip(calls, answers, strict=True):
        (result,) = answer.results
        assert result.successful == (not words), (name, value, result.reason)
        assert words in result.reason
    camera.peer.wait(0.5, camera.feed(HZ))
    assert longest_gap(camera, begin, set(camera.posed)) <= HZ  # a second, of a busy machine
    assert camera.states[begun:] == [], 'tracked on'
    last = {name: value for name, value, words in calls if not words}
    found = camera.peer.call(GetParameters, '/tracker_node/get_parameters', names=list(last))
    values = [
        Parameter.from_parameter_msg(ParameterMessage(name=name, value=value)).value
        for name, value in zip(last, found.values, strict=True)
    ]
    assert dict(zip(last, values, strict=True)) == last


def test_the_last_value_of_a_storm_is_in_force_in_the_tracker(camera):
    client = camera.peer.client(SetParameters, '/tracker_node/set_parameters')
    storm(camera, client, [setting('lost_after', 40 - k) for k in range(34)])
    camera.peer.node.destroy_client(client)
    camera.settle()
    set_one(camera, 'max_depth_m', 0.3)  # the object stands further away
    begin = len(camera.outcomes)
    for _ in range(9):
        camera.step()
    assert camera.outcomes[begin:] == ['OUT_OF_RANGE'] * 7 + ['NO_MASK'] * 2
    assert camera.states[-1] == 'LOST: OUT_OF_RANGE'
    set_one(camera, 'max_depth_m', 10.0)
    set_one(camera, 'lost_after', 15)
    camera.until_tracking()


def test_a_storm_of_resets(camera):
    client = camera.peer.client(Trigger, '/tracker_node/reset')
    answers = storm(camera, client, [Trigger.Request()] * STORM, masked=True)
    camera.peer.node.destroy_client(client)
    assert all(answer.success for answer in answers)
    camera.until_tracking(poses=10)


def test_a_long_run(camera, rig):
    process = rig[1]
    begin, posed, begun, begin_s = len(camera.outcomes), len(camera.posed), 0, time.monotonic()
    for frame in range(SOAK_FRAMES):
        camera.step(masked=True)
        if frame == SETTLED_FRAMES:
            begun = (process.rss_kb(), process.open_files())
    camera.settle()
    elapsed_s = time.monotonic() - begin_s
    ended = (process.rss_kb(), process.open_files())
    outcomes, poses = camera.outcomes[begin:], len(camera.posed) - posed
    sys.stderr.write(
        f'{SOAK_FRAMES} frames in {elapsed_s:.1f} s, {poses} poses, {len(camera.wrong)} wrong;'
        f' RSS {begun[0] / 1024:.1f} MB after {SETTLED_FRAMES} frames, {ended[0] / 1024:.1f} MB'
        f' at the end; {begun[1]} and {ended[1]} open files\n'
    )
    assert outcomes[:-1] == ['OK'] * SOAK_FRAMES and poses == SOAK_FRAMES
    assert ended[0] - begun[0] < 20 * 1024, (begun, ended)
    assert ended[1] <= begun[1], (begun, ended)


def poses_per_s(camera, seconds=1.0):
    begin, begin_s = len(camera.posed), time.monotonic()
    camera.peer.wait(seconds, camera.feed(HZ, masked=True))
    return (len(camera.posed) - begin) / (time.monotonic() - begin_s)


def test_readers_that_never_read_change_no_pose_rate(camera, tmp_path):
    before_hz = poses_per_s(camera)
    blind = Peer()  # a peer that is not spun; what it gets is kept, to the last message
    keep_all = QoSProfile(history=HistoryPolicy.KEEP_ALL)
    for kind, topic in ((PoseStamped, 'pose'), (Image, 'debug/pose')):
        blind.node.create_subscription(kind, topic, print, keep_all)
    with Process(tmp_path / 'deaf.log', '-c', DEAF) as deaf:
        feed = camera.feed(HZ, masked=True)
        camera.peer.until(lambda: deaf.stat()[0] == 'T', feed, START_S)
        # a process that is stopped does not even acknowledge; until Fast DDS has given it up, it
        # may hold up the others, once and for a second at most
        camera.peer.wait(2.0, feed)
        camera.until_tracking()
        after_hz = poses_per_s(camera)
        deaf.child.send_signal(signal.SIGCONT)
        deaf.end()
    blind.close()
    # a publisher that waits for its readers does so for 100 ms each time
    assert before_hz > 15 and after_hz > 0.7 * before_hz, (before_hz, after_hz)
