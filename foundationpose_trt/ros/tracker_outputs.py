"""Everything tracker_node publishes but the overlay: poses, transforms, states, outcomes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.node import Node
from std_msgs.msg import String

from foundationpose_trt.datatypes import Frame, PoseEstimate
from foundationpose_trt.ros.conversions import pose_message
from foundationpose_trt.ros.detection_messages import object_array, vision_messages
from foundationpose_trt.ros.qos import LATCHED_QOS, RESULT_DEPTH, RESULT_QOS, reliable_publisher
from foundationpose_trt.ros.tracker_factory import NamedObject
from foundationpose_trt.ros.transforms import TransformOutput

LATENCIES = (
    'register_ms', 'track_ms', 'upload_ms', 'publish_ms', 'visualize_ms', 'age_ms', 'cycle_ms',
    'warm_up_ms', 'dropped',
)  # fmt: skip
NS_PER_MS = 1e6


class ObjectTopics:
    """`pose`, `state` and `outcome` of one object, under its name if there are several.

    `state` is latched, 'STATE: REASON', and published when it changes; `outcome` names the result
    of every frame (OK, EMPTY_MASK, ...); `pose` appears for OK only, with the image's stamp and
    frame_id.
    """

    def __init__(self, node: Node, topic: str) -> None:
        self._node = node
        self._pose = reliable_publisher(node, PoseStamped, f'{topic}pose', RESULT_DEPTH)
        self._state = node.create_publisher(String, f'{topic}state', LATCHED_QOS)
        self._outcome = node.create_publisher(String, f'{topic}outcome', RESULT_QOS)
        self._last = ''

    def publish_state(self, state: str, reason: str) -> None:
        """Publish the state if it or its reason changed."""
        line = f'{state}: {reason}'
        if line != self._last:
            self._last = line
            self._state.publish(String(data=line))

    def publish_pose(self, frame: Frame, camera_from_object: np.ndarray) -> None:
        """Publish the pose (4, 4) of an image, if anybody listens."""
        if self._pose.get_subscription_count():
            self._pose.publish(pose_message(camera_from_object, frame))

    def publish_outcome(self, name: str) -> None:
        """Publish how a frame ended, if anybody listens."""
        if self._outcome.get_subscription_count():
            self._outcome.publish(String(data=name))

    def destroy(self) -> None:
        """Take the topics off the graph."""
        for publisher in (self._pose, self._state, self._outcome):
            self._node.destroy_publisher(publisher)


class TrackerOutputs:
    """The publishers of one node; its methods may be called from the worker thread.

    note: takes a latency and its value in milliseconds.
    """

    def __init__(
        self,
        node: Node,
        objects: Sequence[NamedObject],
        note: Callable[[str, float], None],
        transforms: TransformOutput,
    ) -> None:
        self._node = node
        self._clock = node.get_clock()
        self._objects = tuple(objects)
        self._note = note
        self._topics: list[ObjectTopics] = []
        self.transforms = transforms
        self._frame_ns: int | None = None  # of the poses in _in_frame
        self._in_frame: dict[int, PoseEstimate] = {}
        self._messages = vision_messages()
        self._output: Any = None
        try:
            self._make_topics()
        except BaseException:  # an override of one of them is none, and others are there
            self.destroy()
            raise

    def _make_topics(self) -> None:
        for one in self._objects:
            self._topics.append(ObjectTopics(self._node, one.topic))
        if self._messages is None:
            self._node.get_logger().info('vision_msgs is not installed: no topic output')
        else:
            kind = self._messages.Detection3DArray
            self._output = reliable_publisher(self._node, kind, 'output', RESULT_DEPTH)

    def publish_states(self, states: Sequence[str], reasons: Sequence[str]) -> None:
        """Publish the states that changed."""
        for topics, state, reason in zip(self._topics, states, reasons, strict=True):
            topics.publish_state(state, reason)

    def publish_outcome(self, name: str, index: int | None = None) -> None:
        """Publish how a frame ended for one object or, None, for all."""
        for topics in self._topics if index is None else [self._topics[index]]:
            topics.publish_outcome(name)

    def publish_poses(self, frame: Frame, estimates: Mapping[int, PoseEstimate]) -> None:
        """Publish the poses of one image, how long that took, and how old the image was then."""
        start = time.perf_counter()
        poses = {
            index: estimate.camera_from_object
            for index, estimate in estimates.items()
            if estimate.camera_from_object is not None
        }
        for index, pose in poses.items():
            self._topics[index].publish_pose(frame, pose)
        self.transforms.publish(
            frame, {self._objects[index].tf_frame: pose for index, pose in poses.items()}
        )
        if frame.stamp_ns != self._frame_ns:
            self._frame_ns, self._in_frame = frame.stamp_ns, {}
        self._in_frame.update(estimates)  # one registered later in the same frame joins the others
        self._publish_array(frame, self._in_frame)
        if not poses:
            return
        self._note('publish_ms', (time.perf_counter() - start) * 1e3)
        age_ns = self._clock.now().nanoseconds - frame.stamp_ns
        self._note('age_ms', age_ns / NS_PER_MS)

    def destroy(self) -> None:
        """Take the topics off the graph."""
        for topics in self._topics:
            topics.destroy()
        if self._output is not None:
            self._node.destroy_publisher(self._output)

    def _publish_array(self, frame: Frame, estimates: Mapping[int, PoseEstimate]) -> None:
        if self._messages is None or not self._output.get_subscription_count():
            return
        found: list[tuple[NamedObject, np.ndarray, float]] = []
        for index, estimate in estimates.items():
            pose, quality = estimate.camera_from_object, estimate.quality
            if pose is not None:
                found.append((self._objects[index], pose, quality.agreement if quality else 0.0))
        self._output.publish(object_array(self._messages, found, frame))
