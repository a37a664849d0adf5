"""Images read from their serialised form, against rclpy's own and rosbags' serialisers."""

from __future__ import annotations

import array
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 (rclpy) is not installed')
from builtin_interfaces.msg import Time
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from foundationpose_trt.ros import conversions
from foundationpose_trt.ros.rejections import RejectedMessage, Rejection
from foundationpose_trt.ros.serialized_image import ReceivedImage, decoded_image, decoding

pytestmark = pytest.mark.ros
FIELDS = ('header', 'height', 'width', 'encoding', 'is_bigendian', 'step')


def image(frame_id='camera', encoding='rgb8', height=3, width=5, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, height * width * channels, dtype=np.uint8)
    stamp = Time(sec=int(rng.integers(-(2**31), 2**31)), nanosec=int(rng.integers(2**32)))
    return Image(
        header=Header(stamp=stamp, frame_id=frame_id), height=height, width=width,
        encoding=encoding, is_bigendian=seed % 2, step=width * channels,
        data=array.array('B', pixels.tobytes()),
    )  # fmt: skip


def assert_same(found, message):
    for name in FIELDS:
        assert getattr(found, name) == getattr(message, name), name
    assert bytes(found.data) == message.data.tobytes()


@pytest.mark.parametrize('frame_id', ['', 'a', 'ab', 'abc', 'abcd', 'kamera/größe', 'x' * 301])
@pytest.mark.parametrize('encoding', ['', '8', 'rgb8', '16UC1', 'yuv422_yuy2'])
def test_every_alignment_reads_as_rclpy_writes_it(frame_id, encoding):
    for seed, (height, width, channels) in enumerate([(3, 5, 3), (0, 0, 1), (1, 7, 1)]):
        message = image(frame_id, encoding, height, width, channels, seed)
        found = decoded_image(bytes(serialize_message(message)))
        assert isinstance(found, ReceivedImage)
        assert_same(found, message)


@pytest.mark.parametrize('little_endian', [True, False])
@pytest.mark.parametrize('frame_id', ['', 'abc', 'abcd'])
def test_both_byte_orders(little_endian, frame_id):
    rosbags = pytest.importorskip('rosbags.typesys')
    store = rosbags.get_typestore(rosbags.Stores.ROS2_HUMBLE)
    message = image(frame_id)
    kinds = store.types
    stamp = kinds['builtin_interfaces/msg/Time'](
        message.header.stamp.sec, message.header.stamp.nanosec
    )
    theirs = kinds['sensor_msgs/msg/Image'](
        kinds['std_msgs/msg/Header'](stamp, frame_id), message.height, message.width,
        message.encoding, message.is_bigendian, message.step,
        np.frombuffer(message.data, np.uint8),
    )  # fmt: skip
    name = 'sensor_msgs/msg/Image'
    serialized = bytes(store.serialize_cdr(theirs, name, little_endian=little_endian))
    found = decoded_image(serialized)
    assert isinstance(found, ReceivedImage)
    assert_same(found, message)


def test_the_pixels_are_not_copied():
    serialized = bytes(serialize_message(image(height=480, width=640)))
    found = decoded_image(serialized)
    assert found.data.obj is serialized
    rgb = conversions.rgb_array(found)
    assert np.shares_memory(rgb, np.frombuffer(serialized, np.uint8))


@pytest.mark.parametrize(
    ('encoding', 'code', 'read'),
    [
        ('bgr8', 'u1', conversions.rgb_array),
        ('16UC1', 'u2', conversions.depth_m_array),
        ('32FC1', 'f4', conversions.depth_m_array),
        ('mono8', 'u1', conversions.mask_array),
    ],
)
def test_conversions_read_it_as_they_read_a_message(encoding, code, read):
    channels = 3 if encoding == 'bgr8' else 1
    values = np.random.default_rng(1).integers(0, 200, (4, 6, channels)).astype(code)
    message = conversions.image_message(values.squeeze(), encoding, Header(frame_id='odd'))
    found = decoded_image(bytes(serialize_message(message)))
    np.testing.assert_array_equal(read(found), read(message))


@pytest.mark.parametrize('cut', [0, 1, 3, 4, 11, 20, 39, 60])
def test_what_is_cut_off_is_rejected(cut):
    serialized = bytes(serialize_message(image()))[:cut]
    with pytest.raises(RejectedMessage, match=f'{cut} bytes came that are no sensor_msgs/Image'):
        decoded_image(serialized)
    images, rejected = [], []
    decoding(images.append, rejected.append)(serialized)
    assert not images and rejected[0].rejection is Rejection.BAD_IMAGE


def test_other_encodings_of_the_wire_are_left_to_rclpy(monkeypatch):
    asked = []
    monkeypatch.setattr(
        'foundationpose_trt.ros.serialized_image.deserialize_message',
        lambda serialized, kind: asked.append(serialized) or kind(),
    )
    serialized = b'\x00\x07' + bytes(serialize_message(image()))[2:]
    assert decoded_image(serialized) == Image() and asked == [serialized]


def test_callbacks_get_the_image():
    got = []
    decoding(got.append, pytest.fail)(bytes(serialize_message(image())))
    assert_same(got[0], image())


def test_it_takes_no_time():
    """Of 1080p: copying the pixels once would take longer."""
    serialized = bytes(serialize_message(image(height=1080, width=1920)))
    best_s = 1.0
    for _ in range(20):
        start_s = time.perf_counter()
        decoded_image(serialized)
        best_s = min(best_s, time.perf_counter() - start_s)
    assert best_s < 2e-4
