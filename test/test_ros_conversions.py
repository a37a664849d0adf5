"""Message conversions against pixels written down by hand, cv2 and scipy."""

from __future__ import annotations

import array
import sys
import types

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 (rclpy) is not installed')
import cv2
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from foundationpose_trt.datatypes import CameraIntrinsics, Frame
from foundationpose_trt.ros import conversions, other_encodings
from foundationpose_trt.ros.rejections import RejectedMessage, Rejection

pytestmark = pytest.mark.ros
CAMERA = CameraIntrinsics(300.0, 310.0, 2.0, 1.5, 5, 4)


def message(pixels, encoding, padding=0, big_endian=False):
    """Build an Image by hand: rows one by one, each followed by `padding` garbage bytes."""
    values = pixels.astype(pixels.dtype.newbyteorder('>' if big_endian else '<'))
    rows = [row.tobytes() + b'\xab' * padding for row in values]
    out = Image(
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=int(big_endian),
        step=len(rows[0]),
    )
    out.data = array.array('B', b''.join(rows))
    return out


def picture(channels, seed=0, shape=(4, 5)):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (*shape, channels) if channels > 1 else shape, np.uint8)


@pytest.mark.parametrize('padding', [0, 7])
@pytest.mark.parametrize(
    ('encoding', 'channels', 'rgb_of'),
    [
        ('rgb8', 3, [0, 1, 2]), ('bgr8', 3, [2, 1, 0]), ('8UC3', 3, [2, 1, 0]),
        ('rgba8', 4, [0, 1, 2]), ('bgra8', 4, [2, 1, 0]), ('8UC4', 4, [2, 1, 0]),
    ],
)  # fmt: skip
def test_common_colour_encodings(encoding, channels, rgb_of, padding):
    pixels = picture(channels)
    rgb = conversions.rgb_array(message(pixels, encoding, padding))
    np.testing.assert_array_equal(rgb, pixels[..., rgb_of])


@pytest.mark.parametrize('encoding', ['mono8', '8UC1'])
def test_grey_becomes_three_equal_channels(encoding):
    pixels = picture(1)
    rgb = conversions.rgb_array(message(pixels, encoding, padding=3))
    np.testing.assert_array_equal(rgb, np.stack([pixels] * 3, -1))


def test_rgb8_and_metres_are_views_of_the_message():
    image, depth = message(picture(3), 'rgb8', 7), message(np.full((4, 5), 1.5, 'f4'), '32FC1', 8)
    rgb, depth_m = conversions.rgb_array(image), conversions.depth_m_array(depth)
    image.data[0], depth.data[3] = 99, 0
    assert rgb[0, 0, 0] == 99 and depth_m[0, 0] != 1.5


@pytest.mark.parametrize('big_endian', [False, True])
@pytest.mark.parametrize('encoding', ['16UC1', 'mono16'])
def test_16_bit_depth_is_millimetres_in_either_byte_order(encoding, big_endian):
    units = np.array([[0, 1, 258], [1000, 65535, 40000]], np.uint16)
    depth = conversions.depth_m_array(message(units, encoding, 4, big_endian))
    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, units / 1000.0, rtol=1e-6)
    tenths = conversions.depth_m_array(message(units, encoding), metres_per_unit=1e-4)
    np.testing.assert_allclose(tenths, units / 10000.0, rtol=1e-6)


@pytest.mark.parametrize('big_endian', [False, True])
@pytest.mark.parametrize(('encoding', 'dtype'), [('32FC1', 'f4'), ('64FC1', 'f8')])
def test_float_depth_is_metres_and_invalid_becomes_zero(encoding, dtype, big_endian):
    metres = np.array([[np.nan, 0.25, np.inf], [-1.0, -np.inf, 3.5]], dtype)
    depth = conversions.depth_m_array(message(metres, encoding, 8, big_endian))
    np.testing.assert_array_equal(depth, np.array([[0, 0.25, 0], [0, 0, 3.5]], np.float32))


@pytest.mark.parametrize('encoding', ['rgb8', '16SC1', '8UC1', 'disparity'])
def test_unknown_depth_encoding_is_refused_by_name(encoding):
    with pytest.raises(RejectedMessage, match=f"depth has encoding '{encoding}'") as caught:
        conversions.depth_m_array(message(picture(1), encoding))
    assert caught.value.rejection is Rejection.UNKNOWN_ENCODING


@pytest.mark.parametrize(
    ('encoding', 'dtype'),
    [('mono8', 'u1'), ('8UC1', 'u1'), ('16UC1', 'u2'), ('32SC1', 'i4'), ('32FC1', 'f4')],
)
def test_every_label_of_a_mask_is_the_object(encoding, dtype):
    labels = np.array([[0, 1, 255], [7, 0, 2]], dtype)
    mask = conversions.mask_array(message(labels, encoding, 8))
    assert mask.dtype == bool
    np.testing.assert_array_equal(mask, [[False, True, True], [True, False, True]])


def test_mask_of_three_channels_or_of_another_size_is_refused():
    with pytest.raises(RejectedMessage, match="segmentation has encoding 'rgb8'"):
        conversions.mask_array(message(picture(3), 'rgb8'))
    frame = Frame(picture(3), np.ones((4, 5), np.float32), CAMERA)
    with pytest.raises(RejectedMessage, match='segmentation is 3x2, the image 5x4') as caught:
        conversions.mask_for_frame(message(picture(1, shape=(2, 3)), 'mono8'), frame)
    assert caught.value.rejection is Rejection.SIZE_MISMATCH


@pytest.mark.parametrize('field', ['data', 'step', 'height'])
def test_contradictory_images_are_refused(field):
    image = message(picture(3), 'rgb8')
    setattr(image, field, {'data': image.data[:-1], 'step': 14, 'height': 0}[field])
    with pytest.raises(RejectedMessage) as caught:
        conversions.rgb_array(image)
    assert caught.value.rejection is Rejection.BAD_IMAGE


def test_yuv_through_rosbags_image_agrees_with_cv2_and_honours_padding():
    pytest.importorskip('rosbags.image', reason='rosbags-image is not installed')
    yuyv = picture(2, shape=(4, 6))
    expected = cv2.cvtColor(yuyv, cv2.COLOR_YUV2RGB_YUYV)
    convert = other_encodings.rosbags_converter()
    for padding in (0, 6):
        np.testing.assert_array_equal(convert(message(yuyv, 'yuyv', padding)), expected)


@pytest.mark.parametrize(
    ('encoding', 'size'),
    [('rgb16', 6), ('bgra16', 8), ('bayer_rggb8', 1), ('bayer_rggb16', 2), ('yuyv', 2),
     ('16UC3', 6), ('32FC2', 8), ('mono16', 2), ('rgba8', 4)],
)  # fmt: skip
def test_pixel_bytes(encoding, size):
    assert other_encodings.pixel_bytes(encoding) == size


def test_an_encoding_nobody_reads_is_refused_by_name(monkeypatch):
    image = message(picture(3), 'hsv8')
    with pytest.raises(RejectedMessage, match='hsv8') as caught:
        conversions.rgb_array(image)
    assert caught.value.rejection is Rejection.UNKNOWN_ENCODING
    monkeypatch.setattr(other_encodings, 'color_converter', lambda: ('', None))
    with pytest.raises(RejectedMessage, match="'hsv8', which needs cv_bridge"):
        conversions.rgb_array(image)


def fake_cv_bridge(monkeypatch, decode):
    module = types.ModuleType('cv_bridge')
    module.CvBridge = lambda: types.SimpleNamespace(imgmsg_to_cv2=decode)
    monkeypatch.setitem(sys.modules, 'cv_bridge', module)


def ros1_decode(msg, encoding='passthrough'):
    """What PyPI's ROS 1 cv_bridge makes of 16UC1: bytes."""
    return np.frombuffer(msg.data, np.uint8).reshape(msg.height, -1)[:, : msg.width]


def ros2_decode(msg, encoding='passthrough'):
    if encoding == 'rgb8':
        return np.full((msg.height, msg.width, 3), 7, np.uint8)
    return np.frombuffer(msg.data, np.uint16).reshape(msg.height, msg.width)


def test_cv_bridge_is_used_only_if_it_reads_16_bits(monkeypatch):
    fake_cv_bridge(monkeypatch, ros1_decode)
    assert other_encodings.cv_bridge_converter() is None
    fake_cv_bridge(monkeypatch, ros2_decode)
    assert (other_encodings.cv_bridge_converter()(message(picture(1), 'hsv8')) == 7).all()


def test_camera_info_there_and_back():
    info = conversions.camera_info_message(CAMERA, Header(frame_id='camera'))
    assert conversions.intrinsics_from_message(info) == CAMERA
    assert info.p[:3] == pytest.approx(info.k[:3]) and list(info.d) == [0.0] * 5


@pytest.mark.parametrize(
    ('change', 'words'),
    [({'k': [0.0] * 9}, 'fx=0'), ({'width': 0}, 'image size'),
     ({'k': [300.0, 2.0, 1.0, 0.0, 300.0, 1.0, 0.0, 0.0, 1.0]}, 'skew'),
     ({'k': [float('nan')] + [0.0] * 8}, 'finite')],
)  # fmt: skip
def test_useless_camera_info_is_refused(change, words):
    info = conversions.camera_info_message(CAMERA, Header())
    for name, value in change.items():
        setattr(info, name, value)
    with pytest.raises(RejectedMessage, match=words) as caught:
        conversions.intrinsics_from_message(info)
    assert caught.value.rejection is Rejection.BAD_CAMERA_INFO
    assert isinstance(info, CameraInfo)


RAW_K = [330.0, 0.0, 3.0, 0.0, 330.0, 2.5, 0.0, 0.0, 1.0]


def test_the_camera_is_that_of_the_rectified_image():
    """As image_proc publishes it: K and D of the raw image, P of the rectified one."""
    info = conversions.camera_info_message(CAMERA, Header())
    assert conversions.doubt_of_camera_info(info) == ''
    info.k, info.d = RAW_K, [0.1, -0.25, 0.0, 0.0, 0.0]
    info.p[3] = -30.0  # of the right camera of a pair
    assert conversions.intrinsics_from_message(info) == CAMERA
    doubt = conversions.doubt_of_camera_info(info)
    assert 'fx 330.0' in doubt and f'{CAMERA.fx:.1f}' in doubt and 'image_rect' in doubt
    info.p = [0.0] * 12  # not filled in
    assert conversions.intrinsics_from_message(info).fx == 330.0
    assert 'D begins 0.1' in conversions.doubt_of_camera_info(info)


def test_a_lens_that_distorts_is_told_where_p_is_as_k():
    info = conversions.camera_info_message(CAMERA, Header())
    info.d = [0.0, 0.02, 0.0, 0.0, 0.0]
    assert 'unless the image is rectified already' in conversions.doubt_of_camera_info(info)
    info.k[0] += 0.3  # a driver that rounds
    assert 'image_rect' not in conversions.doubt_of_camera_info(info)


def test_a_p_of_no_pinhole_camera_is_refused():
    info = conversions.camera_info_message(CAMERA, Header())
    info.p[5] = -1.0
    with pytest.raises(RejectedMessage, match='fy=-1') as caught:
        conversions.intrinsics_from_message(info)
    assert caught.value.rejection is Rejection.BAD_CAMERA_INFO


def test_frame_keeps_stamp_and_frame_id_and_refuses_other_sizes():
    stamp = conversions.stamp_message(1_700_000_000_123456789)
    header = Header(frame_id='left_optical', stamp=stamp)
    image = conversions.image_message(picture(3), 'rgb8', header)
    depth = message(np.full((4, 5), 800, np.uint16), '16UC1')
    frame = conversions.frame_from_messages(image, depth, CAMERA, 0.001)
    assert (frame.stamp_ns, frame.frame_id) == (1_700_000_000_123456789, 'left_optical')
    assert frame.depth_m == pytest.approx(0.8)
    small = message(np.full((2, 3), 800, np.uint16), '16UC1')
    with pytest.raises(RejectedMessage, match='registered to colour') as caught:
        conversions.frame_from_messages(image, small, CAMERA, 0.001)
    assert caught.value.rejection is Rejection.SIZE_MISMATCH


@pytest.mark.parametrize(
    ('encoding', 'depth', 'made'),
    [
        ('rgb8', np.full((4, 5), 800, np.uint16), ['depth_m']),
        ('bgr8', np.full((4, 5), 0.8, np.float32), ['rgb']),
        ('rgb8', np.full((4, 5), 0.8, '>f4'), ['depth_m']),
        ('rgb8', np.full((4, 5), 0.8), ['depth_m']),
        ('bgr8', np.array([[0.8] * 5] * 3 + [[0, -1, np.nan, np.inf, 0.8]]), ['rgb', 'depth_m']),
    ],
)
def test_what_is_converted_lies_where_the_caller_wants_it(encoding, depth, made):
    """And says the same as without."""
    image = message(picture(3), encoding)
    name = {'u2': '16UC1', 'f4': '32FC1', 'f8': '64FC1'}[depth.dtype.str[1:]]
    big_endian = depth.dtype.byteorder == '>'
    rooms: list[np.ndarray] = []

    def empty(shape: tuple[int, ...], dtype: type) -> np.ndarray:
        rooms.append(np.full(shape, 77, dtype))
        return rooms[-1]

    depths = message(depth.astype(depth.dtype.newbyteorder('=')), name, 0, big_endian)
    plain = conversions.frame_from_messages(image, depths, CAMERA, 0.001)
    frame = conversions.frame_from_messages(image, depths, CAMERA, 0.001, empty)
    np.testing.assert_array_equal(frame.rgb, plain.rgb)
    np.testing.assert_array_equal(frame.depth_m, plain.depth_m)
    assert len(rooms) == len(made)
    for room, image_name in zip(rooms, made, strict=True):
        assert getattr(frame, image_name) is room


def test_pose_message_agrees_with_scipy_and_comes_back():
    rotation = Rotation.from_rotvec([0.3, -2.0, 1.1])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotation.as_matrix(), [0.1, -0.2, 0.7]
    stamp = 1_700_000_000_999_999_999
    frame = Frame(picture(3), np.ones((4, 5), np.float32), CAMERA, stamp, 'optical')
    out = conversions.pose_message(pose, frame)
    q = out.pose.orientation
    same = rotation * Rotation.from_quat([q.x, q.y, q.z, q.w]).inv()
    assert same.magnitude() < 1e-12
    assert (out.header.stamp.sec, out.header.stamp.nanosec) == (1_700_000_000, 999_999_999)
    assert out.header.frame_id == 'optical'
    np.testing.assert_allclose(conversions.pose_matrix(out.pose), pose, atol=1e-12)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
def test_image_message_holds_the_bytes_of_a_strided_array(dtype):
    pixels = np.arange(24, dtype=dtype).reshape(4, 6)[:, ::2]
    out = conversions.image_message(pixels, 'any', Header())
    assert isinstance(out.data, array.array) and out.step == 3 * pixels.itemsize
    assert out.data.tobytes() == pixels.tobytes() and (out.height, out.width) == (4, 3)
