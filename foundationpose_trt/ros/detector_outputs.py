"""Everything detector_node publishes but the overlay: segmentation, detections, latencies."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String

from foundationpose_trt.detection.postprocess import Detections
from foundationpose_trt.ros.conversions import image_message, stamp_ns
from foundationpose_trt.ros.detection_messages import detection_array, vision_messages
from foundationpose_trt.ros.qos import (
    NEWEST_DEPTH,
    RESULT_DEPTH,
    RESULT_QOS,
    reliable_publisher,
)

# detector_*: tracker_node has the others of its own in the same namespace
LATENCIES = (
    'detector_ms', 'detector_upload_ms', 'detector_publish_ms', 'detector_visualize_ms',
    'detector_age_ms', 'detector_cycle_ms', 'detector_warm_up_ms', 'detector_dropped',
)  # fmt: skip
NS_PER_MS = 1e6


class DetectorOutputs:
    """The publishers of one node; its methods may be called from its threads.

    `segmentation` and `detections` appear for every image that was looked at, with its stamp and
    frame; `detector_outcome` names the result of every frame.
    """

    def __init__(self, node: Node, note: Callable[[str, float], None]) -> None:
        self._node = node
        self._note = note
        self._clock = node.get_clock()
        self._messages = vision_messages()
        self._detections = None
        self._segmentation = reliable_publisher(node, Image, 'segmentation', NEWEST_DEPTH)
        if self._messages is None:
            node.get_logger().info('vision_msgs is not installed: no topic detections')
        else:
            kind = self._messages.Detection2DArray
            try:
                self._detections = reliable_publisher(node, kind, 'detections', RESULT_DEPTH)
            except BaseException:  # an override that is none
                node.destroy_publisher(self._segmentation)
                raise
        self._outcome = node.create_publisher(String, 'detector_outcome', RESULT_QOS)

    def publish_found(
        self, detections: Detections, names: list[str], labels: np.ndarray, header: Header
    ) -> None:
        """Publish what one image holds, how long that took, and how old it was afterwards."""
        start = time.perf_counter()
        if self._segmentation.get_subscription_count():
            self._segmentation.publish(image_message(labels, 'mono8', header))
        wanted = self._detections is not None and self._detections.get_subscription_count()
        if wanted and self._detections is not None and self._messages is not None:
            array = detection_array(self._messages, detections, names, header)
            self._detections.publish(array)
        self._note('detector_publish_ms', (time.perf_counter() - start) * 1e3)
        age_ns = self._clock.now().nanoseconds - stamp_ns(header.stamp)
        self._note('detector_age_ms', age_ns / NS_PER_MS)

    def publish_outcome(self, name: str) -> None:
        """Publish how a frame ended: OK, NOTHING_FOUND or a Rejection."""
        if self._outcome.get_subscription_count():
            self._outcome.publish(String(data=name))

    def destroy(self) -> None:
        """Take the topics off the graph."""
        for publisher in (self._segmentation, self._outcome, self._detections):
            if publisher is not None:
                self._node.destroy_publisher(publisher)
