"""ROS node: looks at debug/pose and takes its time, to measure what a viewer costs.

Apart from the camera: whoever delays that delays the images, not the poses.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rclpy.node import Node
from sensor_msgs.msg import Image

from foundationpose_trt.ros.pattern_camera_node import CAMERA_QOS
from foundationpose_trt.ros.running import run_node

NODE_NAME = 'slow_viewer_node'
LOOKING_S = 0.05  # at each image


class SlowViewerNode(Node):
    """Subscribes debug/pose with a camera's QoS and holds each image for LOOKING_S."""

    def __init__(self, **options: Any) -> None:
        super().__init__(NODE_NAME, **options)
        self.create_subscription(Image, 'debug/pose', self._on_image, CAMERA_QOS)

    def finished(self) -> bool:
        """It goes on until it is told to end."""
        return False

    def close(self, timeout_s: float = 0.0) -> bool:
        """Nothing runs in the background."""
        return True

    def _on_image(self, message: Image) -> None:
        time.sleep(LOOKING_S)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `python -m foundationpose_trt.ros.slow_viewer_node`."""
    return run_node(NODE_NAME, SlowViewerNode, arguments)


if __name__ == '__main__':
    raise SystemExit(main())
