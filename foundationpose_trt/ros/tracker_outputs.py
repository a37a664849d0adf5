"""Everything tracker_node publishes: pose, state, outcome and latency topics."""

from __future__ import annotations

import time

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from std_msgs.msg import Float32, String

from foundationpose_trt.datatypes import Frame, TrackingState
from foundationpose_trt.ros.conversions import pose_message
from foundationpose_trt.ros.qos import LATCHED_QOS, RESULT_QOS

LATENCIES = ('register_ms', 'track_ms', 'publish_ms', 'age_ms', 'dropped')
NS_PER_MS = 1e6


class TrackerOutputs:
    """The publishers of one node; its methods may be called from the worker thread.

    `state` is latched and published when it changes; `outcome` names the result of every frame
    (OK, EMPTY_MASK, ...); `pose` appears for OK only, with the image's stamp and frame_id.
    """

    def __init__(self, node: Node) -> None:
        self._clock = node.get_clock()
        self._pose = node.create_publisher(PoseStamped, 'pose', RESULT_QOS)
        self._state = node.create_publisher(String, 'state', LATCHED_QOS)
        self._outcome = node.create_publisher(String, 'outcome', RESULT_QOS)
        self._latency = {
            name: node.create_publisher(Float32, f'latency/{name}', RESULT_QOS)
            for name in LATENCIES
        }
        self._last_state: TrackingState | None = None

    def publish_state(self, state: TrackingState) -> None:
        """Publish the state if it changed."""
        if state is not self._last_state:
            self._last_state = state
            self._state.publish(String(data=state.value))

    def publish_outcome(self, name: str) -> None:
        """Publish how a frame ended: an Outcome or a Rejection."""
        self._outcome.publish(String(data=name))

    def publish_latency(self, name: str, value: float) -> None:
        """Publish one of LATENCIES: milliseconds, or for dropped the total since the start."""
        self._latency[name].publish(Float32(data=float(value)))

    def publish_pose(self, frame: Frame, camera_from_object: np.ndarray) -> None:
        """Publish a pose and how long that took, and how old the image was afterwards."""
        start = time.perf_counter()
        self._pose.publish(pose_message(camera_from_object, frame))
        self.publish_latency('publish_ms', (time.perf_counter() - start) * 1e3)
        age_ns = self._clock.now().nanoseconds - frame.stamp_ns
        self.publish_latency('age_ms', age_ns / NS_PER_MS)
