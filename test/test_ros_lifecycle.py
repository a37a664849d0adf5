"""The nodes as lifecycle nodes, driven by the real services of a peer."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import time
import weakref

import pytest

pytest.importorskip('rclpy', reason='ROS 2 (rclpy) is not installed')
import rclpy
import torch
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from ros_contexts import begin_context, end_context
from ros_rig import MS
from sensor_msgs.msg import CameraInfo

from foundationpose_trt.ros import image_node, pattern_camera_node, running, tracker_node
from foundationpose_trt.ros.tracker_node import TrackerNode

pytestmark = pytest.mark.ros
START_NS = 1_700_000_000_000_000_000


def call(rig, kind, name, request):
    client = rig.peer.create_client(kind, f'/tracker_node/{name}')
    rig.until(client.service_is_ready)
    future = client.call_async(request)
    rig.until(future.done)
    rig.peer.destroy_client(client)
    return future.result()


def state(rig):
    return call(rig, GetState, 'get_state', GetState.Request()).current_state.id


def change(rig, transition):
    request = ChangeState.Request(transition=Transition(id=transition))
    return call(rig, ChangeState, 'change_state', request).success


def subscribed(rig):
    return [s.topic_name for s in rig.node.subscriptions if s.topic_name != '/parameter_events']


def test_autostart_configures_and_activates(make_rig):
    rig = make_rig(connect=False)
    assert state(rig) == State.PRIMARY_STATE_ACTIVE
    assert {'/image', '/depth', '/camera_info', '/segmentation'} <= set(subscribed(rig))


def test_without_autostart_nothing_is_built_until_asked(make_rig):
    rig = make_rig(connect=False, autostart=False)
    assert state(rig) == State.PRIMARY_STATE_UNCONFIGURED and rig.builds == 0
    assert change(rig, Transition.TRANSITION_CONFIGURE)
    assert state(rig) == State.PRIMARY_STATE_INACTIVE and rig.builds == 1
    assert '/image' not in subscribed(rig), 'listens only while active'
    assert change(rig, Transition.TRANSITION_ACTIVATE)
    assert state(rig) == State.PRIMARY_STATE_ACTIVE and '/image' in subscribed(rig)


def test_deactivate_stops_the_intake_and_activate_begins_anew(make_rig):
    rig = make_rig()
    rig.send('camera_info', START_NS)
    rig.frame(START_NS, mask=True)
    rig.until(lambda: rig.heard['pose'])
    assert change(rig, Transition.TRANSITION_DEACTIVATE)
    assert '/image' not in subscribed(rig)
    rig.until(lambda: rig.values('state')[-1] == 'INACTIVE: DEACTIVATED')
    rig.out['image'].publish(rig.message('image', rig.heard['pose'][0].header))
    rig.spin(0.2)
    assert len(rig.group.seen) == 1
    assert change(rig, Transition.TRANSITION_ACTIVATE)
    assert rig.group.resets == 1, 'what was tracked then is no start now'
    rig.until(lambda: all(p.get_subscription_count() for p in rig.out.values()))
    rig.send('camera_info', START_NS)
    rig.frame(START_NS + 5000 * MS, mask=True)
    rig.until(lambda: len(rig.heard['pose']) == 2)
    rig.until(lambda: rig.values('state')[-2:] == ['SEARCHING: RESET', 'TRACKING: REGISTERED'])


def test_deactivate_waits_for_the_frame_in_work_and_does_not_publish_it(make_rig):
    rig = make_rig()
    rig.hold_in_registration(START_NS)
    threading.Timer(0.5, rig.group.permits.release).start()
    assert change(rig, Transition.TRANSITION_DEACTIVATE)
    assert not rig.node._worker._thread.is_alive()
    rig.spin(0.3)
    assert not rig.heard['pose'], 'intake had stopped when it ended'


def test_cleanup_lets_go_of_everything_and_configure_builds_again(make_rig):
    rig = make_rig(connect=False)
    assert gc.get_freeze_count() > 50_000, 'no later collection looks at what stays'

    class Big:
        """Stands in for engines and buffers."""

    alive = Big()
    rig.node._work.built.group.buffers = alive
    gone = weakref.ref(alive)
    del alive
    before = unconfigured_topics()
    rig.group, count = type(rig.group)(), rig.builds
    assert change(rig, Transition.TRANSITION_DEACTIVATE)
    assert change(rig, Transition.TRANSITION_CLEANUP)
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert gone() is None, 'cleanup keeps what configure made'
    assert not rig.node._timers, 'nothing ticks any more'
    left = {p.topic_name for p in rig.node.publishers} - {'/rosout', '/parameter_events'}
    assert left == before, 'topics as before the first configure'
    assert change(rig, Transition.TRANSITION_CONFIGURE) and rig.builds == count + 1
    assert change(rig, Transition.TRANSITION_ACTIVATE)
    assert rig.node.count_publishers('/pose') == 1


def test_parameters_set_after_cleanup_count_at_the_next_configure(make_rig):
    rig = make_rig(connect=False)
    refused = rig.node.set_parameters([Parameter('mask_history_frames', value=3)])[0]
    assert not refused.successful and 'lifecycle set /tracker_node deactivate' in refused.reason
    change(rig, Transition.TRANSITION_DEACTIVATE)
    change(rig, Transition.TRANSITION_CLEANUP)
    assert rig.node.set_parameters([Parameter('mask_history_frames', value=3)])[0].successful
    change(rig, Transition.TRANSITION_CONFIGURE)
    assert rig.node.parameters.mask_history_frames == 3


def test_shutdown_from_active_stops_everything(make_rig):
    rig = make_rig(connect=False)
    assert change(rig, Transition.TRANSITION_ACTIVE_SHUTDOWN)
    assert state(rig) == State.PRIMARY_STATE_FINALIZED
    assert '/image' not in subscribed(rig) and rig.node.count_publishers('/pose') == 0


def test_a_bug_while_configuring_is_raised_and_not_taken_for_a_refusal(make_rig):
    def build(*_):
        raise ZeroDivisionError('a bug')

    rig = make_rig(connect=False, build=build)
    assert not rig.node.configured
    with pytest.raises(ZeroDivisionError, match='a bug'):
        rig.node.finished()


def test_the_warm_up_is_reported_to_who_comes_later(make_rig):
    from std_msgs.msg import Float32

    from foundationpose_trt.ros.qos import LATCHED_QOS

    rig = make_rig(connect=False, warm_up_width=64, warm_up_height=48)
    assert (rig.group.warm.width, rig.group.warm.height) == (64, 48)
    rig.listen('latency/warm_up_ms', Float32, LATCHED_QOS)
    rig.until(lambda: rig.heard['latency/warm_up_ms'])


def test_an_activate_that_fails_says_why_leaves_nothing_and_may_be_tried_again(make_rig, capfd):
    wrong = {'qos_overrides./image.subscription.reliability': 'sometimes'}
    rig = make_rig(connect=False, **wrong)
    assert rig.node.configured and not rig.node.active
    errors = capfd.readouterr().err
    assert 'cannot activate' in errors and 'reliability' in errors
    assert state(rig) == State.PRIMARY_STATE_INACTIVE
    assert not subscribed(rig) and not rig.node._worker._thread.is_alive()
    assert not [s for s in rig.node.services if s.service_name.endswith(('reset', 'pause'))]


def test_a_gpu_that_is_full_is_a_refusal_and_no_bug(make_rig):
    def build(*_):
        raise torch.cuda.OutOfMemoryError('CUDA out of memory')

    rig = make_rig(connect=False, build=build)
    assert rig.node.refusal == 'CUDA out of memory' and rig.node.finished() is False
    assert state(rig) == State.PRIMARY_STATE_UNCONFIGURED


def test_a_frame_that_outlasts_deactivate_says_nothing_in_the_next_run(make_rig, monkeypatch):
    monkeypatch.setattr(image_node, 'END_S', 0.3)
    rig = make_rig()
    rig.hold_in_registration(START_NS)
    assert not change(rig, Transition.TRANSITION_DEACTIVATE)
    assert state(rig) in (State.PRIMARY_STATE_UNCONFIGURED, State.PRIMARY_STATE_FINALIZED)
    rig.group.permits.release(5)
    rig.spin(0.3)
    assert not rig.heard['pose'] and not rig.node.outcomes


def test_names_of_objects_have_parameters_before_the_first_configure(make_rig):
    rig = make_rig(connect=False, objects=('mug',), autostart=False)
    setting = Parameter('mug.mesh_scale', value=0.001)
    assert rig.node.set_parameters([setting])[0].successful


def unconfigured_topics():
    context = begin_context()
    node = TrackerNode(context=context)
    topics = {p.topic_name for p in node.publishers}
    node.destroy_node()
    end_context(context)
    return topics - {'/rosout', '/parameter_events'}


def run(*words, timeout_s=60):
    command = [sys.executable, '-m', tracker_node.__name__, '--ros-args']
    for word in words:
        command += ['-p', word]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=timeout_s, check=False
    )  # fmt: skip


def test_with_exit_on_failure_the_executable_ends_with_status_2():
    done = run('mesh_file_path:=/no/such.obj', 'mesh_scal:=0.001', 'exit_on_failure:=true')
    assert done.returncode == 2, done.stderr
    assert "cannot start: parameter mesh_file_path '/no/such.obj'" in done.stderr + done.stdout
    assert 'did you mean mesh_scale?' in done.stderr + done.stdout


def test_build_only_ends_with_status_2_where_nothing_can_be_built():
    done = run('mesh_file_path:=/no/such.obj', 'build_only:=true')
    assert done.returncode == 2, done.stderr


def test_build_only_ends_with_status_2_where_a_parameter_is_wrong():
    assert run('build_only:=true').returncode == 2


@pytest.mark.parametrize(
    ('major', 'rmw', 'there', 'chosen'),
    [
        (9, 'rmw_fastrtps_cpp', True, 'events'),
        (9, 'rmw_fastrtps_cpp', False, 'single'),
        (9, 'rmw_cyclonedds_cpp', True, 'single'),
        (7, 'rmw_fastrtps_cpp', True, 'single'),
        (None, 'rmw_fastrtps_cpp', True, 'single'),
    ],
)
def test_the_executor_is_the_one_that_was_tried_with_the_release(
    major, rmw, there, chosen, monkeypatch
):
    def events():
        if not there:
            raise ImportError('rclpy.experimental.events_executor')
        return 'events'

    monkeypatch.delenv('FOUNDATIONPOSE_TRT_EXECUTOR', raising=False)
    monkeypatch.setattr(running, 'rclpy_major', lambda: major)
    monkeypatch.setattr(running, 'get_rmw_implementation_identifier', lambda: rmw)
    monkeypatch.setattr(running, '_events_executor', events)
    monkeypatch.setattr(running, 'SingleThreadedExecutor', lambda: 'single')
    assert running.chosen_executor() == chosen


def test_an_unknown_executor_is_refused_by_name(monkeypatch):
    monkeypatch.setenv('FOUNDATIONPOSE_TRT_EXECUTOR', 'fast')
    done = run('mesh_file_path:=/no/such.obj')
    assert done.returncode == 2 and 'must be one of auto, single, events' in done.stderr


@pytest.mark.parametrize('executor', ['events', 'single'])
def test_a_node_runs_on_either_executor_and_ends_at_a_signal(executor, tmp_path, monkeypatch):
    if executor == 'events':
        pytest.importorskip('rclpy.experimental.events_executor')
    monkeypatch.setenv('FOUNDATIONPOSE_TRT_EXECUTOR', executor)
    log = tmp_path / 'log'
    with log.open('wb') as file:
        process = subprocess.Popen(
            [sys.executable, '-m', pattern_camera_node.__name__], stdout=file, stderr=file
        )
    context = begin_context()
    node = rclpy.create_node('viewer', context=context)
    heard = []
    node.create_subscription(CameraInfo, 'camera_info', heard.append, image_node.input_qos())
    executor = SingleThreadedExecutor(context=context)
    end_s = time.monotonic() + 30
    while not heard and time.monotonic() < end_s:
        rclpy.spin_once(node, executor=executor, timeout_sec=0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 0 and heard, log.read_text()
    node.destroy_node()
    end_context(context)


def test_a_value_of_another_type_ends_it_with_status_2():
    done = run('mesh_scale:=big')
    assert done.returncode == 2 and 'mesh_scale' in done.stderr, done.stderr
