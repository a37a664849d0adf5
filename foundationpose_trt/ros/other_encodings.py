"""Colour encodings beyond the common ones, through a library that is installed, or refused.

Every ROS 2 installation brings cv_bridge. PyPI's package of that name is the ROS 1 one, which
reads a 16 bit image as 8 bit without a word, so it is tried on two pixels before it is trusted.
On a machine with wheels only, rosbags-image serves.
"""

from __future__ import annotations

import array
import re
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
from sensor_msgs.msg import Image

from foundationpose_trt.ros.rejections import RejectedMessage, Rejection

Converter = Callable[[Image], np.ndarray]


def color_by_library(message: Image) -> np.ndarray:
    """Return (H, W, 3) uint8 R G B through cv_bridge or rosbags-image.

    Raises RejectedMessage when neither is installed or the library refuses the encoding.
    """
    library, convert = color_converter()
    if convert is None:
        raise RejectedMessage(
            Rejection.UNKNOWN_ENCODING,
            f"image has encoding '{message.encoding}', which needs cv_bridge (part of every ROS"
            ' installation) or, without one, `pip install rosbags-image`; or publish rgb8',
        )
    try:
        rgb = np.asarray(convert(message))
    except Exception as error:
        raise RejectedMessage(
            Rejection.UNKNOWN_ENCODING,
            f"image has encoding '{message.encoding}' ({message.width}x{message.height}, step"
            f' {message.step}), which {library} cannot read: {error}; publish rgb8',
        ) from error
    if rgb.dtype != np.uint8 or rgb.shape != (message.height, message.width, 3):
        raise RejectedMessage(
            Rejection.UNKNOWN_ENCODING,
            f"{library} turned encoding '{message.encoding}' into {rgb.dtype} {rgb.shape}"
            f' instead of uint8 {(message.height, message.width, 3)}; publish rgb8',
        )
    return rgb


@lru_cache(maxsize=1)
def color_converter() -> tuple[str, Converter | None]:
    """Return the name and the function of the library that serves, or ('', None)."""
    converter = cv_bridge_converter()
    if converter is not None:
        return 'cv_bridge', converter
    converter = rosbags_converter()
    return ('rosbags-image', converter) if converter is not None else ('', None)


def cv_bridge_converter() -> Converter | None:
    """Return cv_bridge's conversion to RGB, or None when it is absent or the ROS 1 copy."""
    try:
        from cv_bridge import CvBridge
    except (ImportError, AttributeError):  # built for another numpy: one or the other
        return None
    bridge = CvBridge()
    if not reads_16_bits(bridge.imgmsg_to_cv2):
        return None
    return lambda message: bridge.imgmsg_to_cv2(message, 'rgb8')


def reads_16_bits(decode: Callable[[Image], np.ndarray]) -> bool:
    """Tell whether a decoder returns the two pixels of a 16UC1 image as they are."""
    expected = np.array([[1, 770]], dtype='<u2')
    probe = Image(height=1, width=2, encoding='16UC1', is_bigendian=0, step=4)
    probe.data = array.array('B', expected.tobytes())
    try:
        decoded = np.asarray(decode(probe))
    except (ValueError, TypeError, AttributeError):  # how the ROS 1 copy fails on newer numpy
        return False
    return decoded.shape == expected.shape and bool((decoded == expected).all())


def rosbags_converter() -> Converter | None:
    """Return rosbags-image's conversion to RGB, or None when it is absent."""
    try:
        from rosbags.image import message_to_cvimage
    except ImportError:
        return None
    return lambda message: message_to_cvimage(without_padding(message), 'rgb8')


def without_padding(message: Image) -> Image | SimpleNamespace:
    """Return the message with its rows packed: rosbags-image does not look at `step`."""
    row_bytes = message.width * pixel_bytes(message.encoding)
    if message.step == row_bytes:
        return message
    rows = np.frombuffer(message.data, np.uint8).reshape(-1, message.step)
    return SimpleNamespace(
        height=message.height, width=message.width, encoding=message.encoding,
        is_bigendian=message.is_bigendian, data=np.ascontiguousarray(rows[:, :row_bytes]),
    )  # fmt: skip


def pixel_bytes(encoding: str) -> int:
    """Return how many bytes of a row belong to one pixel of this encoding."""
    generic = re.fullmatch(r'(8|16|32|64)[USF]C(\d+)', encoding)
    if generic:
        return int(generic[1]) // 8 * int(generic[2])
    value_bytes = 2 if encoding.endswith('16') else 1
    if encoding.startswith(('rgba', 'bgra')):
        return 4 * value_bytes
    if encoding.startswith(('rgb', 'bgr')):
        return 3 * value_bytes
    return 2 if encoding in ('uyvy', 'yuyv', 'yuv422', 'yuv422_yuy2') else value_bytes
