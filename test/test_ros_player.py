"""player_node over real DDS: what it publishes against the scene it was given, and when."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 (rclpy) is not installed')
import trimesh
from geometry_msgs.msg import PoseStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from ros_contexts import begin_context, end_context
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header, String

from foundationpose_trt.datatypes import CameraIntrinsics, Frame
from foundationpose_trt.pose.mesh import build_mesh
from foundationpose_trt.ros.conversions import stamp_ns
from foundationpose_trt.ros.player_node import PlayerNode, depth_message
from foundationpose_trt.ros.qos import LATCHED_QOS
from foundationpose_trt.scenes.bop import BopWriter

pytestmark = pytest.mark.ros
CAMERA = CameraIntrinsics(45.0, 46.0, 15.0, 11.0, 32, 24)
FRAMES, OBJECTS = 4, (7, 9)
WAIT_S = 10.0


def pose(index, object_id):
    out = np.eye(4)
    out[:3, :3] = Rotation.from_rotvec([0.1 * index, 0.2, 0.01 * object_id]).as_matrix()
    out[:3, 3] = [0.01 * index, -0.02, 0.5 + 0.01 * object_id]
    return out


@pytest.fixture(scope='module')
def scene(tmp_path_factory):
    """Four frames: red = 10 * index, depth a ramp with a hole, one half plane per object."""
    folder = tmp_path_factory.mktemp('bop') / 'scene'
    shape = (CAMERA.height, CAMERA.width)
    left = np.zeros(shape, bool)
    left[:, :12] = True
    with BopWriter(folder, depth_scale=0.5) as writer:
        for object_id in OBJECTS:
            writer.add_model(object_id, build_mesh('box', trimesh.creation.box([0.1, 0.1, 0.2])))
        for index in range(FRAMES):
            rgb = np.zeros((*shape, 3), np.uint8)
            rgb[..., 0], rgb[..., 2] = 10 * index, np.arange(CAMERA.width)
            depth = np.linspace(0.4, 2.0, CAMERA.width, dtype=np.float32) * np.ones(shape, 'f4')
            depth[0] = 0
            truths = [(i, pose(index, i), m) for i, m in zip(OBJECTS, (left, ~left), strict=True)]
            writer.add_frame(index, Frame(rgb, depth, CAMERA), truths)
    return folder


class Audience:
    """A player and a subscriber of everything it publishes."""

    def __init__(self, scene, **parameters):
        self.context = begin_context()
        self.peer = Node('peer', context=self.context)
        self.heard = {}
        for kind, topic in (
            (Image, 'image'),
            (Image, 'depth'),
            (Image, 'segmentation'),
            (CameraInfo, 'camera_info'),
            (PoseStamped, 'ground_truth/pose'),
        ):
            self._listen(kind, topic, QoSProfile(depth=50))
        self._listen(String, 'player/event', LATCHED_QOS)
        self.state = self.peer.create_publisher(String, 'state', LATCHED_QOS)
        values = {'scene': str(scene), 'rate_hz': 30.0, 'start_subscribers': 1, **parameters}
        overrides = [Parameter(name, value=value) for name, value in values.items()]
        self.player = PlayerNode(context=self.context, parameter_overrides=overrides)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.player)
        self.executor.add_node(self.peer)

    def _listen(self, kind, topic, qos):
        self.heard[topic] = []
        self.peer.create_subscription(kind, topic, self.heard[topic].append, qos)

    def until(self, holds):
        end_s = time.monotonic() + WAIT_S
        while not holds():
            assert time.monotonic() < end_s, 'waited in vain'
            self.executor.spin_once(timeout_sec=0.05)

    def close(self):
        self.player.destroy_node()
        self.peer.destroy_node()
        self.executor.shutdown()
        end_context(self.context)


@pytest.fixture
def audience_of(tmp_path, monkeypatch):
    monkeypatch.setenv('ROS_LOG_DIR', str(tmp_path))
    made = []

    def make(scene, **parameters):
        made.append(Audience(scene, **parameters))
        return made[-1]

    yield make
    for audience in made:
        audience.close()


def array_of(message, dtype, channels=1):
    values = np.frombuffer(message.data, dtype)
    shape = (CAMERA.height, CAMERA.width, channels) if channels > 1 else (24, 32)
    return values.reshape(shape)


def test_plays_the_scene_once_with_one_stamp_per_frame(scene, audience_of):
    before_ns = time.time_ns()
    audience = audience_of(scene, object_id=9)
    audience.until(audience.player.finished)
    heard = audience.heard
    kinds = ('image', 'depth', 'segmentation', 'camera_info', 'ground_truth/pose')
    stamps = {k: [stamp_ns(m.header.stamp) for m in heard[k]] for k in kinds}
    assert stamps['image'] == sorted(set(stamps['image'])) and len(stamps['image']) == FRAMES
    assert all(stamps[kind] == stamps['image'] for kind in kinds)
    assert before_ns < stamps['image'][0] < stamps['image'][-1] < time.time_ns()
    assert {m.header.frame_id for k in kinds for m in heard[k]} == {'camera_color_optical_frame'}
    # Only the last event is certain: two within a moment may overwrite each other.
    assert heard['player/event'][-1].data == 'finished'


def test_messages_hold_what_the_scene_holds(scene, audience_of):
    audience = audience_of(scene, object_id=9)
    audience.until(audience.player.finished)
    for index in range(FRAMES):
        image, depth, mask, info, truth = (
            audience.heard[k][index]
            for k in ('image', 'depth', 'segmentation', 'camera_info', 'ground_truth/pose')
        )
        assert (image.encoding, depth.encoding, mask.encoding) == ('rgb8', '16UC1', 'mono8')
        rgb = array_of(image, np.uint8, 3)
        assert (rgb[..., 0] == 10 * index).all() and (rgb[5, :, 2] == np.arange(32)).all()
        stored = cv2.imread(str(scene / 'depth' / f'{index:06d}.png'), cv2.IMREAD_UNCHANGED)
        assert np.abs(array_of(depth, np.uint16) - stored * 0.5).max() <= 0.5
        assert (array_of(mask, np.uint8)[:, :12] == 0).all()
        assert (array_of(mask, np.uint8)[:, 12:] == 255).all()
        assert list(info.k) == [45.0, 0, 15.0, 0, 46.0, 11.0, 0, 0, 1]
        p, q, expected = truth.pose.position, truth.pose.orientation, pose(index, 9)
        np.testing.assert_allclose([p.x, p.y, p.z], expected[:3, 3], atol=1e-9)
        turned = Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix()
        np.testing.assert_allclose(turned, expected[:3, :3], atol=1e-9)


def test_float_depth_is_metres_with_nan_where_invalid(scene, audience_of):
    audience = audience_of(scene, depth_encoding='32FC1')
    audience.until(lambda: audience.heard['depth'])
    depth = array_of(audience.heard['depth'][0], np.float32)
    assert audience.heard['depth'][0].encoding == '32FC1' and np.isnan(depth[0]).all()
    np.testing.assert_allclose(depth[1], np.linspace(0.4, 2.0, 32), atol=3e-4)


def test_the_first_image_stands_until_the_state_comes(scene, audience_of):
    audience = audience_of(scene, wait_for_state='TRACKING')
    audience.until(lambda: len(audience.heard['image']) == 5)
    audience.state.publish(String(data='SEARCHING'))
    audience.until(lambda: len(audience.heard['image']) == 8)
    reds = [array_of(m, np.uint8, 3)[0, 0, 0] for m in audience.heard['image']]
    stamps = [stamp_ns(m.header.stamp) for m in audience.heard['image']]
    assert reds == [0] * 8 and stamps == sorted(set(stamps)), 'the same image, fresh stamps'
    audience.state.publish(String(data='TRACKING: REGISTERED'))
    audience.until(audience.player.finished)
    reds = [array_of(m, np.uint8, 3)[0, 0, 0] for m in audience.heard['image']]
    assert reds[-FRAMES:] == [0, 10, 20, 30]


def test_waiting_in_vain_ends_with_the_reason(scene, audience_of):
    audience = audience_of(scene, wait_for_state='TRACKING', wait_timeout_s=1.0)
    audience.state.publish(String(data='LOST'))
    with pytest.raises(TimeoutError, match='state to say TRACKING; it says LOST'):
        audience.until(audience.player.finished)


def test_loops(scene, audience_of):
    audience = audience_of(scene, loop=True)
    audience.until(lambda: len(audience.heard['image']) == 2 * FRAMES + 1)
    reds = [array_of(m, np.uint8, 3)[0, 0, 0] for m in audience.heard['image']]
    assert reds == [0, 10, 20, 30, 0, 10, 20, 30, 0] and not audience.player.finished()


def test_bad_scenes_are_refused(scene, audience_of, tmp_path):
    with pytest.raises(ValueError, match=r'object_id is 3, but .* has \[7, 9\]'):
        audience_of(scene, object_id=3)
    with pytest.raises(FileNotFoundError, match='no folder'):
        audience_of(tmp_path / 'absent')
    broken = tmp_path / 'broken'
    broken.symlink_to(scene)
    (scene / 'depth' / '000002.png').rename(scene / 'depth' / 'away')
    try:
        with pytest.raises(FileNotFoundError, match='000002.png is missing'):
            audience_of(broken)
    finally:
        (scene / 'depth' / 'away').rename(scene / 'depth' / '000002.png')


@pytest.mark.parametrize('encoding', ['16UC1', '32FC1'])
def test_depth_that_is_no_depth_is_sent_as_none(encoding):
    depth = np.full((4, 6), 0.5, np.float32)
    depth[0] = -0.005, np.nan, np.inf, -np.inf, 0.0, 70.0
    k = CameraIntrinsics(9.0, 9.0, 3.0, 2.0, 6, 4)
    frame = Frame(np.zeros((4, 6, 3), np.uint8), depth, k)
    message = depth_message(frame, encoding, Header())
    kind = np.uint16 if encoding == '16UC1' else np.float32
    sent = np.frombuffer(message.data, kind).reshape(4, 6)
    if encoding == '16UC1':
        assert (sent[0] == 0).all() and (sent[1:] == 500).all()
    else:
        assert np.isnan(sent[0, :5]).all() and sent[0, 5] == 70 and (sent[1:] == 0.5).all()
