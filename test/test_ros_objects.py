"""Several objects in one tracker_node: their topics, labels and turns; messages for others."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import trimesh

pytest.importorskip('rclpy', reason='ROS 2 (rclpy) is not installed')
from rclpy.parameter import Parameter
from ros_rig import CAMERA, MS, Rig, ScriptedGroup
from scipy.spatial.transform import Rotation
from test_detection_messages import message

from foundationpose_trt.datatypes import Frame
from foundationpose_trt.ros import detection_messages
from foundationpose_trt.ros.conversions import header_message
from foundationpose_trt.ros.tracker_factory import NamedObject, named_objects
from foundationpose_trt.ros.tracker_parameters import ObjectParameters, TrackerParameters
from foundationpose_trt.ros.transforms import transform_message

pytestmark = pytest.mark.ros
START_NS = 1_700_000_000_000_000_000
NAMES = ('mug', 'drill', 'can')
MESHES = {f'{name}.mesh_file_path': 'unused.obj' for name in NAMES}


@pytest.fixture
def make_rig(make_rig):
    return partial(make_rig, objects=NAMES, **MESHES)


def labelled(rig, stamp_ns, *labels):
    """A frame whose label image shows these labels, one column each."""
    pixels = np.zeros((CAMERA.height, CAMERA.width), np.uint8)
    for column, label in enumerate(labels):
        pixels[:, column] = label
    rig.send('segmentation', stamp_ns, data=pixels.tobytes())
    rig.send('depth', stamp_ns)
    rig.send('image', stamp_ns)


def test_each_object_is_registered_from_its_label_in_turn_and_tracked_with_the_others(make_rig):
    rig = make_rig()
    rig.send('camera_info', START_NS)
    labelled(rig, START_NS, 3, 1)  # the drill, 2, is not there
    rig.until(lambda: rig.heard['mug/pose'])
    rig.until(lambda: rig.values('mug/state')[-1] == 'TRACKING: REGISTERED')
    assert rig.group.masks[0].any(0).nonzero()[0].tolist() == [1], 'label 1 is in column 1'
    labelled(rig, START_NS + 33 * MS, 3, 1)
    rig.until(lambda: rig.heard['can/pose'] and len(rig.heard['mug/pose']) == 2)
    assert rig.group.masks[1].any(0).nonzero()[0].tolist() == [0]
    assert not rig.heard['drill/pose']
    labelled(rig, START_NS + 66 * MS, 3, 1)
    rig.until(lambda: rig.values('drill/outcome')[-1:] == ['EMPTY_MASK'])
    rig.frame(START_NS + 99 * MS)
    rig.until(lambda: rig.values('drill/outcome')[-1:] == ['NO_MASK'])
    rig.until(lambda: len(rig.heard['mug/pose']) == 4 and len(rig.heard['can/pose']) == 3)
    y = [rig.heard[f'{name}/pose'][-1].pose.position.y for name in ('mug', 'can')]
    assert y == [0.0, 2.0], 'each topic carries its own object'
    stamps = [m.header.stamp.nanosec // MS for m in rig.heard['mug/pose']]
    assert stamps == [0, 33, 66, 99], 'tracking never waited for a registration of another'


def test_an_object_lost_is_sought_while_the_others_are_tracked(make_rig):
    rig = make_rig()
    rig.send('camera_info', START_NS)
    for k in range(3):
        labelled(rig, START_NS + k * 33 * MS, 1, 2, 3)
        rig.until(lambda: len(rig.heard['mug/pose']) == k + 1)  # noqa: B023
    rig.until(lambda: rig.heard['can/pose'] and rig.heard['drill/pose'])
    rig.group.lose_one(1)
    rig.frame(START_NS + 99 * MS)
    rig.until(lambda: rig.values('drill/state')[-1] == 'LOST: LOW_SUPPORT')
    labelled(rig, START_NS + 132 * MS, 1, 2, 3)
    rig.until(lambda: rig.values('drill/state')[-1] == 'TRACKING: REGISTERED')
    assert rig.values('mug/state')[-1] == 'TRACKING: REGISTERED'


def test_a_late_mask_registers_the_object_and_tracks_the_others_on_no_older_frame(make_rig):
    rig = make_rig()
    rig.send('camera_info', START_NS)
    labelled(rig, START_NS, 1)
    rig.until(lambda: rig.heard['mug/pose'])
    for k in range(1, 4):
        rig.frame(START_NS + k * 33 * MS)
        rig.until(lambda: len(rig.heard['mug/pose']) == k + 1)  # noqa: B023
    pixels = np.full((CAMERA.height, CAMERA.width), 2, np.uint8)
    rig.send('segmentation', START_NS + 33 * MS, data=pixels.tobytes())
    rig.until(lambda: rig.heard['drill/pose'])
    assert (START_NS + 33 * MS, True) in rig.group.seen
    assert rig.heard['drill/pose'][0].header.stamp.nanosec == 99 * MS, 'of the newest frame'
    stamps = [m.header.stamp.nanosec // MS for m in rig.heard['mug/pose']]
    assert stamps == [0, 33, 66, 99], 'and none of the others twice'


def test_unknown_parameters_of_an_object_are_pointed_out(make_rig, capfd):
    make_rig(**{'mug.mesh_scal': 0.001})
    assert 'parameter mug.mesh_scal is unknown and has no effect' in capfd.readouterr().err


def test_names_that_cannot_be_topics_are_refused(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path))
    rig = Rig(connect=False, objects=('a mug',))
    assert not rig.node.configured and "objects has 'a mug'" in capfd.readouterr().err
    rig.close()


def test_objects_named_while_unconfigured_get_their_parameters(tmp_path, monkeypatch):
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path))
    rig = Rig(connect=False, objects=('a mug',))
    bad, good = (Parameter('objects', value=names) for names in (['b', 'b'], ['mug', 'drill']))
    (result,) = rig.node.set_parameters([bad])
    assert not result.successful and 'give each name once' in result.reason
    (result,) = rig.node.set_parameters([good])
    assert result.successful
    rig.until(lambda: rig.node.has_parameter('drill.mesh_file_path'))
    for name in ('mug', 'drill'):
        (result,) = rig.node.set_parameters(
            [Parameter(f'{name}.mesh_file_path', value=f'{name}.obj')]
        )
        assert result.successful, result.reason
    rig.names, rig.group = ('mug', 'drill'), ScriptedGroup(2)
    rig.node.trigger_configure()
    assert rig.node.configured and rig.node.parameters.objects == ('mug', 'drill')
    rig.close()


@pytest.mark.parametrize('field', ['mask_label', 'tf_frame_name'])
def test_two_objects_may_not_share_a_label_or_a_frame(tmp_path, field):
    path = tmp_path / 'box.ply'
    trimesh.creation.box((0.1, 0.1, 0.1)).export(path)
    value = 2 if field == 'mask_label' else 'thing'
    nested = {
        name: ObjectParameters(mesh_file_path=str(path), **{field: value})
        for name in ('mug', 'drill')
    }
    with pytest.raises(ValueError, match=f'mug.{field} and drill.{field} are both {value}'):
        named_objects(TrackerParameters(objects=('mug', 'drill')), nested)


def test_an_object_without_a_mesh_and_a_folder_as_a_mesh_are_told_by_name(tmp_path):
    parameters = TrackerParameters(objects=('mug',))
    with pytest.raises(ValueError, match='parameter mug.mesh_file_path is empty: set it to'):
        named_objects(parameters, {'mug': ObjectParameters()})
    with pytest.raises(ValueError, match=f"mug.mesh_file_path '{tmp_path}'.*is a folder"):
        named_objects(parameters, {'mug': ObjectParameters(mesh_file_path=str(tmp_path))})


# vision_msgs is not on PyPI: classes with its fields and no others (ros2 branch, the .msg files)
Vector3 = message(x=0.0, y=0.0, z=0.0)
POSES = SimpleNamespace(
    Detection3DArray=message(header=None, detections=list),
    Detection3D=message(header=None, results=list, bbox=message(center=None, size=Vector3), id=''),
    ObjectHypothesisWithPose=message(
        hypothesis=message(class_id='', score=0.0), pose=message(pose=None, covariance=list)
    ),
)
FRAME = Frame(
    np.zeros((24, 32, 3), np.uint8), np.ones((24, 32), np.float32), CAMERA, 7 * MS, 'camera'
)


def test_tracked_objects_become_an_array_with_boxes_around_their_meshes():
    corners = np.array([[x, y, z] for x in (-0.1, 0.1) for y in (-0.2, 0.2) for z in (-0.3, 0.3)])
    center = np.eye(4)
    center[:3, 3] = 0.5, 0.0, 0.0
    mesh = SimpleNamespace(vertices=corners, object_from_centered=center)
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler('z', 90, degrees=True).as_matrix()
    pose[:3, 3] = 0.0, 0.0, 1.0
    mug = NamedObject('mug', 'cup', 'mug_frame', mesh=mesh)
    array = detection_messages.object_array(POSES, [(mug, pose, 0.75)], FRAME)
    assert array.header == header_message(7 * MS, 'camera')
    (found,) = array.detections
    assert found.id == 'mug' and found.header.frame_id == 'camera'
    (result,) = found.results
    assert (result.hypothesis.class_id, result.hypothesis.score) == ('cup', 0.75)
    assert result.pose.pose.position.z == 1.0 and result.pose.pose.position.y == 0.0
    # the mesh's centre, 0.5 along its x, which the turn by 90 degrees about z makes y
    assert found.bbox.center.position.y == pytest.approx(0.5)
    assert found.bbox.center.position.x == pytest.approx(0.0)
    size = found.bbox.size
    assert (size.x, size.y, size.z) == pytest.approx((0.2, 0.4, 0.6))


def test_a_transform_goes_from_the_images_frame_to_the_objects():
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler('x', 180, degrees=True).as_matrix()
    pose[:3, 3] = 1.0, 2.0, 3.0
    message = transform_message(pose, FRAME, 'mug_frame')
    assert (message.header.frame_id, message.child_frame_id) == ('camera', 'mug_frame')
    assert message.header.stamp.nanosec == 7 * MS
    t, r = message.transform.translation, message.transform.rotation
    assert (t.x, t.y, t.z) == (1.0, 2.0, 3.0)
    assert abs(r.x) == pytest.approx(1.0) and r.w == pytest.approx(0.0)
