"""ROS node: a camera of nothing, to measure with: the same image at a fixed rate, stamped now.

Its messages are serialised once: as from a driver in C++, what Python takes to fill them is not
part of a pose's age.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from foundationpose_trt.datatypes import CameraIntrinsics
from foundationpose_trt.ros import conversions
from foundationpose_trt.ros.parameters import check_values, declare, parameter
from foundationpose_trt.ros.running import run_node

NODE_NAME = 'pattern_camera_node'
FRAME_ID = 'camera_color_optical_frame'
DEPTH_MM = 800
# as camera drivers publish: best effort, newest only
CAMERA_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


@dataclass(frozen=True)
class PatternCameraParameters:
    """Values in force for one run of pattern_camera_node."""

    width: int = parameter(640, 'of the images', 'pixels', (16, 16384))
    height: int = parameter(480, 'of the images', 'pixels', (16, 16384))
    rate_hz: float = parameter(30.0, 'images per second', 'Hz', (0.1, 1000.0))
    objects: int = parameter(1, 'values in the segmentation, side by side', '', (1, 32))

    def __post_init__(self) -> None:
        check_values(self)


class PatternCameraNode(Node):
    """Publishes image, depth, camera_info and segmentation."""

    def __init__(self, **options: Any) -> None:
        super().__init__(NODE_NAME, **options)
        p = declare(self, PatternCameraParameters)
        header = Header(frame_id=FRAME_ID)
        camera = CameraIntrinsics(
            p.width, p.width, (p.width - 1) / 2, (p.height - 1) / 2, p.width, p.height
        )
        rgb = np.arange(p.height * p.width * 3, dtype=np.uint32).astype(np.uint8)
        labels = 1 + np.arange(p.width) * p.objects // p.width
        # camera_info after its image, as image_transport's CameraPublisher sends them, and a mask
        # after the image that it is of, as a detector does
        messages = {
            'depth': _image(np.full((p.height, p.width), DEPTH_MM), 'u2', '16UC1'),
            'image': _image(rgb.reshape(p.height, p.width, 3), 'u1', 'rgb8'),
            'camera_info': conversions.camera_info_message(camera, header),
            'segmentation': _image(np.tile(labels, (p.height, 1)), 'u1', 'mono8'),
        }
        self._sent = [
            (self.create_publisher(type(message), topic, CAMERA_QOS), serialize_message(message))
            for topic, message in messages.items()
        ]
        self.create_timer(1.0 / p.rate_hz, self._on_timer)

    def finished(self) -> bool:
        """It goes on until it is told to end."""
        return False

    def close(self, timeout_s: float = 0.0) -> bool:
        """Nothing runs in the background."""
        return True

    def _on_timer(self) -> None:
        stamp = self.get_clock().now().to_msg()
        for publisher, serialized in self._sent:
            publisher.publish(restamped(serialized, stamp))


def restamped(serialized: bytes, stamp: Time) -> bytes:
    """Return a serialised message that begins with a header, with another stamp in it.

    In CDR the stamp follows the four bytes that tell the encoding, in that one's byte order
    (OMG DDSI-RTPS 2.5, section 10.2).
    """
    order = '<' if serialized[1] & 1 else '>'
    values = struct.pack(f'{order}iI', stamp.sec, stamp.nanosec)
    return b''.join((serialized[:4], values, memoryview(serialized)[12:]))  # copies once


def _image(pixels: np.ndarray, code: str, encoding: str) -> Image:
    return conversions.image_message(pixels.astype(code), encoding, Header(frame_id=FRAME_ID))


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m foundationpose_trt.ros.pattern_camera_node`."""
    return run_node(NODE_NAME, PatternCameraNode, arguments)


if __name__ == '__main__':
    raise SystemExit(main())
