"""ROS node: colour images in, a label image and detections out.

Callbacks only put the newest image into the worker's slot; conversion, detection and publishing
happen in the worker thread, drawing in another.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sensor_msgs.msg import Image

from foundationpose_trt.detection.detector import Detector
from foundationpose_trt.detection.overlay import draw_detections
from foundationpose_trt.detection.postprocess import Detections
from foundationpose_trt.ros import conversions
from foundationpose_trt.ros.dds import announced_but_silent
from foundationpose_trt.ros.debug_image import DebugImage
from foundationpose_trt.ros.detector_factory import BuiltDetector, build_detector
from foundationpose_trt.ros.detector_outputs import LATENCIES, DetectorOutputs
from foundationpose_trt.ros.detector_parameters import DetectorParameters
from foundationpose_trt.ros.image_node import ImageNode, image_stamp_ns
from foundationpose_trt.ros.matcher import NewestMatcher
from foundationpose_trt.ros.rejections import RejectedMessage, Rejection
from foundationpose_trt.ros.running import run_node
from foundationpose_trt.ros.runtime_figures import gpu_memory, graph_figures
from foundationpose_trt.ros.throttle import RateLimit

NODE_NAME = 'detector_node'
OK, NOTHING_FOUND = 'OK', 'NOTHING_FOUND'


@dataclass(frozen=True)
class Job:
    """One image with its depth, where that is used; without an image: the call to warm up."""

    image: Image | None = None
    depth: Image | None = None


@dataclass(frozen=True)
class Drawing:
    """What the overlay of one image shows."""

    image: Image
    detections: Detections
    names: list[str]
    labels: np.ndarray


class DetectorNode(ImageNode):
    """Subscribes image (and depth, for a model without masks); publishes segmentation, detections.

    build: makes the detector from the parameters and a function that it tells the progress of
    engine builds. Raises ValueError naming the parameter when something is wrong before the first
    image.
    """

    latency_names = LATENCIES
    prefix = 'detector_'

    def __init__(
        self, build: Callable[..., BuiltDetector] = build_detector, **options: Any
    ) -> None:
        self._build_detector = build
        self._detector: Detector | None = None
        self._outputs: DetectorOutputs | None = None
        self._debug: DebugImage[Drawing] | None = None
        super().__init__(NODE_NAME, DetectorParameters, **options)

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

    def _make(self) -> None:
        p = self.parameters
        built = self._build_detector(p, self._build_reports())
        self.get_logger().info(f'detecting with {built.description}')
        self._detector = built.detector
        self._description = built.description
        self._classes = built.detector.manifest.classes
        self._wants_depth = not built.detector.manifest.masks
        self._has_depth = False  # somebody publishes it
        self._rate = RateLimit(p.max_rate_hz)
        self._outputs = DetectorOutputs(self, self.note)
        self._debug = DebugImage(self, p.publish_debug, self._draw, 'debug/image')
        if 0 not in (p.warm_up_height, p.warm_up_width):
            start_s = time.monotonic()
            built.detector.warm_up(p.warm_up_height, p.warm_up_width)
            elapsed_s = time.monotonic() - start_s
            self.note('detector_warm_up_ms', elapsed_s * 1e3)
            self.get_logger().info(f'warm after {elapsed_s:.2f} s')

    def _drop(self) -> None:
        self._detector = None
        outputs, self._outputs = self._outputs, None
        debug, self._debug = self._debug, None
        for part in (outputs, debug):
            if part is not None:
                part.destroy()

    def _begin(self) -> None:
        slop_ns = round(self.parameters.sync_slop_ms * 1e6)
        self._matcher = NewestMatcher(slop_ns, counts=self._halves)
        super()._begin()

    def _inputs(self) -> list[tuple[type, str, Callable]]:
        inputs: list[tuple[type, str, Callable]] = [(Image, 'image', self._on_image)]
        if self._wants_depth:
            inputs.append((Image, 'depth', self._on_depth))
        return inputs

    # Callbacks of the executor's thread.

    def _on_image(self, message: Image) -> None:
        self._heard('image')
        if self._wants_depth and not self._has_depth:
            self._has_depth = self.count_publishers(self._topics['depth']) > 0
        if not self._has_depth:
            self._offer(Job(message))
            return
        frames = self._matcher.add_image(image_stamp_ns(message), message)
        if frames is not None:
            self._offer(Job(frames.image, frames.depth))

    def _on_depth(self, message: Image) -> None:
        self._heard('depth')
        self._has_depth = True
        frames = self._matcher.add_depth(image_stamp_ns(message), message)
        if frames is not None:
            self._offer(Job(frames.image, frames.depth))

    def _offer(self, job: Job) -> None:
        assert job.image is not None and self._worker is not None
        if self._is_stale(image_stamp_ns(job.image)):
            return
        if not self._rate.lets_through(time.monotonic()):
            self._drops['over_rate'] += 1
            return
        self.ledger.meet(image_stamp_ns(job.image))
        displaced = self._worker.offer(job)
        if displaced is not None and displaced.image is not None:
            self.ledger.drop(image_stamp_ns(displaced.image))

    def _prefer(self, new: Job, pending: Job) -> bool:
        """Any image beats none, which only has changes of parameters put in force."""
        return new.image is not None or pending.image is None

    def _check_inputs(self) -> None:
        if self._worker is not None:
            self._worker.offer(Job(None))
        self._warn_of_gone(('image',))
        self._warn_of_standing_clock()
        names, silent = self._topics, self._silent_topics()
        for topic, name in names.items():
            if silent[topic] and self.trouble.note(f'SILENT_{topic}'):
                self.get_logger().warning(
                    announced_but_silent(name, self._silence.after_s, not all(silent.values()))
                )
        if not self._wants_depth:
            return
        self._has_depth = self.count_publishers(names['depth']) > 0
        mismatch = self._matcher.never_matching()
        if mismatch and self._has_depth and self.trouble.note('STAMPS_NEVER_MATCH'):
            self.get_logger().warning(mismatch)
        if not self._has_depth and self.outcomes[OK] and self.trouble.note('NO_DEPTH'):
            self.get_logger().warning(
                f'nobody publishes {names["depth"]} and the model has no masks: the segmentation'
                ' is whole boxes, background included'
            )

    # The worker's thread.

    def _process(self, job: Job) -> None:
        self._apply(self._take_changes())
        if job.image is None:
            return
        self.ledger.handle(image_stamp_ns(job.image))
        self.note_handled()
        start_s = time.perf_counter()
        try:
            detections, labels = self._detect(job.image, job.depth)
        except RejectedMessage as error:
            self.reject(error)
            return
        if self.stopping or self._outputs is None or self._debug is None:
            return
        self.note('detector_ms', (time.perf_counter() - start_s) * 1e3)
        upload_ms = self._detecting.upload_timer.take_ms()
        if upload_ms is not None:
            self.note('detector_upload_ms', upload_ms)
        names = [str(self._classes[column]) for column in detections.columns]
        self._outputs.publish_found(detections, names, labels, job.image.header)
        self._settle(OK if len(detections) else NOTHING_FOUND)
        self._debug.offer(Drawing(job.image, detections, names, labels))

    def _detect(self, message: Image, depth: Image | None) -> tuple[Detections, np.ndarray]:
        image = conversions.color_image(message)
        size = (image.height, image.width)
        depth_m = None
        if depth is not None:
            depth_m = conversions.depth_m_array(depth, self.parameters.depth_unit_m)
            if depth_m.shape != size:
                raise RejectedMessage(
                    Rejection.SIZE_MISMATCH,
                    f'depth is {depth_m.shape[1]}x{depth_m.shape[0]}, the image {size[1]}x'
                    f'{size[0]}: publish depth registered to the colour image',
                )
        found = self._detecting.detect(image)
        if found.labels is not None:
            return found.detections, found.labels
        band_m = self.parameters.depth_band_m
        labels = self._detecting.labels_from_boxes(found.detections, size, depth_m, band_m)
        return found.detections, labels

    def _apply(self, changed: set[str]) -> None:
        p = self.parameters
        if 'confidence_threshold' in changed:
            self._detecting.set_threshold(p.confidence_threshold)
        if 'max_rate_hz' in changed:
            self._rate = RateLimit(p.max_rate_hz)
        if 'cuda_graph_cache_capacity' in changed:
            self._detecting.set_cuda_graph_cache_capacity(p.cuda_graph_cache_capacity)
        if 'sync_slop_ms' in changed:
            self._matcher.slop_ns = round(p.sync_slop_ms * 1e6)
        if 'publish_debug' in changed and self._debug is not None:
            self._debug.enabled = p.publish_debug

    @property
    def _detecting(self) -> Detector:
        assert self._detector is not None  # only between configure and cleanup
        return self._detector

    def _settle(self, outcome: str) -> None:
        self.outcomes[outcome] += 1
        if self._outputs is not None:
            self._outputs.publish_outcome(outcome)
        self.note('detector_dropped', self.dropped)

    # The drawing thread.

    def _draw(self, drawing: Drawing) -> Image | None:
        start_s = time.perf_counter()
        try:
            rgb = conversions.rgb_array(drawing.image)
        except RejectedMessage as error:  # the detector reads some that only a library converts
            if self.trouble.note('NO_OVERLAY'):
                self.get_logger().warning(f'no debug/image: {error}')
            return None
        drawn = draw_detections(
            rgb, drawing.detections, drawing.names, drawing.labels, self._detecting.object_columns
        )
        message = conversions.image_message(drawn, 'rgb8', drawing.image.header)
        self.note('detector_visualize_ms', (time.perf_counter() - start_s) * 1e3)
        return message

    def _backend(self) -> dict[str, Any]:
        detector = self._detector
        if detector is None:
            return {}
        stats = detector.stats()
        figures = graph_figures([] if stats is None else [stats])
        return {'backend': self._description, **figures, **gpu_memory(detector.device)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ros2 run foundationpose_trt detector_node`."""
    return run_node(NODE_NAME, DetectorNode, arguments)


if __name__ == '__main__':
    raise SystemExit(main())
