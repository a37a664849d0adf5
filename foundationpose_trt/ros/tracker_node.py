"""ROS node: RGB-D images and a mask in, the tracked pose of one object out.

Callbacks only match stamps and put the newest frame into the worker's slot; conversion,
registration, tracking and publishing happen in the worker thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sensor_msgs.msg import CameraInfo, Image

from foundationpose_trt.datatypes import CameraIntrinsics, Frame, TrackingState
from foundationpose_trt.ros import conversions
from foundationpose_trt.ros.dds import announced_but_silent
from foundationpose_trt.ros.image_node import ImageNode, image_stamp_ns
from foundationpose_trt.ros.ledger import FrameLedger
from foundationpose_trt.ros.matcher import CLOCK_RESET_NS, FrameSet, NewestMatcher
from foundationpose_trt.ros.rejections import RejectedMessage
from foundationpose_trt.ros.running import run_node
from foundationpose_trt.ros.tracker_factory import BuiltTracker, build_tracker
from foundationpose_trt.ros.tracker_outputs import TrackerOutputs
from foundationpose_trt.ros.tracker_parameters import TrackerParameters
from foundationpose_trt.ros.worker import NewestWorker

NODE_NAME = 'tracker_node'


@dataclass(frozen=True)
class Job:
    """What the worker gets: one frame to process, or (frames None) the call to warm up."""

    intrinsics: CameraIntrinsics
    frames: FrameSet | None = None

    @property
    def stamp_ns(self) -> int | None:
        """The frame's stamp, None for a warm-up."""
        return self.frames.stamp_ns if self.frames else None


class TrackerNode(ImageNode):
    """Subscribes image, depth, camera_info, segmentation; publishes pose, state, latency/*.

    build: makes the tracker from the parameters and a function that it tells the progress of
    engine builds (tests give another). Raises ValueError naming
    the parameter when something is wrong before the first frame.
    """

    def __init__(self, build: Callable[..., BuiltTracker] = build_tracker, **options: Any) -> None:
        super().__init__(NODE_NAME, TrackerParameters, **options)
        built = build(self.parameters, self._build_reports())
        self.get_logger().info(f'tracking {built.description}')
        self._tracker, self._warm_up_tracker = built.tracker, built.warm_up
        self._set_graph_capacity = built.set_cuda_graph_cache_capacity
        self._warm = False
        self._intrinsics: CameraIntrinsics | None = None
        history = self.parameters.mask_history_frames
        self._matcher = NewestMatcher(round(self.parameters.sync_slop_ms * 1e6), history)
        self._ledger = FrameLedger(history)
        self._newest: Job | None = None
        self._last_ns: int | None = None  # of the frame handled last
        self._outputs = TrackerOutputs(self)
        self._outputs.publish_state(self._tracker.state)
        self._worker: NewestWorker[Job] = NewestWorker(self._process, self._prefer)
        self._worker.start()
        inputs = (
            (CameraInfo, 'camera_info', self._on_camera_info),
            (Image, 'segmentation', self._on_segmentation),
            (Image, 'image', self._on_image),
            (Image, 'depth', self._on_depth),
        )
        if not self.parameters.build_only:
            self._listen(inputs, self._check_inputs)

    # Callbacks of the executor's thread.

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._heard('camera_info')
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
        self._heard('image')
        self._offer(self._matcher.add_image(image_stamp_ns(message), message))

    def _on_depth(self, message: Image) -> None:
        self._heard('depth')
        self._offer(self._matcher.add_depth(image_stamp_ns(message), message))

    def _on_segmentation(self, message: Image) -> None:
        self._heard('segmentation')
        self._offer(self._matcher.add_segmentation(image_stamp_ns(message), message))

    def _offer(self, frames: FrameSet | None) -> None:
        if frames is None:
            return
        if self._intrinsics is None:
            if self._trouble.note('NO_CAMERA_INFO'):
                self.get_logger().warning(
                    f'images arrive, no usable {self._topics["camera_info"]} yet:'
                    ' nothing is tracked'
                )
            return
        job = Job(self._intrinsics, frames)
        if not frames.late_mask:
            self._newest = job
        elif self._tracking() or self._ledger.was_dropped(frames.stamp_ns):
            return
        displaced = self._worker.offer(job)
        if displaced is job or (displaced is not None and displaced.stamp_ns != job.stamp_ns):
            self._pass_over(displaced.frames)  # else it was replaced by itself, with its mask

    def _pass_over(self, frames: FrameSet | None) -> None:
        if frames is None:
            return
        if frames.segmentation is None and not self._tracking():
            self._ledger.set_aside(frames.stamp_ns)
        else:
            self._ledger.drop(frames.stamp_ns)

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
        names, silent = self._topics, self._silent_topics()
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
        for capacity in self._take_changes().values():  # the only parameter of this kind
            self._set_graph_capacity(capacity)
        self._warm_up(job.intrinsics)
        if job.frames is None:
            return
        if self._outrun(job.frames):
            self._ledger.drop(job.frames.stamp_ns)
            return
        self._follow(job.frames, self._handle(job.frames, job.intrinsics))
        if self._tracking():
            self._ledger.expect_none()  # masks serve no more

    def _follow(self, frames: FrameSet, registered: tuple[Frame, np.ndarray] | None) -> None:
        """Publish the first pose: the object may have moved on while it was registered."""
        newest = self._newest
        if registered is None:
            return
        if newest and newest.frames and newest.frames.stamp_ns > frames.stamp_ns:
            self._handle(newest.frames, newest.intrinsics)
        else:
            self._outputs.publish_pose(*registered)

    def _outrun(self, frames: FrameSet) -> bool:
        """Tell whether what is tracked was already seen in a frame as new as this one."""
        if self._last_ns is None or not self._tracking():
            return False
        return 0 <= self._last_ns - frames.stamp_ns < CLOCK_RESET_NS

    def _handle(
        self, frames: FrameSet, intrinsics: CameraIntrinsics
    ) -> tuple[Frame, np.ndarray] | None:
        """Work on a frame and publish what became of it; a pose just registered is returned."""
        self._ledger.handle(frames.stamp_ns)
        self._last_ns = frames.stamp_ns
        try:
            frame = conversions.frame_from_messages(
                frames.image, frames.depth, intrinsics, self.parameters.depth_unit_m
            )
        except RejectedMessage as error:
            self._reject(error)
            return None
        step = self._tracker.step(frame, self._mask(frames, frame))
        if self._worker.stopping:
            return None
        pose = step.estimate.camera_from_object
        if pose is not None and step.stage != 'register':
            self._outputs.publish_pose(frame, pose)
        if f'{step.stage}_ms' in ('register_ms', 'track_ms'):
            self._outputs.publish_latency(f'{step.stage}_ms', step.elapsed_ms)
        self._outputs.publish_state(step.state)
        self._settle(step.estimate.outcome.value)
        return (frame, pose) if pose is not None and step.stage == 'register' else None

    def _mask(self, frames: FrameSet, frame: Frame) -> np.ndarray | None:
        if frames.segmentation is None or self._tracking():
            return None
        try:
            label = self.parameters.mask_label
            return conversions.mask_for_frame(frames.segmentation, frame, label)
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

    def _settle(self, outcome: str) -> None:
        self.outcomes[outcome] += 1
        self._outputs.publish_outcome(outcome)
        self._outputs.publish_latency('dropped', self.dropped)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ros2 run foundationpose_trt tracker_node`."""
    return run_node(NODE_NAME, TrackerNode, arguments)


if __name__ == '__main__':
    raise SystemExit(main())
