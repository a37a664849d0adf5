"""Poses as transforms, where tf2_ros is installed."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
from geometry_msgs.msg import TransformStamped
from rclpy.node import Node

from foundationpose_trt.datatypes import Frame
from foundationpose_trt.ros.conversions import pose_message


class TransformOutput:
    """Broadcasts from the image's frame to each object's; one broadcaster for all poses.

    enabled: may change at any time. Without tf2_ros nothing is broadcast, and that is said once.
    """

    enabled = True

    def __init__(self, node: Node) -> None:
        self._broadcaster: Any = None
        try:
            tf2_ros = importlib.import_module('tf2_ros')
        except ImportError:
            node.get_logger().info('tf2_ros is not installed: no transforms')
            return
        self._broadcaster = tf2_ros.TransformBroadcaster(node)

    def publish(self, frame: Frame, poses: dict[str, np.ndarray]) -> None:
        """Broadcast camera_from_object (4, 4) by child frame, with the image's stamp and frame."""
        if not self.enabled or self._broadcaster is None or not poses:
            return
        transforms = [
            transform_message(pose, frame, child_frame) for child_frame, pose in poses.items()
        ]
        self._broadcaster.sendTransform(transforms)


def transform_message(
    camera_from_object: np.ndarray, frame: Frame, child_frame: str
) -> TransformStamped:
    """Return a pose (4, 4) in metres as a transform from the image's frame to child_frame."""
    posed = pose_message(camera_from_object, frame)
    message = TransformStamped(header=posed.header, child_frame_id=child_frame)
    position, translation = posed.pose.position, message.transform.translation
    translation.x, translation.y, translation.z = position.x, position.y, position.z
    message.transform.rotation = posed.pose.orientation
    return message
