"""The worker's side of tracker_node: what becomes of a frame."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sensor_msgs.msg import Image

from foundationpose_trt.datatypes import (
    CameraIntrinsics,
    Frame,
    Outcome,
    PoseEstimate,
    TrackingState,
)
from foundationpose_trt.pose.drawing import draw_object
from foundationpose_trt.ros import conversions
from foundationpose_trt.ros.debug_image import DebugImage
from foundationpose_trt.ros.frame_intake import FrameIntake, Job
from foundationpose_trt.ros.matcher import CLOCK_RESET_NS, FrameSet
from foundationpose_trt.ros.rejections import RejectedMessage
from foundationpose_trt.ros.tracker_factory import BuiltTracker, NamedObject
from foundationpose_trt.ros.tracker_outputs import TrackerOutputs

if TYPE_CHECKING:
    from foundationpose_trt.ros.tracker_node import TrackerNode

BACK_OFF = 3.0  # of what a failed registration took, while other objects are tracked
INACTIVE = ('INACTIVE', 'DEACTIVATED')
MOST_LABELS = 16  # more values than this are a soft mask, not objects


@dataclass(frozen=True)
class Drawing:
    """What the overlay of one image shows: camera_from_object (4, 4) by object."""

    frame: Frame
    objects: tuple[NamedObject, ...]
    poses: dict[int, np.ndarray]


class TrackerWork:
    """Tracks all objects in each frame, registers one of those sought, publishes what is found.

    All but the constructor runs in one thread at a time. intake: set before the first frame.
    """

    intake: FrameIntake | None = None

    def __init__(
        self,
        node: TrackerNode,
        built: BuiltTracker,
        outputs: TrackerOutputs,
        debug: DebugImage[Drawing],
    ) -> None:
        self.built = built
        self.group = built.group
        self._node = node
        self._outputs = outputs
        self._debug = debug
        self._warm_size: tuple[int, int] | None = None
        self._converted: tuple[FrameSet, Frame] | None = None
        self._last_ns: int | None = None  # of the frame handled last
        self._published_ns: dict[int, int] = {}  # of the last pose, by object
        self._next_object = 0
        self._tried: Image | None = None  # registered from last; a bag brings its stamp again
        self._not_before_s = 0.0  # a registration may begin, by the steady clock
        self._done_s: float | None = None  # when the last usable frame was done, by ROS time
        self._took_frame = False  # of the job in work some frame could be used
        self.retired = False  # cleanup was called: what still runs must say nothing

    @property
    def _in(self) -> FrameIntake:
        assert self.intake is not None  # frames come from it
        return self.intake

    def process(self, job: Job) -> None:
        """Work on what the intake offered."""
        if job.intrinsics is not None:
            self.warm_up(job.intrinsics)
        if self._is_over():
            return
        if job.frames is None or job.intrinsics is None:
            self._expire()
            self.publish_states()
            return
        self._took_frame = False
        self._look_for(job, job.frames)
        if self._is_over():
            return
        self._settle_rest(job)
        if not self.group.any_seeking:
            self._node.ledger.expect_none()  # masks serve no more
        if self._took_frame:
            self._done_s = self._now_s()
        else:  # frames that cannot be used hold up no timeout
            self._expire()
            self.publish_states()

    def _look_for(self, job: Job, frames: FrameSet) -> None:
        """Track what is tracked, and register one of those sought."""
        masked = self._masked(frames)
        if self._tracks_any() and self._is_news(frames):
            self._track(job)
        if self._is_over():
            return
        if masked is not None and self.group.any_seeking and self._may_register():
            self._register(Job(job.intrinsics, masked))
        elif masked is not None:
            self._node.ledger.drop(masked.stamp_ns)  # unless it was the frame just tracked in

    def _masked(self, frames: FrameSet) -> FrameSet | None:
        """Return the newest frame with a mask that was not registered from yet."""
        masked = self._in.take_masked()
        if masked is None and frames.segmentation is not None:
            masked = frames  # nothing was sought when it came, but perhaps now
        return None if masked is None or masked.image is self._tried else masked

    def _may_register(self) -> bool:
        """Whether it is time: what is tracked gets several times what a failed one took."""
        return not self._tracks_any() or time.monotonic() >= self._not_before_s

    def _is_news(self, frames: FrameSet) -> bool:
        """Tell whether what is tracked has not been seen in a frame as new as this one."""
        if frames.late_mask and self._last_ns is not None:
            return frames.stamp_ns > self._last_ns
        return not self._outrun(frames.stamp_ns)

    def _expire(self) -> None:
        """Give up what was tracked when no frame that can be used came for tracking_timeout_ms.

        By ROS time.
        """
        timeout_s = self._node.parameters.tracking_timeout_ms / 1e3
        if self._done_s is not None and 0 < timeout_s < self._now_s() - self._done_s:
            self.group.lose('TIMEOUT')

    def _now_s(self) -> float:
        return float(self._node.get_clock().now().nanoseconds * 1e-9)

    def _tracks_any(self) -> bool:
        return any(state is TrackingState.TRACKING for state in self.group.states)

    def _outrun(self, stamp_ns: int) -> bool:
        """Tell whether what is tracked was already seen in a frame as new as this one."""
        return self._last_ns is not None and 0 <= self._last_ns - stamp_ns < CLOCK_RESET_NS

    def _track(self, job: Job, only: int | None = None) -> None:
        """Track all objects in one batch and publish; only: of this object alone."""
        frame = self._begin_frame(job)
        if frame is None:
            return
        self._last_ns = frame.stamp_ns
        steps = self.group.track(frame, None if only is None else [only])
        if self._is_hushed():
            return
        self._publish_poses(frame, {index: step.estimate for index, step in steps.items()})
        tracked = [step.elapsed_ms for step in steps.values() if step.stage == 'track']
        if tracked:
            self._node.note('track_ms', tracked[0])
        outcomes = {index: step.estimate.outcome for index, step in steps.items()}
        if job.frames is not None and job.frames.segmentation is None and only is None:
            outcomes = {**dict.fromkeys(self._sought(), Outcome.NO_MASK), **outcomes}
        self._finish_frame(outcomes)

    def _register(self, job: Job) -> None:
        """Register one of the objects sought from the frame's mask; the next one next time."""
        assert job.frames is not None
        frame = self._begin_frame(job)
        if frame is None:
            return
        if self._last_ns is None or not self._outrun(frame.stamp_ns):
            self._last_ns = frame.stamp_ns
        chosen = self._choose(job.frames, frame)
        if chosen is None:
            return
        index, mask = chosen
        step = self.group.register(index, frame, mask)
        self._next_object, self._tried = index + 1, job.frames.image
        if step.estimate.outcome is not Outcome.OK:
            self._not_before_s = time.monotonic() + BACK_OFF * step.elapsed_ms / 1e3
        if self._is_hushed():
            return
        self._node.note('register_ms', step.elapsed_ms)
        self._finish_frame({index: step.estimate.outcome})
        if step.estimate.outcome is Outcome.OK:
            self._follow(frame, index, step.estimate)

    def _follow(self, frame: Frame, index: int, estimate: PoseEstimate) -> None:
        """Publish the first pose: the object may have moved on while it was registered."""
        newest = self._in.newest
        if newest is None or newest.stamp_ns is None or newest.stamp_ns == frame.stamp_ns:
            self._publish_poses(frame, {index: estimate})
        elif frame.stamp_ns - newest.stamp_ns >= CLOCK_RESET_NS:
            self.group.reset(index, 'TIME_JUMPED_BACK')  # registered in a run that is over
            self.publish_states()
        elif self._node.ledger.was_handled(newest.stamp_ns):
            self._track(newest, only=index)
        else:
            self._track(newest)

    def _choose(self, frames: FrameSet, frame: Frame) -> tuple[int, np.ndarray] | None:
        """Return the next object sought that the mask shows, and its mask."""
        objects = self.built.objects
        sought = sorted(self._sought(), key=lambda index: (index < self._next_object, index))
        empty = {}
        for index in sought:
            single = len(objects) == 1
            label = self._node.parameters.mask_label if single else objects[index].mask_label
            try:
                mask = conversions.mask_for_frame(frames.segmentation, frame, label)
            except RejectedMessage as error:
                self._node.reject(error)
                return None
            if single and label == 0:
                self._compare_labels(frames)
            if single or mask.any():  # of one object, the estimator names what is wrong
                return index, mask
            empty[index] = Outcome.EMPTY_MASK
        self._finish_frame(empty)
        return None

    def _compare_labels(self, frames: FrameSet) -> None:
        """Warn of a label image of several objects that is taken for one mask."""
        labels = conversions.mask_labels(frames.segmentation)
        if 1 < len(labels) <= MOST_LABELS and self._node.trouble.note('SEVERAL_LABELS'):
            self._node.get_logger().warning(
                f'the segmentation shows {len(labels)} objects, values {labels}, and mask_label is'
                ' 0: all are taken for the one that is tracked; set mask_label to its value'
            )

    def _sought(self) -> list[int]:
        return [k for k in range(len(self.built.objects)) if self.group.seeking(k)]

    def _settle_rest(self, job: Job) -> None:
        """A frame that was neither tracked in nor registered from."""
        stamp_ns = job.stamp_ns
        if stamp_ns is None or self._node.ledger.was_handled(stamp_ns):
            return
        if self._tracks_any():
            self._node.ledger.drop(stamp_ns)
        elif self._begin_frame(job) is not None:
            self._last_ns = stamp_ns
            self._finish_frame(dict.fromkeys(self._sought(), Outcome.NO_MASK))

    def _begin_frame(self, job: Job) -> Frame | None:
        """Count a frame as handled and convert it; None if it cannot be used."""
        frames = job.frames
        assert frames is not None and job.intrinsics is not None
        if not self._node.ledger.was_handled(frames.stamp_ns):
            self._node.note_handled()
        self._node.ledger.handle(frames.stamp_ns)
        if self._converted is not None and self._converted[0].image is frames.image:
            self._took_frame = True
            return self._converted[1]  # tracked in just now, now to be registered from
        try:
            frame = conversions.frame_from_messages(
                frames.image, frames.depth, job.intrinsics, self._node.parameters.depth_unit_m,
                self.built.empty_image,
            )  # fmt: skip
        except RejectedMessage as error:
            self._node.reject(error)
            return None
        self._converted, self._took_frame = (frames, frame), True
        self._compare_frame_ids(frames)
        return frame

    def _compare_frame_ids(self, frames: FrameSet) -> None:
        depth, color = frames.depth.header.frame_id, frames.image.header.frame_id
        if depth != color and self._node.trouble.note('FRAME_IDS_DIFFER'):
            self._node.get_logger().warning(
                f"depth is in frame '{depth}', the image in '{color}': poses are wrong unless it"
                ' is registered to the colour image (align_depth, depth_registration), whatever'
                ' its frame is called'
            )

    def _publish_poses(self, frame: Frame, estimates: dict[int, PoseEstimate]) -> None:
        found = {
            index: estimate
            for index, estimate in estimates.items()
            if estimate.camera_from_object is not None and not self._is_out(index, frame.stamp_ns)
        }
        self._published_ns |= dict.fromkeys(found, frame.stamp_ns)
        self._outputs.publish_poses(frame, found)
        poses = {
            index: estimate.camera_from_object
            for index, estimate in found.items()
            if estimate.camera_from_object is not None
        }
        self._debug.offer(Drawing(frame, self.built.objects, poses))

    def _is_out(self, index: int, stamp_ns: int) -> bool:
        """Whether a pose of this stamp or a newer one was published: stamps never go back."""
        last_ns = self._published_ns.get(index)
        return last_ns is not None and 0 <= last_ns - stamp_ns < CLOCK_RESET_NS

    def _finish_frame(self, outcomes: dict[int, Outcome]) -> None:
        for index, outcome in outcomes.items():
            self._node.outcomes[outcome.value] += 1
            self._outputs.publish_outcome(outcome.value, index)
        self.publish_states()
        upload_ms = self.built.upload_ms()
        if upload_ms is not None:
            self._node.note('upload_ms', upload_ms)
        self._node.note('dropped', self._node.dropped)

    def warm_up(self, intrinsics: CameraIntrinsics) -> None:
        """Run the real path once for a size of image, unless that was done."""
        size = (intrinsics.height, intrinsics.width)
        if self._warm_size == size:
            return
        start_s = time.monotonic()
        self.built.warm_up(intrinsics)
        self._warm_size = size
        elapsed_s = time.monotonic() - start_s
        self._node.note('warm_up_ms', elapsed_s * 1e3)
        self._node.get_logger().info(f'warm for {size[1]}x{size[0]} after {elapsed_s:.2f} s')

    def publish_states(self) -> None:
        """Publish the states that changed; while paused that is what they say."""
        self._outputs.publish_states(*zip(*self._states(), strict=True))

    def told(self) -> list[tuple[str, str]]:
        """State and reason of each object, as the topics `state` have them."""
        return self._states() if self._node.active else [INACTIVE] * len(self.built.objects)

    def _states(self) -> list[tuple[str, str]]:
        states = [state.value for state in self.group.states]
        if self._node.paused:
            return [('PAUSED', state) for state in states]
        return list(zip(states, self.group.reasons, strict=True))

    def publish_inactive(self) -> None:
        """Publish that nothing is tracked any more."""
        count = len(self.built.objects)
        self._outputs.publish_states(*zip(*[INACTIVE] * count, strict=True))

    def _is_hushed(self) -> bool:
        """Whether what was just found must not go out: an end, a pause or a reset came."""
        return self._is_over() or self._node.interrupted

    def _is_over(self) -> bool:
        """Whether nothing must go out any more: the publishers may be gone."""
        return self.retired or self._node.stopping


def drawn(drawing: Drawing) -> tuple[Image, float]:
    """Return the image with boxes and axes of the objects, and how many ms drawing took."""
    start_s = time.perf_counter()
    frame = drawing.frame
    image = frame.rgb.copy()
    for index, pose in drawing.poses.items():
        mesh = drawing.objects[index].mesh
        if mesh is not None:
            draw_object(image, frame.intrinsics, mesh, pose)
    header = conversions.header_message(frame.stamp_ns, frame.frame_id)
    message = conversions.image_message(image, 'rgb8', header)
    return message, (time.perf_counter() - start_s) * 1e3
