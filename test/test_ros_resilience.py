"""Nodes outlive what users and other nodes do to them at the wrong moment."""

from __future__ import annotations

import time

import pytest

pytest.importorskip('rclpy', reason='ROS 2 (rclpy) is not installed')
from types import SimpleNamespace

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import GetParameters
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.parameter import Parameter
from ros_rig import CAMERA, MS
from test_ros_lifecycle import call, change, state

from foundationpose_trt.datatypes import TrackingState
from foundationpose_trt.ros import image_node
from foundationpose_trt.ros.frame_intake import Job
from foundationpose_trt.ros.managed_node import surviving
from foundationpose_trt.ros.tracker_services import TrackerServices

pytestmark = pytest.mark.ros
START_NS = 1_700_000_000_000_000_000


def test_a_transition_at_the_wrong_time_is_answered_no(make_rig):
    rig = make_rig(connect=False)
    assert not change(rig, Transition.TRANSITION_CONFIGURE)
    assert state(rig) == State.PRIMARY_STATE_ACTIVE and not rig.node.finished()


def test_where_rclpy_raises_for_it_the_answer_is_no_as_well():
    """As Humble's and Jazzy's do, out of spin_once."""

    def raises(request, response):
        raise rclpy_implementation.RCLError('Transition is not registered')

    said = []
    request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
    answer = surviving(raises, SimpleNamespace(error=said.append))
    response = answer(request, ChangeState.Response(success=True))
    assert response.success is False and 'transition 1' in said[0] and 'registered' in said[0]


@pytest.mark.parametrize('objects', [(), ('mug',)])
def test_all_parameters_are_told_at_once_as_param_dump_asks_for_them(make_rig, objects):
    rig = make_rig(connect=False, objects=objects)
    names = list(rig.node._parameters)
    assert ('mug.symmetry_axes' if objects else 'symmetry_axes') in names
    found = call(rig, GetParameters, 'get_parameters', GetParameters.Request(names=names))
    assert len(found.values) == len(names)
    lists = [name for name in names if name.endswith(('objects', 'symmetry_axes'))]
    assert all(rig.node.get_parameter(name).value is not None for name in lists)


@pytest.mark.parametrize('value', ['5', 'many'])
def test_an_override_of_another_type_is_a_refusal_of_activate(make_rig, value):
    rig = make_rig(connect=False, **{'qos_overrides./image.subscription.depth': value})
    assert rig.node.configured and not rig.node.active
    assert 'depth' in rig.node.refusal and rig.node.finished() is False


@pytest.mark.parametrize(
    'wrong', [('reliability', 'sometimes'), ('depth', '5'), ('history', 'unknown')]
)
def test_a_wrong_override_of_a_publisher_is_a_refusal_of_configure(make_rig, wrong):
    policy, value = wrong
    overrides = {f'qos_overrides./cup/pose.publisher.{policy}': value}
    rig = make_rig(connect=False, objects=('mug', 'cup'), **overrides)
    assert not rig.node.configured and rig.node.finished() is False
    assert 'qos_overrides' in rig.node.refusal or policy in rig.node.refusal
    left = {publisher.topic_name for publisher in rig.node.publishers}
    assert not left & {'/mug/pose', '/mug/state', '/mug/outcome'}


def test_a_bug_while_deactivating_is_raised(make_rig, monkeypatch):
    rig = make_rig(connect=False)

    def fail(self):
        raise ZeroDivisionError('a bug')

    with monkeypatch.context() as patch:
        patch.setattr(TrackerServices, 'destroy', fail)
        change(rig, Transition.TRANSITION_DEACTIVATE)
    with pytest.raises(ZeroDivisionError, match='a bug'):
        rig.node.finished()


def test_named_objects_get_their_parameters_without_a_clock(make_rig):
    rig = make_rig(connect=False, autostart=False, use_sim_time=True)
    assert rig.node.set_parameters([Parameter('objects', value=['cup'])])[0].successful
    rig.until(lambda: rig.node.has_parameter('cup.mesh_file_path'), 5)


def test_a_wrong_value_of_an_object_named_later_is_told_by_configure(make_rig):
    rig = make_rig(connect=False, autostart=False, **{'cup.mesh_scale': 1})
    assert rig.node.set_parameters([Parameter('objects', value=['cup'])])[0].successful
    rig.spin(0.3)
    assert not change(rig, Transition.TRANSITION_CONFIGURE)
    assert 'cup.mesh_scale' in rig.node.refusal and rig.node.finished() is False


def test_after_a_registration_that_outlasts_deactivate_nothing_more_is_said(make_rig, monkeypatch):
    rig, said = make_rig(connect=False), []
    work = rig.node._work
    late, newer = (SimpleNamespace(segmentation=None, stamp_ns=k, late_mask=False) for k in (1, 2))
    monkeypatch.setattr(work, '_masked', lambda frames: late)
    monkeypatch.setattr(work, '_register', lambda job: rig.node._worker.stop(1.0))
    monkeypatch.setattr(work, '_settle_rest', said.append)
    monkeypatch.setattr(work, '_expire', lambda: said.append('expired'))
    work._warm_size = (CAMERA.height, CAMERA.width)
    work.process(Job(CAMERA, newer))
    assert said == []


def test_what_was_waited_for_in_vain_is_not_waited_for_again(make_rig, monkeypatch):
    monkeypatch.setattr(image_node, 'END_S', 1.0)
    rig = make_rig()
    rig.hold_in_registration(START_NS)
    start_s = time.monotonic()
    assert not change(rig, Transition.TRANSITION_DEACTIVATE)
    assert time.monotonic() - start_s < 1.9, 'by on_deactivate, and not by on_error'


def test_nothing_can_be_published_once_pause_and_reset_are_forgotten(make_rig, monkeypatch):
    rig, stopping = make_rig(connect=False), []
    destroy = TrackerServices.destroy

    def noting(self):
        stopping.append(rig.node.stopping)
        destroy(self)

    monkeypatch.setattr(TrackerServices, 'destroy', noting)
    assert change(rig, Transition.TRANSITION_DEACTIVATE)
    assert stopping == [True]


def test_counts_of_drops_go_on_when_the_node_is_activated_again(make_rig):
    rig = make_rig()
    rig.send('camera_info', START_NS)
    for k in range(12):
        rig.send('image', START_NS + k * 1000 * MS)
    lost = rig.node.drops()['unmatched']
    assert lost > 0
    assert change(rig, Transition.TRANSITION_DEACTIVATE)
    assert rig.node.drops()['unmatched'] == lost
    assert change(rig, Transition.TRANSITION_ACTIVATE)
    assert rig.node.drops()['unmatched'] == lost


def test_what_is_tracked_expires_while_the_executor_is_held_up(make_rig):
    """As by another node of the process that configures: nothing spins, so nothing may look on."""
    rig = make_rig(tracking_timeout_ms=300.0)
    rig.send('camera_info', START_NS)
    rig.frame(START_NS, mask=True)
    rig.until(lambda: rig.heard['pose'])
    assert rig.group.states[0] is TrackingState.TRACKING
    time.sleep(2.5)
    assert (rig.group.states[0], rig.group.reasons[0]) == (TrackingState.LOST, 'TIMEOUT')
