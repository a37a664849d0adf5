"""reset, register and pause, frames that are too old or jump back, and what the summary says."""

from __future__ import annotations

import pytest

pytest.importorskip('rclpy', reason='ROS 2 (rclpy) is not installed')
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.parameter import Parameter
from ros_rig import CAMERA, MS, RELIABLE
from std_msgs.msg import Header
from std_srvs.srv import SetBool, Trigger

from foundationpose_trt.ros import conversions

pytestmark = pytest.mark.ros
START_NS = 1_700_000_000_000_000_000


def tracking(make_rig, **parameters):
    rig = make_rig(**parameters)
    rig.send('camera_info', START_NS)
    rig.frame(START_NS, mask=True)
    rig.until(lambda: rig.heard['pose'])
    return rig


def call(rig, kind, name, **fields):
    client = rig.peer.create_client(kind, f'/tracker_node/{name}')
    rig.until(client.service_is_ready)
    future = client.call_async(kind.Request(**fields))
    rig.until(future.done)
    return future.result()


def test_the_summary_says_of_a_pause_what_the_state_says(make_rig):
    rig = tracking(make_rig)
    assert call(rig, SetBool, 'pause', data=True).success
    rig.until(lambda: rig.values('state')[-1] == 'PAUSED: TRACKING')
    told = {status.name.rpartition(': ')[2]: status for status in rig.node._statuses()}
    (name,) = [name for name in told if name.startswith('object')]
    assert told[name].message == 'PAUSED: TRACKING'
    assert told['flow'].message == 'paused' and told['flow'].level == DiagnosticStatus.OK
    assert rig.node.trigger_deactivate() is not None
    rig.until(lambda: rig.values('state')[-1] == 'INACTIVE: DEACTIVATED')
    (status,) = rig.node._object_statuses()
    assert status.message == 'INACTIVE: DEACTIVATED'


def test_reset_forgets_the_object_without_waiting_for_a_frame(make_rig):
    rig = tracking(make_rig)
    assert call(rig, Trigger, 'reset').success
    rig.until(lambda: rig.values('state')[-1] == 'SEARCHING: RESET')
    rig.frame(START_NS + 33 * MS)
    rig.until(lambda: rig.outcomes()[-1] == 'NO_MASK')
    assert len(rig.heard['pose']) == 1
    rig.frame(START_NS + 66 * MS, mask=True)
    rig.until(lambda: rig.stamps() == [START_NS, START_NS + 66 * MS])


def test_a_storm_of_resets_leaves_a_working_node(make_rig):
    rig = tracking(make_rig)
    client = rig.peer.create_client(Trigger, '/tracker_node/reset')
    rig.until(client.service_is_ready)
    for k in range(1, 40):
        futures = [client.call_async(Trigger.Request()) for _ in range(5)]
        rig.frame(START_NS + k * 33 * MS, mask=True)
        rig.until(lambda: all(f.done() for f in futures))  # noqa: B023
    last = START_NS + 2000 * MS
    rig.frame(last, mask=True)
    rig.until(lambda: rig.stamps()[-1] == last)
    assert rig.stamps() == sorted(set(rig.stamps()))


def test_register_renews_a_pose_without_interrupting_the_track(make_rig):
    rig = tracking(make_rig)
    call(rig, Trigger, 'register')
    rig.until(lambda: rig.group.requested)
    rig.frame(START_NS + 33 * MS)
    rig.until(lambda: len(rig.heard['pose']) == 2)
    assert rig.group.seen[-1] == (START_NS + 33 * MS, False), 'tracked on'
    rig.frame(START_NS + 66 * MS, mask=True)
    rig.until(lambda: (START_NS + 66 * MS, True) in rig.group.seen)
    assert not rig.group.requested
    rig.until(lambda: rig.stamps()[-1] == START_NS + 66 * MS)


def test_while_paused_frames_are_counted_and_not_looked_at(make_rig):
    rig = tracking(make_rig)
    assert call(rig, SetBool, 'pause', data=True).message == 'paused'
    assert call(rig, SetBool, 'pause', data=True).message == 'was paused already'
    for k in range(1, 4):
        rig.frame(START_NS + k * 33 * MS)
    rig.spin(0.1)
    assert len(rig.heard['pose']) == 1 and rig.node.drops()['paused'] == 3
    call(rig, SetBool, 'pause', data=False)
    rig.frame(START_NS + 132 * MS)
    rig.until(lambda: rig.stamps() == [START_NS, START_NS + 132 * MS])


def test_images_older_than_allowed_are_dropped_as_stale(make_rig, capfd):
    rig = make_rig(max_frame_age_ms=500.0)
    now_ns = rig.node.get_clock().now().nanoseconds
    rig.send('camera_info', now_ns)
    rig.frame(now_ns - 2000 * MS, mask=True)
    rig.spin(0.1)
    assert rig.node.drops()['stale'] == 1 and not rig.group.seen
    assert 'share a clock' in capfd.readouterr().err
    fresh_ns = rig.node.get_clock().now().nanoseconds
    rig.frame(fresh_ns, mask=True)
    rig.until(lambda: rig.stamps() == [fresh_ns])


def rig_header(stamp_ns):
    return Header(stamp=conversions.stamp_message(stamp_ns), frame_id='left_optical')


def values(status):
    return {pair.key: pair.value for pair in status.values}


def test_summary_and_diagnostics_say_how_the_node_does(make_rig):
    rig = tracking(make_rig, budget_track_ms=5.0, budget_register_ms=100.0)
    rig.listen('latency/summary', DiagnosticArray, RELIABLE)
    rig.listen('/diagnostics', DiagnosticArray, RELIABLE)
    for k in range(1, 4):
        rig.frame(START_NS + k * 33 * MS)
        rig.until(lambda: len(rig.heard['pose']) == k + 1)  # noqa: B023
    rig.send('image', START_NS + 500 * MS, encoding='hsv8')
    rig.send('depth', START_NS + 500 * MS)
    rig.until(lambda: rig.node.outcomes['UNKNOWN_ENCODING'] == 1)
    rig.heard['latency/summary'].clear()
    rig.until(lambda: rig.heard['latency/summary'] and rig.heard['/diagnostics'])
    array = rig.heard['latency/summary'][-1]
    assert abs(rig.node.get_clock().now().nanoseconds * 1e-9 - array.header.stamp.sec) < 5
    by_name = {status.name.partition(': ')[2]: status for status in array.status}
    assert {s.name.partition(': ')[0] for s in array.status} == {'/tracker_node'}
    track = by_name['latency track_ms']  # the scripted steps all say 12.5 ms
    assert track.level == DiagnosticStatus.ERROR and 'budget 5 ms' in track.message
    assert values(track) == {
        'p50_ms': '12.500', 'p95_ms': '12.500', 'p99_ms': '12.500', 'max_ms': '12.500',
        'count': '3', 'budget_ms': '5',
    }  # fmt: skip
    assert by_name['latency register_ms'].level == DiagnosticStatus.OK
    assert 'budget_ms' not in values(by_name['latency publish_ms'])
    flow = values(by_name['flow'])
    assert (flow['outcome_OK'], flow['handled'], flow['dropped_invalid']) == ('4', '5', '1')
    assert flow['dropped_busy'] == flow['dropped_unmatched'] == flow['dropped_stale'] == '0'
    assert values(by_name['object thing']) == {'state': 'TRACKING', 'reason': 'REGISTERED'}
    names = [status.name for status in rig.heard['/diagnostics'][-1].status]
    assert sorted(names) == sorted(s.name for s in array.status)


def test_budgets_may_be_set_while_running(make_rig):
    rig = tracking(make_rig, budget_register_ms=5.0)
    rig.listen('latency/summary', DiagnosticArray, RELIABLE)

    def level():
        rig.heard['latency/summary'].clear()
        rig.until(lambda: rig.heard['latency/summary'])
        found = rig.heard['latency/summary'][-1].status
        return next(s.level for s in found if s.name.endswith('register_ms'))

    assert level() == DiagnosticStatus.ERROR
    assert rig.node.set_parameters([Parameter('budget_register_ms', value=50.0)])[0].successful
    assert level() == DiagnosticStatus.OK


def test_a_storm_of_parameters_is_applied_between_frames(make_rig):
    rig = tracking(make_rig)
    for k in range(1, 60):
        rig.node.set_parameters([Parameter('lost_after', value=k)])
        rig.frame(START_NS + k * 33 * MS)
    rig.until(lambda: rig.group.applied and rig.group.applied[-1].lost_after == 59)
    applied = [p.lost_after for p in rig.group.applied]
    assert applied == sorted(applied) and rig.node.parameters.lost_after == 59


def test_depth_in_another_frame_is_warned_of_once(make_rig, capfd):
    rig = make_rig()
    rig.send('camera_info', START_NS)
    for k in range(3):
        header = rig.message('depth', rig_header(START_NS + k * 33 * MS)).header
        header.frame_id = 'depth_optical'
        rig.send('segmentation', START_NS + k * 33 * MS)
        rig.send('depth', START_NS + k * 33 * MS, header=header)
        rig.send('image', START_NS + k * 33 * MS)
        rig.until(lambda: len(rig.heard['pose']) == k + 1)  # noqa: B023
    errors = capfd.readouterr().err
    assert errors.count("depth is in frame 'depth_optical', the image in 'left_optical'") == 1
    assert {m.header.frame_id for m in rig.heard['pose']} == {'left_optical'}


@pytest.mark.parametrize(
    ('values', 'label', 'warned'), [((1, 2), 0, True), ((1, 2), 2, False), ((255, 255), 0, False)]
)
def test_a_label_image_of_several_objects_is_not_taken_for_one_mask_silently(
    make_rig, capfd, values, label, warned
):
    rig = make_rig(mask_label=label)
    rig.send('camera_info', START_NS)
    rig.send('segmentation', START_NS, data=bytes(values) * (CAMERA.width * CAMERA.height // 2))
    rig.send('depth', START_NS)
    rig.send('image', START_NS)
    rig.until(lambda: rig.heard['pose'])
    text = 'the segmentation shows 2 objects, values [1, 2], and mask_label is 0'
    assert (text in capfd.readouterr().err) is warned
