"""ROS node: RGB-D images and a mask in, the tracked pose of one object out.

Callbacks only match stamps and put the newest frame into the worker's slot; conversion,
registration, tracking and publishing happen in the worker thread.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSPolicyKind, QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

from foundationpose_trt.datatypes import CameraIntrinsics, Frame, TrackingState
from foundationpose_trt.ros import conversions
from foundationpose_trt.ros.build_reports import BuildReports
from foundationpose_trt.ros.dds import SilenceCheck, announced_but_silent
from foundationpose_trt.ros.matcher import FrameSet, NewestMatcher
from foundationpose_trt.ros.parameters import declare, given_parameters, unknown_parameters
from foundationpose_trt.ros.rejections import RejectedMessage
from foundationpose_trt.ros.running import run_node
from foundationpose_trt.ros.throttle import ThrottledCount
from foundationpose_trt.ros.tracker_factory import BuiltTracker, build_tracker
from foundationpose_trt.ros.tracker_outputs import LATCHED_QOS, TrackerOutputs
from foundationpose_trt.ros.tracker_parameters import TrackerParameters
from foundationpose_trt.ros.worker import NewestWorker

NODE_NAME = 'tracker_node'
CHECK_PERIOD_S = 1.0
INPUT_QOS_OVERRIDES = (
    QoSPolicyKind.HISTORY, QoSPolicyKind.DEPTH, QoSPolicyKind.RELIABILITY,
    QoSPolicyKind.DURABILITY,
)  # fmt: skip
STAMPS_REMEMBERED = 64


@dataclass(frozen=True)
class Job:
    """What the worker gets: one frame to process, or (frames None) the call to warm up."""

    intrinsics: CameraIntrinsics
    frames: FrameSet | None = None

    @property
    def stamp_ns(self) -> int | None:
        """The frame's stamp, None for a warm-up."""
        return self.frames.stamp_ns if self.frames else None


class TrackerNode(Node):
    """Subscribes image, depth, camera_info, segmentation; publishes pose, state, latency/*.

    build: makes the tracker from the parameters and a function that it tells the progress of
    engine builds (tests give another). Raises ValueError naming
    the parameter when something is wrong before the first frame.
    """

    def __init__(self, build: Callable[..., BuiltTracker] = build_tracker, **options: Any) -> None:
        super().__init__(NODE_NAME, **options)
        self.parameters = declare(self, TrackerParameters)
        for line in unknown_parameters(given_parameters(self), TrackerParameters):
            self.get_logger().warning(line)
        builds = self.create_publisher(String, 'engine_build', LATCHED_QOS)
        reports = BuildReports(self.get_logger(), lambda line: builds.publish(String(data=line)))
        built = build(self.parameters, reports)
        self.get_logger().info(f'tracking {built.description}')
        self._tracker, self._warm_up_tracker = built.tracker, built.warm_up
        self._set_graph_capacity = built.set_cuda_graph_cache_capacity
        self._graph_capacity: int | None = None  # set while running, not yet in force
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self._warm = False
        self._intrinsics: CameraIntrinsics | None = None
        self._matcher = NewestMatcher(
            round(self.parameters.sync_slop_ms * 1e6), self.parameters.mask_history_frames
        )
        self._settled_ns: deque[int] = deque(maxlen=STAMPS_REMEMBERED)
        self.dropped = 0
        self.outcomes: Counter[str] = Counter()
        self._trouble = ThrottledCount()
        self._silence = SilenceCheck(self.parameters.silence_warning_s)
        self._outputs = TrackerOutputs(self)
        self._outputs.publish_state(self._tracker.state)
        self._worker: NewestWorker[Job] = NewestWorker(self._process, self._prefer)
        self._worker.start()
        if not self.parameters.build_only:
            self._listen()

    def finished(self) -> bool:
        """With build_only at once; raises WorkerFailed when the worker ended with an exception."""
        self._worker.raise_failure()
        return self.parameters.build_only

    def close(self) -> bool:
        """Stop the worker, say what happened to the frames; False when a frame still runs."""
        if self._worker.stopping:
            return self._worker.stop(timeout_s=0.0)
        ended = self._worker.stop()
        if not ended:
            self.get_logger().warning('ending in the middle of a frame')
        self.get_logger().info(f'frames by outcome: {dict(self.outcomes)}, dropped {self.dropped}')
        return ended

    # Callbacks of the executor's thread.

    def _listen(self) -> None:
        self._image_topics = {}
        for kind, topic, callback in (
            (CameraInfo, 'camera_info', self._on_camera_info),
            (Image, 'segmentation', self._on_segmentation),
            (Image, 'image', self._on_image),
            (Image, 'depth', self._on_depth),
        ):
            subscription = self.create_subscription(
                kind, topic, callback, input_qos(),
                qos_overriding_options=QoSOverridingOptions(INPUT_QOS_OVERRIDES),
            )  # fmt: skip
            self._image_topics[topic] = subscription.topic_name
        # steady: with use_sim_time and no /clock, ROS time stands still and nothing would warn
        self.create_timer(
            CHECK_PERIOD_S, self._check_inputs, clock=Clock(clock_type=ClockType.STEADY_TIME)
        )

    def _on_set_parameters(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        for given in parameters:
            if given.name == 'cuda_graph_cache_capacity':
                self._graph_capacity = given.value
        return SetParametersResult(successful=True)

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._silence.heard('camera_info', time.monotonic())
        try:
            intrinsics = conversions.intrinsics_from_message(message)
        except RejectedMessage as error:
            self._reject(error)
            return
        first = self._intrinsics is None
        self._intrinsics = intrinsics
        if first:
            self._worker.offer(Job(intrinsics))

    def _on_image(self, message: Image) -> None:
        self._silence.heard('image', time.monotonic())
        self._offer(self._matcher.add_image(_stamp_ns(message), message))

    def _on_depth(self, message: Image) -> None:
        self._silence.heard('depth', time.monotonic())
        self._offer(self._matcher.add_depth(_stamp_ns(message), message))

    def _on_segmentation(self, message: Image) -> None:
        self._silence.heard('segmentation', time.monotonic())
        self._offer(self._matcher.add_segmentation(_stamp_ns(message), message))

    def _offer(self, frames: FrameSet | None) -> None:
        if frames is None or (frames.late_mask and self._tracking()):
            return
        if self._intrinsics is None:
            if self._trouble.note('NO_CAMERA_INFO'):
                self.get_logger().warning(
                    f'images arrive, no usable {self._image_topics["camera_info"]} yet:'
                    ' nothing is tracked'
                )
            return
        job = Job(self._intrinsics, frames)
        displaced = self._worker.offer(job)
        # a frame that is replaced by itself, now with its mask, is not dropped
        if displaced is job or (displaced is not None and displaced.stamp_ns != job.stamp_ns):
            self._drop(displaced)

    def _drop(self, job: Job) -> None:
        if job.stamp_ns is not None and job.stamp_ns not in self._settled_ns:
            self._settled_ns.append(job.stamp_ns)
            self.dropped += 1

    def _tracking(self) -> bool:
        return self._tracker.state is TrackingState.TRACKING

    def _prefer(self, new: Job, pending: Job) -> bool:
        """Newest wins; but while the object is sought, a frame without its mask is no use."""
        if new.frames is None or pending.frames is None:
            return new.frames is not None
        if not self._tracking():
            has_mask = new.frames.segmentation is not None
            if has_mask != (pending.frames.segmentation is not None):
                return has_mask
        return new.frames.stamp_ns >= pending.frames.stamp_ns

    def _check_inputs(self) -> None:
        mismatch = self._matcher.never_matching()
        if mismatch and self._trouble.note('STAMPS_NEVER_MATCH'):
            self.get_logger().warning(mismatch)
        now_s = time.monotonic()
        names = self._image_topics
        silent = {
            topic: self._silence.silent(topic, self.count_publishers(names[topic]), now_s)
            for topic in names
        }
        for topic in ('image', 'depth'):
            if silent[topic] and self._trouble.note(f'SILENT_{topic}'):
                after_s = self._silence.after_s
                info = self._intrinsics is not None and not silent['camera_info']
                self.get_logger().warning(announced_but_silent(names[topic], after_s, info))
        seeking = self._warm and not self._tracking()
        unmasked = seeking and self.count_publishers(names['segmentation']) == 0
        if unmasked and self._trouble.note('NO_SEGMENTATION'):
            self.get_logger().warning(
                f'searching, but nobody publishes {names["segmentation"]}: registration needs a'
                ' mask with the stamp of its image'
            )

    # The worker's thread.

    def _process(self, job: Job) -> None:
        self._apply_graph_capacity()
        self._warm_up(job.intrinsics)
        if job.frames is None:
            return
        self._settled_ns.append(job.frames.stamp_ns)
        try:
            frame = conversions.frame_from_messages(
                job.frames.image, job.frames.depth, job.intrinsics, self.parameters.depth_unit_m
            )
        except RejectedMessage as error:
            self._reject(error)
            return
        step = self._tracker.step(frame, self._mask(job.frames, frame))
        if self._worker.stopping:
            return
        if step.estimate.camera_from_object is not None:
            self._outputs.publish_pose(frame, step.estimate.camera_from_object)
        if f'{step.stage}_ms' in ('register_ms', 'track_ms'):
            self._outputs.publish_latency(f'{step.stage}_ms', step.elapsed_ms)
        self._outputs.publish_state(step.state)
        self._settle(step.estimate.outcome.value)

    def _mask(self, frames: FrameSet, frame: Frame) -> np.ndarray | None:
        if frames.segmentation is None or self._tracking():
            return None
        try:
            return conversions.mask_for_frame(frames.segmentation, frame)
        except RejectedMessage as error:
            self._reject(error)
            return None

    def _warm_up(self, intrinsics: CameraIntrinsics) -> None:
        if self._warm:
            return
        start_s = time.monotonic()
        self._warm_up_tracker(intrinsics)
        self._warm = True
        self.get_logger().info(f'warm after {time.monotonic() - start_s:.2f} s')

    def _apply_graph_capacity(self) -> None:
        capacity, self._graph_capacity = self._graph_capacity, None
        if capacity is not None:
            self._set_graph_capacity(capacity)
            self.get_logger().info(f'cuda_graph_cache_capacity is now {capacity}')

    def _reject(self, error: RejectedMessage) -> None:
        name = error.rejection.value
        if self._trouble.note(name):
            self.get_logger().error(f'{error} ({self._trouble.counts[name]} so far)')
        self._settle(name)

    def _settle(self, outcome: str) -> None:
        self.outcomes[outcome] += 1
        self._outputs.publish_outcome(outcome)
        self._outputs.publish_latency('dropped', self.dropped)


def input_qos() -> QoSProfile:
    """Return best effort, newest only; one object per topic, as overrides are written into it."""
    return QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


def _stamp_ns(message: Image) -> int:
    return conversions.stamp_ns(message.header.stamp)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ros2 run foundationpose_trt tracker_node`."""
    return run_node(NODE_NAME, TrackerNode, arguments)


if __name__ == '__main__':
    raise SystemExit(main())
