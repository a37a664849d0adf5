"""ROS messages to and from the package's values: pure functions, no node, nothing kept."""

from __future__ import annotations

import array
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from geometry_msgs.msg import Pose, PoseStamped
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from foundationpose_trt.datatypes import CameraIntrinsics, Frame
from foundationpose_trt.detection.images import LAYOUTS, ColorImage
from foundationpose_trt.geometry import quaternion_xyzw, transform
from foundationpose_trt.ros.other_encodings import color_by_library
from foundationpose_trt.ros.rejections import RejectedMessage, Rejection

NS_PER_S = 1_000_000_000
SAME_CAMERA_PX = 0.5  # between K and P
METRES_PER_16UC1 = 0.001  # REP 118: raw depth images hold millimetres
# cv2's generic 8UCn says nothing about the order; images that reach ROS so come from cv2: B G R
COLOR_LAYOUTS: dict[str, tuple[int, int | None]] = {
    'rgb8': (3, None),
    'bgr8': (3, cv2.COLOR_BGR2RGB),
    '8UC3': (3, cv2.COLOR_BGR2RGB),
    'rgba8': (4, cv2.COLOR_RGBA2RGB),
    'bgra8': (4, cv2.COLOR_BGRA2RGB),
    '8UC4': (4, cv2.COLOR_BGRA2RGB),
    'mono8': (1, cv2.COLOR_GRAY2RGB),
    '8UC1': (1, cv2.COLOR_GRAY2RGB),
}
SINGLE_CHANNEL_TYPES = {
    'mono8': 'u1', '8UC1': 'u1', '8SC1': 'i1', 'mono16': 'u2', '16UC1': 'u2', '16SC1': 'i2',
    '32SC1': 'i4', '32FC1': 'f4', '64FC1': 'f8',
}  # fmt: skip
EmptyImage = Callable[[tuple[int, ...], Any], np.ndarray]  # of a shape and a numpy dtype
DEPTH_ENCODINGS = ('16UC1', 'mono16', '32FC1', '64FC1')


def stamp_ns(stamp: Time) -> int:
    """Return a message stamp as nanoseconds."""
    return int(stamp.sec) * NS_PER_S + int(stamp.nanosec)


def stamp_message(nanoseconds: int) -> Time:
    """Return nanoseconds since the clock's epoch as a message stamp."""
    return Time(sec=nanoseconds // NS_PER_S, nanosec=nanoseconds % NS_PER_S)


def rgb_array(message: Image, empty: EmptyImage = np.empty) -> np.ndarray:
    """Return the pixels, (H, W, 3) uint8, R G B order.

    rgb8 is a view of the message's buffer (rows may be padded), all else a copy: in the room that
    `empty` makes, or what a library returns. Raises RejectedMessage for an encoding that neither
    this module nor an installed library reads.
    """
    layout = COLOR_LAYOUTS.get(message.encoding)
    if layout is None:
        return color_by_library(message)
    channels, conversion = layout
    pixels = pixel_view(message, np.dtype('u1'), channels)
    if conversion is None:
        return pixels
    rgb = empty((message.height, message.width, 3), np.uint8)
    cv2.cvtColor(pixels, conversion, dst=rgb)
    return rgb


def color_image(message: Image) -> ColorImage:
    """Return an image for the detector: the message's own bytes, else R G B by a library.

    Raises RejectedMessage for an encoding that nothing reads, or sizes that contradict each other.
    """
    if message.encoding not in LAYOUTS:
        return ColorImage.of_array(color_by_library(message))
    data = np.frombuffer(message.data, np.uint8)
    try:
        return ColorImage(data, message.height, message.width, message.step, message.encoding)
    except ValueError as error:
        raise RejectedMessage(
            Rejection.BAD_IMAGE, f'{error}; the publisher fills the message wrongly'
        ) from error


def depth_m_array(
    message: Image, metres_per_unit: float = METRES_PER_16UC1, empty: EmptyImage = np.empty
) -> np.ndarray:
    """Return depth, (H, W) float32, metres, 0 = invalid (NaN, infinite and negative become 0).

    16UC1 and mono16 are multiplied by metres_per_unit; 32FC1 and 64FC1 are metres (REP 118).
    A 32FC1 image of this machine's byte order without invalid pixels is a view of the message's
    buffer; for all else `empty` makes room.
    """
    if message.encoding not in DEPTH_ENCODINGS:
        raise RejectedMessage(
            Rejection.UNKNOWN_ENCODING,
            f"depth has encoding '{message.encoding}', must be one of"
            f' {", ".join(DEPTH_ENCODINGS)}; is a colour or disparity topic remapped to depth?',
        )
    values = _single_channel(message)
    if values.dtype.kind == 'u':
        metres = empty(values.shape, np.float32)
        np.copyto(metres, values)  # multiplying while it is converted takes longer
        return np.multiply(metres, np.float32(metres_per_unit), out=metres)
    valid = np.isfinite(values) & (values > 0)
    if values.dtype == np.float32 and valid.all():
        return values
    metres = empty(values.shape, np.float32)
    metres.fill(0)
    np.copyto(metres, values, where=valid, casting='same_kind')
    return metres


def mask_array(message: Image, label: int = 0) -> np.ndarray:
    """Return a segmentation mask, (H, W) bool: every pixel of this label is the object.

    label 0: every pixel that is not zero. Any single-channel encoding serves (255, 1 or a label
    per pixel).
    """
    if message.encoding not in SINGLE_CHANNEL_TYPES:
        raise RejectedMessage(
            Rejection.UNKNOWN_ENCODING,
            f"segmentation has encoding '{message.encoding}', must have one channel:"
            f' {", ".join(SINGLE_CHANNEL_TYPES)}',
        )
    values = _single_channel(message)
    return values == label if label else values != 0


def mask_labels(message: Image) -> list[int]:
    """Return the values other than 0 that a mono8 segmentation shows, [] for other encodings."""
    if message.encoding not in ('mono8', '8UC1'):
        return []
    counts = np.bincount(_single_channel(message).ravel(), minlength=256)
    return [int(value) for value in np.flatnonzero(counts) if value]


def intrinsics_from_message(message: CameraInfo) -> CameraIntrinsics:
    """Return the camera of the rectified image: the left of P, or K where P is left empty.

    By sensor_msgs/CameraInfo K is that of the raw, distorted image. Raises RejectedMessage
    (BAD_CAMERA_INFO) for an all-zero K, which says that the camera is not calibrated, for skew
    and an empty size.
    """
    size = message.width, message.height
    try:
        raw = CameraIntrinsics.from_matrix(message.k, *size)
        return CameraIntrinsics.from_matrix(_left_of_p(message), *size) if message.p[0] else raw
    except ValueError as error:
        raise RejectedMessage(Rejection.BAD_CAMERA_INFO, str(error)) from error


def _left_of_p(message: CameraInfo) -> np.ndarray:
    return np.asarray(message.p, np.float64).reshape(3, 4)[:, :3]


def doubt_of_camera_info(message: CameraInfo) -> str:
    """Return what a usable camera_info lets one doubt about the image, empty for nothing."""
    k, p = np.reshape(message.k, (3, 3)), _left_of_p(message)
    if message.p[0] and np.abs(k - p).max() > SAME_CAMERA_PX:
        return (
            f'camera_info has fx {k[0, 0]:.1f}, cx {k[0, 2]:.1f} in K and {p[0, 0]:.1f},'
            f' {p[0, 2]:.1f} in P, which is used: the image must be the rectified one (image_rect,'
            ' not image_raw), or poses are wrong'
        )
    if np.any(np.asarray(message.d)):
        return (
            f'camera_info tells of a distorted lens (D begins {message.d[0]:.3g}) and P is as K:'
            ' unless the image is rectified already, poses are off by as much as the lens'
            ' distorts; image_proc rectifies images'
        )
    return ''


def frame_from_messages(
    image: Image,
    depth: Image,
    intrinsics: CameraIntrinsics,
    metres_per_unit: float,
    empty: EmptyImage = np.empty,
) -> Frame:
    """Return one RGB-D frame with the image's stamp and frame_id, both untouched.

    empty: makes room for what is converted, where the estimator reads it best.

    Raises RejectedMessage when an encoding is unknown or the sizes disagree.
    """
    rgb, depth_m = rgb_array(image, empty), depth_m_array(depth, metres_per_unit, empty)
    try:
        return Frame(rgb, depth_m, intrinsics, stamp_ns(image.header.stamp), image.header.frame_id)
    except ValueError as error:
        raise RejectedMessage(Rejection.SIZE_MISMATCH, str(error)) from error


def mask_for_frame(segmentation: Image, frame: Frame, label: int = 0) -> np.ndarray:
    """Return the mask of a frame, (H, W) bool; raises RejectedMessage when the sizes differ."""
    mask = mask_array(segmentation, label)
    if mask.shape != frame.depth_m.shape:
        height, width = frame.depth_m.shape
        raise RejectedMessage(
            Rejection.SIZE_MISMATCH,
            f'segmentation is {mask.shape[1]}x{mask.shape[0]}, the image {width}x{height}:'
            ' resize the mask to the image (nearest neighbour) before publishing it',
        )
    return mask


def pose_message(camera_from_object: np.ndarray, frame: Frame) -> PoseStamped:
    """Return a (4, 4) pose in metres as a message with the frame's stamp and frame_id."""
    message = PoseStamped(header=header_message(frame.stamp_ns, frame.frame_id))
    x, y, z = camera_from_object[:3, 3]
    position, orientation = message.pose.position, message.pose.orientation
    position.x, position.y, position.z = float(x), float(y), float(z)
    x, y, z, w = quaternion_xyzw(camera_from_object[:3, :3])
    orientation.x, orientation.y, orientation.z = float(x), float(y), float(z)
    orientation.w = float(w)
    return message


def pose_matrix(pose: Pose) -> np.ndarray:
    """Return a message's pose as a (4, 4) float64 matrix, metres; the quaternion is normalised."""
    q, p = pose.orientation, pose.position
    rotation = Rotation.from_quat([q.x, q.y, q.z, q.w]).as_matrix()
    return transform(rotation, np.array([p.x, p.y, p.z]))


def header_message(nanoseconds: int, frame_id: str) -> Header:
    """Return a header with this stamp and frame."""
    return Header(stamp=stamp_message(nanoseconds), frame_id=frame_id)


def image_message(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    """Return an image message; pixels (H, W) or (H, W, C), copied once.

    Assigning an ndarray to `data` costs 100 ms per VGA image in rclpy, an array.array 0.1 ms.
    """
    pixels = np.ascontiguousarray(pixels)
    data = array.array('B')
    data.frombytes(pixels.data.cast('B'))
    return Image(
        header=header,
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=pixels.strides[0],
        data=data,
    )


def camera_info_message(intrinsics: CameraIntrinsics, header: Header) -> CameraInfo:
    """Return the camera_info of a rectified image: K and P agree, no distortion."""
    k = intrinsics.matrix()
    return CameraInfo(
        header=header,
        height=intrinsics.height,
        width=intrinsics.width,
        distortion_model='plumb_bob',
        d=[0.0] * 5,
        k=k.reshape(-1).tolist(),
        r=np.eye(3).reshape(-1).tolist(),
        p=np.hstack([k, np.zeros((3, 1))]).reshape(-1).tolist(),
    )


def pixel_view(message: Image, dtype: np.dtype[Any], channels: int) -> np.ndarray:
    """Return a view of the message's buffer, (H, W) or (H, W, channels), padding left out.

    The view is in the message's byte order. Raises RejectedMessage (BAD_IMAGE) when the size
    fields contradict each other or the buffer.
    """
    height, width, step = message.height, message.width, message.step
    row_bytes = width * channels * dtype.itemsize
    problem = None
    if height == 0 or width == 0:
        problem = 'the image is empty'
    elif step < row_bytes:
        problem = f'a row needs {row_bytes} bytes'
    elif len(message.data) < step * (height - 1) + row_bytes:
        problem = 'the data is cut off'
    if problem:
        raise RejectedMessage(
            Rejection.BAD_IMAGE,
            f'{problem}: {message.encoding} {width}x{height}, step {step},'
            f' {len(message.data)} bytes; the publisher fills the message wrongly',
        )
    order = dtype.newbyteorder('>' if message.is_bigendian else '<')
    shape: tuple[int, ...] = (height, width, channels)
    strides: tuple[int, ...] = (step, channels * dtype.itemsize, dtype.itemsize)
    if channels == 1:
        shape, strides = shape[:2], strides[:2]
    return np.ndarray(shape, order, buffer=message.data, strides=strides)


def _single_channel(message: Image) -> np.ndarray:
    return pixel_view(message, np.dtype(SINGLE_CHANNEL_TYPES[message.encoding]), 1)
