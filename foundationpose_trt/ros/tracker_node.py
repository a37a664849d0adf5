"""ROS node: RGB-D images and a mask in, the tracked poses of one or several objects out.

Callbacks only match stamps and put the newest frame into the worker's slot; conversion,
registration, tracking and publishing happen in the worker thread, drawing in another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo, Image

from foundationpose_trt.datatypes import CameraIntrinsics, TrackingState
from foundationpose_trt.latency import Level
from foundationpose_trt.ros import conversions
from foundationpose_trt.ros.dds import announced_but_silent
from foundationpose_trt.ros.debug_image import DebugImage
from foundationpose_trt.ros.frame_intake import FrameIntake, Job, prefer_newest
from foundationpose_trt.ros.image_node import ImageNode, image_stamp_ns
from foundationpose_trt.ros.latencies import status
from foundationpose_trt.ros.matcher import FrameSet, NewestMatcher
from foundationpose_trt.ros.parameters import (
    current,
    declare_fields,
    given_parameters,
    prefixed,
    read,
)
from foundationpose_trt.ros.rejections import RejectedMessage
from foundationpose_trt.ros.running import run_node
from foundationpose_trt.ros.tracker_factory import BuiltTracker, build_tracker
from foundationpose_trt.ros.tracker_outputs import LATENCIES, TrackerOutputs
from foundationpose_trt.ros.tracker_parameters import (
    ObjectParameters,
    TrackerParameters,
    check_names,
)
from foundationpose_trt.ros.tracker_services import REGISTER, RESET, TrackerServices
from foundationpose_trt.ros.tracker_work import Drawing, TrackerWork, drawn
from foundationpose_trt.ros.transforms import TransformOutput

NODE_NAME = 'tracker_node'

REPEATED_IN_A_CHECK = 5  # now and then a driver sends an image twice


class TrackerNode(ImageNode):
    """Subscribes image, depth, camera_info, segmentation; publishes pose, state, latency/*.

    build: makes the tracker from the parameters, those of the objects by name, and a function
    that it tells the progress of engine builds (tests give another).
    """

    latency_names = LATENCIES

    def __init__(self, build: Callable[..., BuiltTracker] = build_tracker, **options: Any) -> None:
        self._build_tracker = build
        self._work: TrackerWork | None = None
        self._outputs: TrackerOutputs | None = None
        self._requests: TrackerServices | None = None
        self._debug: DebugImage[Drawing] | None = None
        self._intake: FrameIntake | None = None
        self._transforms: TransformOutput | None = None  # once: a broadcaster cannot be undone
        self._declaring: Any = None  # a timer, while named objects wait for their parameters
        super().__init__(NODE_NAME, TrackerParameters, **options)
        with suppress(ValueError):  # configure says what is wrong with the names
            self._declare_objects()

    def finished(self) -> bool:
        """As ImageNode's; the thread that draws is watched too."""
        if self._debug is not None:
            self._debug.raise_failure()
        return super().finished()

    def close(self, timeout_s: float = 0.0) -> bool:
        """As ImageNode's; the thread that draws ends too."""
        drawn = self._debug is None or self._debug.stop(0.0)
        return super().close(timeout_s) and drawn

    # Transitions.

    def _build(self) -> None:
        self._declare_objects()
        fields = [field.name for field in dataclasses.fields(ObjectParameters)]
        given = {
            name
            for name in given_parameters(self)
            if name.partition('.')[0] in self.parameters.objects
        }
        for name in sorted(given - self._nested):
            self.get_logger().warning(
                f'parameter {name} is unknown and has no effect: an object has {", ".join(fields)}'
            )
        super()._build()

    def _declare_objects(self) -> None:
        """Declare the parameters of each object named; raises ValueError for names that cannot."""
        names = tuple(current(self, 'objects') or ())
        check_names(names)
        self._nested = set()
        for name in names:
            declare_fields(self, ObjectParameters, name, fixed=False)
            fields = dataclasses.fields(ObjectParameters)
            self._nested |= {prefixed(name, field.name) for field in fields}

    def _on_set_parameters(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        """As ManagedNode's; objects that are named while unconfigured get their parameters."""
        result = super()._on_set_parameters(parameters)
        named = [p.value for p in parameters if p.name == 'objects']
        if not named or self.configured or not result.successful:
            return result
        try:
            check_names(tuple(named[-1] or ()))
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        # once this callback has returned, and the names are in force
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # with no /clock, ROS time stands still
        self._declaring = self._declaring or self.create_timer(
            0.001, self._declare_named, clock=steady
        )
        return result

    def _declare_named(self) -> None:
        timer, self._declaring = self._declaring, None
        self.destroy_timer(timer)
        with suppress(ValueError):  # configure says what is wrong with the values
            self._declare_objects()

    def _nested_prefixes(self) -> set[str]:
        return set(current(self, 'objects') or ())

    def _make(self) -> None:
        p = self.parameters
        nested = {name: read(self, ObjectParameters, name) for name in p.objects}
        built = self._build_tracker(p, nested, self._build_reports())
        self.get_logger().info(f'tracking {built.description}')
        self._transforms = self._transforms or TransformOutput(self)
        self._transforms.enabled = p.publish_tf
        self._outputs = TrackerOutputs(self, built.objects, self.note, self._transforms)
        self._debug = DebugImage(self, p.publish_debug, self._draw, 'debug/pose')
        built.group.clock_s = lambda: self.get_clock().now().nanoseconds * 1e-9
        self._work = TrackerWork(self, built, self._outputs, self._debug)
        if 0 not in (p.warm_up_width, p.warm_up_height):
            self._work.warm_up(supposed_camera(p.warm_up_width, p.warm_up_height))

    def _drop(self) -> None:
        if self._work is not None:
            self._work.retired = True
        self._work = self._intake = None
        outputs, self._outputs = self._outputs, None
        debug, self._debug = self._debug, None
        for part in (outputs, debug):
            if part is not None:
                part.destroy()

    def _begin(self) -> None:
        p = self.parameters
        slop_ns = round(p.sync_slop_ms * 1e6)
        matcher = NewestMatcher(slop_ns, p.mask_history_frames, self._halves)
        self._repeated = self._repeats()  # until the last check
        self._intake = FrameIntake(matcher, self.ledger, self._is_seeking, self._offer)
        self._working.intake = self._intake
        self._requests = TrackerServices(self, self._intake.wake)
        self._working.publish_states()
        super()._begin()

    def _end(self) -> bool:
        if self._worker is not None:
            self._worker.stop(0.0)  # before a pause or a reset is forgotten
        services, self._requests = self._requests, None
        if services is not None:
            services.destroy()
        ended = super()._end()
        if ended and self._work is not None and self._intake is not None:
            self._work.group.reset()  # no start for a frame of who knows when
            self._work.publish_inactive()
        return ended

    @property
    def paused(self) -> bool:
        """Whether ~/pause was called: no frame is taken."""
        requests = self._requests  # another thread may put it away
        return requests is not None and requests.paused

    @property
    def interrupted(self) -> bool:
        """Whether a pause or a reset was granted since the frame in work began."""
        requests = self._requests
        return requests is not None and requests.interrupts

    def _inputs(self) -> Iterable[tuple[type, str, Callable]]:
        return (
            (CameraInfo, 'camera_info', self._on_camera_info),
            (Image, 'segmentation', self._on_segmentation),
            (Image, 'image', self._on_image),
            (Image, 'depth', self._on_depth),
        )

    # Callbacks of the executor's thread.

    def _on_camera_info(self, message: CameraInfo) -> None:
        self._heard('camera_info')
        try:
            intrinsics = conversions.intrinsics_from_message(message)
        except RejectedMessage as error:
            self.reject(error)
            return
        before, self._in.intrinsics = self._in.intrinsics, intrinsics
        if before != intrinsics and (doubt := conversions.doubt_of_camera_info(message)):
            self.get_logger().warning(doubt)
        if before is None:
            self._in.wake()  # to warm up for this size

    def _on_image(self, message: Image) -> None:
        self._heard('image')
        self._put(self._in.matcher.add_image(image_stamp_ns(message), message))

    def _on_depth(self, message: Image) -> None:
        self._heard('depth')
        self._put(self._in.matcher.add_depth(image_stamp_ns(message), message))

    def _on_segmentation(self, message: Image) -> None:
        self._heard('segmentation')
        self._put(self._in.matcher.add_segmentation(image_stamp_ns(message), message))

    def _put(self, frames: FrameSet | None) -> None:
        if frames is None:
            return
        if self.paused:
            self._drops['paused'] += 1
        elif self._in.intrinsics is None:
            self._drops['no_camera_info'] += 1
            if self.trouble.note('NO_CAMERA_INFO'):
                self.get_logger().warning(
                    f'images arrive, no usable {self._topics["camera_info"]} yet:'
                    ' nothing is tracked'
                )
        elif frames.late_mask or not self._is_stale(frames.stamp_ns):
            self._in.put(frames, self._in.intrinsics)

    @property
    def _in(self) -> FrameIntake:
        assert self._intake is not None  # callbacks come while the node is active
        return self._intake

    @property
    def _working(self) -> TrackerWork:
        assert self._work is not None  # only between configure and cleanup
        return self._work

    def _offer(self, job: Job) -> Job | None:
        return self._worker.offer(job) if self._worker is not None else job

    def _idle(self) -> Job:
        """What is tracked expires without frames too, and while the executor is held up."""
        intake = self._intake
        return Job(intake.intrinsics if intake is not None else None)

    def _prefer(self, new: Job, pending: Job) -> bool:
        return prefer_newest(new, pending)

    def _is_seeking(self) -> bool:
        return bool(self._working.group.any_seeking)

    def _check_inputs(self) -> None:
        mismatch = self._in.matcher.never_matching()
        if mismatch and self.trouble.note('STAMPS_NEVER_MATCH'):
            self.get_logger().warning(mismatch)
        self._warn_of_gone(('image', 'depth', 'camera_info'))
        self._warn_of_standing_clock()
        self._warn_of_standing_stamps()
        names, silent = self._topics, self._silent_topics()
        for topic in ('image', 'depth'):
            if silent[topic] and self.trouble.note(f'SILENT_{topic}'):
                after_s = self._silence.after_s
                info = self._in.intrinsics is not None and not silent['camera_info']
                self.get_logger().warning(announced_but_silent(names[topic], after_s, info))
        seeking = self._in.intrinsics is not None and self._is_seeking()
        unmasked = seeking and self.count_publishers(names['segmentation']) == 0
        if unmasked and self.trouble.note('NO_SEGMENTATION'):
            self.get_logger().warning(
                f'searching, but nobody publishes {names["segmentation"]}: registration needs a'
                ' mask with the stamp of its image'
            )

    def _warn_of_standing_stamps(self) -> None:
        repeated = self._repeats()
        more, self._repeated = repeated - self._repeated, repeated
        if more >= REPEATED_IN_A_CHECK and self.trouble.note('STAMPS_REPEATED'):
            self.get_logger().warning(
                f'{more} images came within a second whose stamp is that of the one before: they'
                ' are dropped; does the driver stamp every image, and is /clock running?'
            )

    def _repeats(self) -> int:
        """How many images came with the stamp of the one before."""
        return self._halves['image_repeated'] + self._halves['depth_repeated']

    # The worker's thread.

    def _process(self, job: Job) -> None:
        self._obey()
        if self.stopping:
            return
        if self.paused:
            self._drops['paused'] += job.frames is not None
            self._in.take_masked()  # no start for a registration after the pause
            self._working.publish_states()
        else:
            self._working.process(job)

    def _obey(self) -> None:
        """Put in force what was set and asked for since the last frame."""
        if self._take_changes():
            p = self.parameters
            self._working.built.apply(p)
            self._in.matcher.slop_ns = round(p.sync_slop_ms * 1e6)
            if self._outputs is not None and self._debug is not None:
                self._outputs.transforms.enabled = p.publish_tf
                self._debug.enabled = p.publish_debug
        requests = self._requests
        asked = requests.take() if requests is not None else set()
        if RESET in asked:
            self._working.group.reset()
        if REGISTER in asked:
            self._working.group.request_registration()
        if asked:
            self._working.publish_states()

    def _settle(self, outcome: str) -> None:
        self.outcomes[outcome] += 1
        if self._outputs is not None:
            self._outputs.publish_outcome(outcome)
        self.note('dropped', self.dropped)

    # The drawing thread.

    def _draw(self, drawing: Drawing) -> Image:
        message, elapsed_ms = drawn(drawing)
        self.note('visualize_ms', elapsed_ms)
        return message

    # The reporting thread.

    def _backend(self) -> dict[str, Any]:
        return self._work.built.runtime() if self._work is not None else {}

    def _object_statuses(self) -> list[DiagnosticStatus]:
        if self._work is None:
            return []
        tracking = TrackingState.TRACKING.value
        return [
            status(
                self, f'object {one.name}', {'state': state, 'reason': reason},
                Level.OK if state == tracking else Level.WARN, f'{state}: {reason}',
            )
            for one, (state, reason) in zip(
                self._work.built.objects, self._work.told(), strict=True
            )
        ]  # fmt: skip


def supposed_camera(width: int, height: int) -> CameraIntrinsics:
    """Return a camera of a size with about 60 degrees of view, to warm up with."""
    return CameraIntrinsics(width, width, (width - 1) / 2, (height - 1) / 2, width, height)


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ros2 run foundationpose_trt tracker_node`."""
    return run_node(NODE_NAME, TrackerNode, arguments)


if __name__ == '__main__':
    raise SystemExit(main())
