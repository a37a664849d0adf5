"""tracker_node over real DDS, its estimator replaced: what comes out of which messages."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip('rclpy', reason='ROS 2 (rclpy) is not installed')
from rclpy.parameter import Parameter
from ros_rig import CAMERA, MS

from foundationpose_trt.ros.build_choices import choose_device
from foundationpose_trt.ros.build_reports import BuildReports
from foundationpose_trt.ros.tracker_factory import build_tracker
from foundationpose_trt.ros.tracker_parameters import TrackerParameters
from foundationpose_trt.ros.worker import WorkerFailed

pytestmark = pytest.mark.ros
START_NS = 1_700_000_000_123_456_789


def tracking_rig(make_rig, **parameters):
    rig = make_rig(**parameters)
    rig.send('camera_info', START_NS)
    rig.frame(START_NS, mask=True)
    rig.until(lambda: rig.heard['pose'])
    return rig


def test_pose_carries_the_images_stamp_and_frame_untouched(make_rig):
    rig = tracking_rig(make_rig)
    rig.frame(START_NS + 33 * MS)
    rig.until(lambda: len(rig.heard['pose']) == 2)
    assert rig.stamps() == [START_NS, START_NS + 33 * MS]
    for pose, stamp in zip(rig.heard['pose'], rig.stamps(), strict=True):
        assert pose.header.frame_id == 'left_optical'
        assert pose.pose.position.x == stamp // MS % 256 and pose.pose.orientation.w == 1
        assert pose.pose.position.z == pytest.approx(0.75)


def test_state_outcome_and_latencies_are_published(make_rig):
    rig = tracking_rig(make_rig)
    rig.frame(START_NS + 33 * MS)
    rig.until(lambda: len(rig.heard['latency/dropped']) == 2)
    assert [m.data for m in rig.heard['state']] == ['SEARCHING: STARTED', 'TRACKING: REGISTERED']
    assert rig.outcomes() == ['OK', 'OK']
    values = {name: [m.data for m in rig.heard[f'latency/{name}']] for name in (
        'register_ms', 'track_ms', 'publish_ms', 'age_ms', 'dropped')}  # fmt: skip
    assert values['register_ms'] == values['track_ms'] == [12.5]
    assert len(values['publish_ms']) == 2 and all(0 < v < 1000 for v in values['publish_ms'])
    # the image claims to be from 2023: its age is years, which only the image's stamp explains
    assert len(values['age_ms']) == 2 and values['age_ms'][0] > 1e10
    assert values['dropped'] == [0, 0]


def test_live_parameters_are_applied_by_the_worker_and_others_are_fixed(make_rig):
    rig = tracking_rig(make_rig)

    def reason(name, value):
        return rig.node.set_parameters([Parameter(name, value=value)])[0].reason

    assert reason('cuda_graph_cache_capacity', 3) == reason('lost_after', 3) == ''
    assert 'range' in reason('cuda_graph_cache_capacity', 65)
    assert 'max_depth_m' in reason('min_depth_m', 20.0), 'checked against each other'
    assert 'fixed while the node is configured' in reason('mesh_scale', 2.0)
    assert reason('mesh_scale', 1.0) == '', 'what it is already'
    assert rig.group.applied == []  # the worker's to change, between two frames
    rig.frame(START_NS + 33 * MS)
    rig.until(lambda: len(rig.heard['pose']) == 2)
    (applied,) = rig.group.applied
    assert (applied.cuda_graph_cache_capacity, applied.lost_after) == (3, 3)
    assert applied.min_depth_m == 0.1 and applied.mesh_scale == 1.0
    assert rig.node.get_parameter('cuda_graph_cache_capacity').value == 3


def test_warms_up_on_the_first_camera_info_before_any_image(make_rig):
    rig = make_rig()
    rig.send('camera_info', START_NS)
    rig.until(lambda: rig.group.warm is not None)
    assert rig.group.warm == CAMERA and rig.group.seen == []


def test_messages_are_converted_where_the_estimator_wants_them(make_rig):
    rig = tracking_rig(make_rig)
    assert rig.group.frame.depth_m is rig.rooms[-1], '16UC1 becomes metres'
    assert len(rig.rooms) == len(rig.group.seen), 'rgb8 stays where it is'


def test_frames_that_arrive_during_a_step_are_dropped_and_counted(make_rig):
    rig = tracking_rig(make_rig)
    rig.group.hold = True
    stamps = [START_NS + k * 33 * MS for k in range(1, 8)]
    rig.frame(stamps[0])
    rig.until(lambda: len(rig.group.seen) == 2)
    for stamp in stamps[1:]:
        rig.frame(stamp)
    rig.group.permits.release(2)
    rig.until(lambda: len(rig.heard['pose']) == 3)
    assert rig.stamps() == [START_NS, stamps[0], stamps[-1]], 'the first taken, then the newest'
    rig.until(lambda: len(rig.heard['latency/dropped']) == 3)
    assert rig.heard['latency/dropped'][-1].data == len(stamps) - 2


def test_missing_and_late_messages_cost_only_their_own_frame(make_rig):
    rig = tracking_rig(make_rig)
    first, second, third = (START_NS + k * 33 * MS for k in (1, 2, 3))
    rig.send('image', first)  # its depth never comes
    rig.frame(second)
    rig.send('depth', first)  # late: a newer pair is out
    rig.until(lambda: len(rig.heard['pose']) == 2)
    rig.frame(third)
    rig.until(lambda: len(rig.heard['pose']) == 3)
    assert rig.stamps() == [START_NS, second, third]


def test_a_late_mask_registers_the_frame_it_belongs_to_and_the_first_pose_is_of_now(make_rig):
    rig = make_rig()
    rig.send('camera_info', START_NS)
    for k in range(4):
        rig.frame(START_NS + k * 33 * MS)
        rig.until(lambda: rig.outcomes() == ['NO_MASK'] * (k + 1))  # noqa: B023
    rig.send('segmentation', START_NS + 33 * MS)
    rig.until(lambda: rig.heard['pose'])
    assert rig.group.seen == [(START_NS + 33 * MS, True), (START_NS + 99 * MS, False)]
    assert rig.stamps() == [START_NS + 99 * MS]
    rig.until(lambda: rig.outcomes()[4:] == ['OK', 'OK'])
    for name in ('register', 'track'):
        rig.until(lambda: len(rig.heard[f'latency/{name}_ms']) == 1)  # noqa: B023
    rig.send('segmentation', START_NS + 66 * MS)  # tracking already: of no interest
    rig.frame(START_NS + 132 * MS)
    rig.until(lambda: len(rig.heard['pose']) == 2)
    assert rig.stamps()[1] == START_NS + 132 * MS


def hold_in_a_registration_that_fails(rig, stamp_ns):
    """Keep the worker busy with a frame whose mask is empty."""
    rig.group.hold = True
    rig.send('segmentation', stamp_ns, data=bytes(CAMERA.width * CAMERA.height))
    rig.send('depth', stamp_ns)
    rig.send('image', stamp_ns)
    rig.until(lambda: len(rig.group.seen) == 1)


def test_while_seeking_a_frame_with_mask_is_not_displaced_by_one_without(make_rig):
    rig = make_rig()
    rig.send('camera_info', START_NS)
    hold_in_a_registration_that_fails(rig, START_NS)
    rig.frame(START_NS + 33 * MS, mask=True)
    rig.frame(START_NS + 66 * MS)
    rig.group.permits.release(3)
    rig.until(lambda: rig.heard['pose'])
    assert rig.group.seen[1:] == [(START_NS + 33 * MS, True), (START_NS + 66 * MS, False)]
    assert rig.stamps() == [START_NS + 66 * MS] and rig.node.dropped == 0


def test_a_frame_passed_over_without_its_mask_counts_once_when_it_comes_back_with_it(make_rig):
    rig = make_rig()
    rig.send('camera_info', START_NS)
    stamps = [START_NS + k * 33 * MS for k in range(4)]
    hold_in_a_registration_that_fails(rig, stamps[0])
    rig.frame(stamps[1], mask=True)
    rig.frame(stamps[2])  # gives way to the one with a mask, comes back with its own
    rig.frame(stamps[3])
    rig.send('segmentation', stamps[2])
    rig.group.permits.release(3)
    rig.until(lambda: rig.heard['pose'])
    assert rig.group.seen == [(stamps[0], True), (stamps[2], True), (stamps[3], False)]
    rig.until(lambda: len(rig.heard['latency/dropped']) == 3)
    assert rig.node.dropped == 1


def test_after_registering_no_frame_older_than_the_pose_is_tracked(make_rig):
    rig = make_rig()
    rig.hold_in_registration(START_NS)
    rig.frame(START_NS + 33 * MS, mask=True)  # waits, and is preferred to those without
    rig.frame(START_NS + 66 * MS)
    rig.group.permits.release(5)
    rig.until(lambda: rig.node.dropped == 1)
    rig.frame(START_NS + 99 * MS)
    rig.until(lambda: len(rig.heard['pose']) == 2)
    assert rig.stamps() == [START_NS + 66 * MS, START_NS + 99 * MS]


def test_mask_label_chooses_one_object_of_a_label_image(make_rig):
    rig = make_rig(mask_label=2)
    rig.send('camera_info', START_NS)
    labels = bytes(k % 4 for k in range(24 * 32))
    rig.send('segmentation', START_NS, data=labels)
    rig.send('depth', START_NS)
    rig.send('image', START_NS)
    rig.until(lambda: rig.heard['pose'])
    assert rig.group.masks[0].tolist() == [[column % 4 == 2 for column in range(32)]] * 24


@pytest.mark.parametrize(
    ('topic', 'changes', 'outcome', 'words'),
    [
        ('image', {'encoding': 'hsv8'}, 'UNKNOWN_ENCODING', "encoding 'hsv8'"),
        ('depth', {'encoding': 'rgb8'}, 'UNKNOWN_ENCODING', "depth has encoding 'rgb8'"),
        ('depth', {'height': 12}, 'SIZE_MISMATCH', 'registered to colour'),
        ('image', {'step': 3}, 'BAD_IMAGE', 'a row needs 96 bytes'),
        ('segmentation', {'height': 12}, 'SIZE_MISMATCH', 'segmentation is 32x12'),
    ],
)
def test_unusable_messages_are_named_counted_and_survived(
    make_rig, capfd, topic, changes, outcome, words
):
    rig = make_rig()
    rig.send('camera_info', START_NS)
    for name in ('segmentation', 'depth', 'image'):
        rig.send(name, START_NS, **(changes if name == topic else {}))
    rig.until(lambda: outcome in rig.outcomes())
    assert not rig.heard['pose'] and rig.node.outcomes[outcome] == 1
    assert words in capfd.readouterr().err
    rig.frame(START_NS + 33 * MS, mask=True)
    rig.until(lambda: rig.stamps() == [START_NS + 33 * MS])


def test_a_camera_info_of_two_cameras_is_told_once(make_rig, capfd):
    rig = make_rig()
    raw = [400.0, 0.0, 30.0, 0.0, 400.0, 20.0, 0.0, 0.0, 1.0]
    for shift_ns in range(3):
        rig.send('camera_info', START_NS + shift_ns, k=raw)
    rig.frame(START_NS, mask=True)
    rig.until(lambda: rig.stamps() == [START_NS])
    errors = capfd.readouterr().err
    assert errors.count('fx 400.0') == 1 and 'which is used' in errors


def test_camera_info_with_zero_k_is_refused_until_a_good_one_comes(make_rig, capfd):
    rig = make_rig()
    for _ in range(3):
        rig.send('camera_info', START_NS, k=[0.0] * 9)
    rig.frame(START_NS, mask=True)
    rig.until(lambda: rig.outcomes() == ['BAD_CAMERA_INFO'] * 3)
    errors = capfd.readouterr().err
    assert errors.count('is the camera calibrated') == 1, 'throttled'
    assert 'no usable /camera_info' in errors
    rig.send('camera_info', START_NS)
    rig.frame(START_NS + 33 * MS, mask=True)
    rig.until(lambda: rig.stamps() == [START_NS + 33 * MS])


def test_stamps_that_never_match_are_reported_with_the_gap(make_rig, capfd):
    rig = make_rig(sync_slop_ms=5.0)
    rig.send('camera_info', START_NS)
    for k in range(10):
        rig.send('image', START_NS + k * 100 * MS)
        rig.send('depth', START_NS + (k * 100 + 20) * MS)
    rig.spin(1.2)
    errors = capfd.readouterr().err
    assert errors.count('closest stamps are 20.000 ms apart') == 1
    assert 'sync_slop_ms allows 5' in errors and not rig.heard['pose']


def test_images_announced_but_not_arriving_are_explained(make_rig, capfd):
    rig = make_rig(silence_warning_s=0.5)
    for _ in range(9):
        rig.send('camera_info', START_NS)
        rig.spin(0.25)
    errors = capfd.readouterr().err
    assert '/image is announced and camera_info arrives' in errors
    assert 'fastdds_shm.xml' in errors and 'start the PUBLISHER with' in errors


@pytest.mark.filterwarnings('ignore::pytest.PytestUnhandledThreadExceptionWarning')
def test_a_bug_in_the_worker_ends_the_node(make_rig):
    rig = tracking_rig(make_rig)
    assert rig.node.finished() is False
    rig.group.failure = ZeroDivisionError('a bug')
    rig.frame(START_NS + 33 * MS)
    with pytest.raises(WorkerFailed, match='ZeroDivisionError: a bug'):
        rig.until(rig.node.finished)
    assert rig.node._worker.stop(), 'its thread would be reported dead in another test'


def test_a_lost_object_is_told_by_state_and_outcome(make_rig):
    rig = tracking_rig(make_rig)
    rig.group.lose_one(reason='LOW_SUPPORT')
    rig.frame(START_NS + 33 * MS)
    rig.until(lambda: rig.outcomes() == ['OK', 'NO_MASK'])
    rig.until(lambda: rig.values('state')[-1] == 'LOST: LOW_SUPPORT')
    assert len(rig.heard['pose']) == 1
    rig.frame(START_NS + 66 * MS, mask=True)
    rig.until(lambda: rig.stamps() == [START_NS, START_NS + 66 * MS])


def test_build_only_ends_the_node_without_listening(make_rig):
    node = make_rig(connect=False, build_only=True).node
    assert node.finished()
    assert not [s for s in node.subscriptions if s.topic_name == '/image']


def test_engine_builds_are_reported_now_and_then():
    lines = []
    logger = SimpleNamespace(info=lines.append)
    sent = []
    quick = BuildReports(logger, sent.append, interval_s=60.0)
    slow = BuildReports(logger, sent.append, interval_s=0.0)
    for done in (0.0, 0.2, 0.4, 1.0):
        quick('refiner', done, 'tactics')
    quick('extractor', 0.5, 'parsing')
    assert lines == [
        'building the engine of the refiner: 0%, tactics',
        'building the engine of the refiner: 100%, tactics',
        'building the engine of the extractor: 50%, parsing',
    ]
    slow('refiner', 0.1, 'a')
    slow('refiner', 0.2, 'b')
    assert len(lines) == 5 and sent == lines


def test_inputs_are_newest_only_best_effort_unless_the_user_says_otherwise(make_rig):
    rig = make_rig(**{'qos_overrides./depth.subscription.reliability': 'reliable'})
    inputs = ('/image', '/depth', '/segmentation', '/camera_info')
    profiles = {s.topic_name: s.qos_profile for s in rig.node.subscriptions}
    assert {profiles[topic].depth for topic in inputs} == {1}
    assert profiles['/image'].reliability.name == 'BEST_EFFORT'
    assert profiles['/depth'].reliability.name == 'RELIABLE'


def test_the_qos_of_what_is_published_may_be_overridden(make_rig):
    name = 'qos_overrides./pose.publisher.depth'
    rig = make_rig(**{name: 3})
    depths = {p.topic_name: p.qos_profile.depth for p in rig.node.publishers}
    assert depths['/pose'] == 3 and depths['/debug/pose'] == 1
    assert rig.node.has_parameter('qos_overrides./debug/pose.publisher.reliability')


def parameters(tmp_path, **changes):
    mesh = tmp_path / 'cube.obj'
    corners = [f'v {x} {y} {z}' for x in (0, 80) for y in (0, 80) for z in (0, 80)]
    faces = ['f 1 2 3', 'f 2 4 3', 'f 5 7 6', 'f 6 7 8', 'f 1 5 2', 'f 2 5 6']
    mesh.write_text('\n'.join([*corners, *faces, '']))
    return TrackerParameters(**{'mesh_file_path': str(mesh), **changes})


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'mesh_file_path': '/no/such.obj'}, "mesh_file_path '/no/such.obj'.*no such file"),
        ({}, r'mesh_file_path .*mesh_scale 1\).*diameter'),
        ({'mesh_scale': 0.001, 'weights': 'huge'}, "weights 'huge'"),
        (
            {'mesh_scale': 0.001, 'device': 'cpu', 'backend': 'tensorrt'},
            "backend 'tensorrt': .* does not run .* device cpu",
        ),
    ],
)
def test_what_cannot_be_loaded_is_refused_by_parameter(tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        build_tracker(parameters(tmp_path, **changes), {})


def test_the_built_tracker_makes_room_as_its_estimator_does(tmp_path):
    given = parameters(tmp_path, mesh_scale=0.001, weights='small', device='cpu', backend='torch')
    built = build_tracker(given, {})
    assert built.empty_image == built.group.estimator.empty_image


def test_cuda_without_a_gpu_is_refused(monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    assert choose_device('auto') == choose_device('cpu') == 'cpu'
    with pytest.raises(ValueError, match='device is cuda, but torch .* finds no CUDA GPU'):
        choose_device('cuda')


def test_a_refused_configure_names_what_is_wrong_and_may_be_tried_again(make_rig, capfd):
    def build(parameters, nested, report):
        if parameters.mesh_file_path == 'unused.obj':
            raise ValueError('parameter mesh_file_path: no such file')
        return rig_of[0].build(parameters, nested, report)

    rig_of = []
    rig = make_rig(connect=False, build=build)
    rig_of.append(rig)
    assert not rig.node.configured and rig.node.finished() is False
    assert 'no such file. The node is unconfigured: mend it' in capfd.readouterr().err
    assert rig.node.count_subscribers('/image') == 0
    assert rig.node.set_parameters([Parameter('mesh_file_path', value='b.obj')])[0].successful
    assert rig.node.start() and rig.node.active
    rig._connect()
    rig.send('camera_info', START_NS)
    rig.frame(START_NS, mask=True)
    rig.until(lambda: rig.stamps() == [START_NS])
