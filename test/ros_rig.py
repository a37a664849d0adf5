"""A tracker_node with a tracker of the test's own, and a peer that feeds it and listens."""

from __future__ import annotations

import threading
import time

import numpy as np
from geometry_msgs.msg import PoseStamped
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from ros_contexts import begin_context, end_context
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Float32, Header, String

from foundationpose_trt.datatypes import (
    CameraIntrinsics,
    Outcome,
    PoseEstimate,
    TrackingState,
)
from foundationpose_trt.pose.tracker import TrackingStep
from foundationpose_trt.ros import conversions
from foundationpose_trt.ros.qos import LATCHED_QOS
from foundationpose_trt.ros.tracker_factory import BuiltTracker, NamedObject
from foundationpose_trt.ros.tracker_node import TrackerNode
from foundationpose_trt.ros.tracker_outputs import LATENCIES

CAMERA = CameraIntrinsics(40.0, 40.0, 15.5, 11.5, 32, 24)
RELIABLE = QoSProfile(depth=100)
WAIT_S = 10.0
MS = 1_000_000


class ScriptedGroup:
    """Stands in for an ObjectGroup: registers on any mask and then tracks.

    The pose tells which frame it saw: translation x is the red value of the first pixel, y the
    object, z the depth there. While `hold` is set a step waits for `permits`. `seen`: stamp and
    whether it was registered from.
    """

    def __init__(self, count=1):
        self.states = [TrackingState.SEARCHING] * count
        self.reasons = ['STARTED'] * count
        self.requested = set()
        self.warm = None
        self.seen = []
        self.masks = []
        self.hold = False
        self.permits = threading.Semaphore(0)
        self.failure = None
        self.applied = []
        self.resets = 0
        self.frame = None

    def warm_up(self, intrinsics):
        self.warm = intrinsics

    def seeking(self, index):
        return self.states[index] is not TrackingState.TRACKING or index in self.requested

    @property
    def any_seeking(self):
        return any(self.seeking(index) for index in range(len(self.states)))

    def lose(self, reason):
        for k, state in enumerate(self.states):
            if state is TrackingState.TRACKING:
                self.lose_one(k, reason)

    def lose_one(self, index=0, reason='LOW_SUPPORT'):
        self.states[index], self.reasons[index] = TrackingState.LOST, reason

    def reset(self, index=None, reason='RESET'):
        self.resets += 1
        for k in range(len(self.states)):
            self.states[k], self.reasons[k] = TrackingState.SEARCHING, reason

    def request_registration(self, index=None):
        self.requested = set(range(len(self.states)))

    def track(self, frame, only=None):
        self._take(frame, False)
        tracked = [k for k, s in enumerate(self.states) if s is TrackingState.TRACKING]
        return {k: self._step(frame, k, 'track') for k in tracked}

    def register(self, index, frame, mask):
        self._take(frame, True)
        self.masks.append(mask)
        if not mask.any():
            failed = PoseEstimate(Outcome.EMPTY_MASK)
            return TrackingStep(self.states[index], failed, 'register', 12.5)
        self.requested.discard(index)
        self.states[index], self.reasons[index] = TrackingState.TRACKING, 'REGISTERED'
        return self._step(frame, index, 'register')

    def _take(self, frame, registers):
        assert self.warm is not None, 'a frame came before the warm-up'
        self.seen.append((frame.stamp_ns, registers))
        self.frame = frame
        if self.hold:
            assert self.permits.acquire(timeout=WAIT_S)
        if self.failure is not None:
            raise self.failure

    def _step(self, frame, index, stage):
        pose = np.eye(4)
        pose[:3, 3] = float(frame.rgb[0, 0, 0]), index, float(frame.depth_m[0, 0])
        return TrackingStep(self.states[index], PoseEstimate(Outcome.OK, pose), stage, 12.5)


class NotingNode(TrackerNode):
    """Counts what arrived, so that a test can wait for its own message."""

    arrived = 0

    def _on_camera_info(self, message):
        super()._on_camera_info(message)
        self.arrived += 1

    def _on_image(self, message):
        super()._on_image(message)
        self.arrived += 1

    def _on_depth(self, message):
        super()._on_depth(message)
        self.arrived += 1

    def _on_segmentation(self, message):
        super()._on_segmentation(message)
        self.arrived += 1


class Bench:
    """A node under test and a peer in one context; `until` spins until something holds."""

    def __init__(self, make_node):
        self.context = begin_context()
        try:
            self.node = make_node(self.context)
        except BaseException:
            end_context(self.context)
            raise
        self.peer = Node('peer', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.executor.add_node(self.peer)
        self.heard, self.out = {}, {}

    def listen(self, topic, kind, qos):
        self.heard[topic] = []
        self.peer.create_subscription(kind, topic, self.heard[topic].append, qos)

    def publish_on(self, kinds):
        """Make publishers of these topics; wait until everything found its other end."""
        self.out = {
            topic: self.peer.create_publisher(kind, topic, RELIABLE)
            for topic, kind in kinds.items()
        }
        publishers = self.out.values()
        self.until(lambda: all(p.get_subscription_count() for p in publishers))
        self.until(lambda: all(self.node.count_subscribers(t) for t in self.heard))

    def close(self):
        self.node.close(timeout_s=WAIT_S)  # or its thread would publish from a node that is gone
        self.node.destroy_node()
        self.peer.destroy_node()
        self.executor.shutdown()
        end_context(self.context)

    def spin(self, seconds):
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            self.executor.spin_once(timeout_sec=0.01)

    def until(self, holds, timeout_s=WAIT_S):
        end_s = time.monotonic() + timeout_s
        while not holds():
            assert time.monotonic() < end_s, 'waited in vain'
            self.executor.spin_once(timeout_sec=0.01)

    def values(self, topic):
        return [message.data for message in self.heard[topic]]


class Rig(Bench):
    """A tracker_node on a scripted group; `send` publishes one message to it.

    objects: names of several; connect: whether the peer listens and publishes.
    """

    def __init__(self, connect=True, objects=(), build=None, **parameters):
        self.names = objects
        self.group = ScriptedGroup(max(1, len(objects)))
        self.builds, self.rooms = 0, []
        overrides = [Parameter('mesh_file_path', value='unused.obj')]
        overrides += (
            [Parameter('warm_up_width', value=0)] if 'warm_up_width' not in parameters else []
        )
        overrides += [Parameter('objects', value=list(objects))] if objects else []
        overrides += [Parameter(name, value=value) for name, value in parameters.items()]
        self._start = build or self.build
        super().__init__(
            lambda context: NotingNode(self._start, context=context, parameter_overrides=overrides)
        )
        self.node.start()
        if connect:
            self._connect()

    def build(self, parameters, nested, report):
        self.builds += 1
        topics = [(name, f'{name}/') for name in self.names] or [('thing', '')]
        found = tuple(
            NamedObject(name, name, f'{name}_frame', topic, k if self.names else 0)
            for k, (name, topic) in enumerate(topics, 1)
        )
        return BuiltTracker(
            self.group, found, self.group.warm_up, 'a scripted tracker', self.group.applied.append,
            empty_image=self._empty_image,
        )  # fmt: skip

    def _empty_image(self, shape, dtype):
        self.rooms.append(np.empty(shape, dtype))
        return self.rooms[-1]

    def _connect(self):
        for name in self.names or ['']:
            prefix = f'{name}/' if name else ''
            self.listen(f'{prefix}pose', PoseStamped, RELIABLE)
            self.listen(f'{prefix}state', String, LATCHED_QOS)
            self.listen(f'{prefix}outcome', String, RELIABLE)
        for name in LATENCIES:
            self.listen(f'latency/{name}', Float32, RELIABLE)
        self.publish_on(
            {'image': Image, 'depth': Image, 'segmentation': Image, 'camera_info': CameraInfo}
        )
        self.until(lambda: all(self.heard[t] for t in self.heard if t.endswith('state')))

    def close(self):
        self.group.permits.release(1000)
        super().close()

    def send(self, topic, stamp_ns, **changes):
        """Publish one message of a topic, let the node take it."""
        header = Header(stamp=conversions.stamp_message(stamp_ns), frame_id='left_optical')
        message = self.message(topic, header)
        for name, value in changes.items():
            setattr(message, name, value)
        expected = self.node.arrived + 1
        self.out[topic].publish(message)
        self.until(lambda: self.node.arrived == expected)

    def message(self, topic, header):
        shape = (CAMERA.height, CAMERA.width)
        number = conversions.stamp_ns(header.stamp) // MS % 256
        if topic == 'camera_info':
            return conversions.camera_info_message(CAMERA, header)
        if topic == 'image':
            return conversions.image_message(
                np.full((*shape, 3), number, np.uint8), 'rgb8', header
            )
        if topic == 'depth':
            return conversions.image_message(np.full(shape, 750, np.uint16), '16UC1', header)
        return conversions.image_message(np.full(shape, 255, np.uint8), 'mono8', header)

    def frame(self, stamp_ns, mask=False):
        """Send a whole frame, the mask first."""
        for topic in [*(['segmentation'] if mask else []), 'depth', 'image']:
            self.send(topic, stamp_ns)

    def hold_in_registration(self, stamp_ns):
        """Send a first frame and return while the worker is held in its registration."""
        self.send('camera_info', stamp_ns)
        self.group.hold = True
        self.frame(stamp_ns, mask=True)
        self.until(lambda: self.group.seen)

    def outcomes(self):
        return self.values('outcome')

    def stamps(self):
        return [conversions.stamp_ns(m.header.stamp) for m in self.heard['pose']]
