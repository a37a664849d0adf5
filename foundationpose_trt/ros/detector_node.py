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

from foundationpose_trt.detection.overlay import draw_detections
from foundationpose_trt.detection.postprocess import Detections
from foundationpose_trt.ros import conversions
from foundationpose_trt.ros.dds import announced_but_silent
from foundationpose_trt.ros.debug_image import DebugImage
from foundationpose_trt.ros.detector_factory import BuiltDetector, build_detector
from foundationpose_trt.ros.detector_outputs import DetectorOutputs
from foundationpose_trt.ros.detector_parameters import DetectorParameters
from foundationpose_trt.ros.image_node import ImageNode, image_stamp_ns
from foundationpose_trt.ros.matcher import NewestMatcher
from foundationpose_trt.ros.rejections import RejectedMessage, Rejection
from foundationpose_trt.ros.running import run_node
from foundationpose_trt.ros.throttle import RateLimit
from foundationpose_trt.ros.worker import NewestWorker

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

    def __init__(
        self, build: Callable[..., BuiltDetector] = build_detector, **options: Any
    ) -> None:
        super().__init__(NODE_NAME, DetectorParameters, **options)
        built = build(self.parameters, self._build_reports())
        self.get_logger().info(f'detecting with {built.description}')
        self._detector = built.detector
        self._classes = built.detector.manifest.classes
        self._warm = False
        self._rate = RateLimit(self.parameters.max_rate_hz)
        self._matcher = NewestMatcher(round(self.parameters.sync_slop_ms * 1e6))
        self._wants_depth = not built.detector.manifest.masks
        self._has_depth = False  # somebody publishes it
        self._outputs = DetectorOutputs(self)
        self._debug = DebugImage(self, self.parameters.publish_debug, self._draw)
        self._worker: NewestWorker[Job] = NewestWorker(self._process)
        self._worker.start()
        if self.parameters.build_only:
            return
        inputs: list[tuple[type, str, Callable]] = [(Image, 'image', self._on_image)]
        if self._wants_depth:
            inputs.append((Image, 'depth', self._on_depth))
        self._listen(inputs, self._check_inputs)
        self._worker.offer(Job())

    def finished(self) -> bool:
        """As ImageNode's; the thread that draws is watched too."""
        self._debug.raise_failure()
        return super().finished()

    def close(self) -> bool:
        """As ImageNode's; the thread that draws ends too."""
        drawn = self._debug.stop()
        return super().close() and drawn

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
        if not self._rate.lets_through(time.monotonic()):
            return
        displaced = self._worker.offer(job)
        if displaced is not None and displaced.image is not None:
            self._ledger.drop(image_stamp_ns(displaced.image))

    def _check_inputs(self) -> None:
        names, silent = self._topics, self._silent_topics()
        for topic, name in names.items():
            if silent[topic] and self._trouble.note(f'SILENT_{topic}'):
                self.get_logger().warning(
                    announced_but_silent(name, self._silence.after_s, not all(silent.values()))
                )
        if not self._wants_depth:
            return
        self._has_depth = self.count_publishers(names['depth']) > 0
        mismatch = self._matcher.never_matching()
        if mismatch and self._has_depth and self._trouble.note('STAMPS_NEVER_MATCH'):
            self.get_logger().warning(mismatch)
        if not self._has_depth and self.outcomes[OK] and self._trouble.note('NO_DEPTH'):
            self.get_logger().warning(
                f'nobody publishes {names["depth"]} and the model has no masks: the segmentation'
                ' is whole boxes, background included'
            )

    # The worker's thread.

    def _process(self, job: Job) -> None:
        self._apply(self._take_changes())
        self._warm_up()
        if job.image is None:
            return
        self._ledger.handle(image_stamp_ns(job.image))
        start_s = time.perf_counter()
        try:
            detections, labels = self._detect(job.image, job.depth)
        except RejectedMessage as error:
            self._reject(error)
            return
        if self._worker.stopping:
            return
        self._outputs.publish_latency('detector_ms', (time.perf_counter() - start_s) * 1e3)
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
        found = self._detector.detect(image)
        if found.labels is not None:
            return found.detections, found.labels
        band_m = self.parameters.depth_band_m
        labels = self._detector.labels_from_boxes(found.detections, size, depth_m, band_m)
        return found.detections, labels

    def _apply(self, changes: dict[str, Any]) -> None:
        for name, value in changes.items():
            if name == 'confidence_threshold':
                self._detector.set_threshold(value)
            elif name == 'max_rate_hz':
                self._rate = RateLimit(value)
            elif name == 'cuda_graph_cache_capacity':
                self._detector.set_cuda_graph_cache_capacity(value)
            else:
                self._debug.enabled = value

    def _warm_up(self) -> None:
        height, width = self.parameters.warm_up_height, self.parameters.warm_up_width
        if self._warm or 0 in (height, width):
            return
        start_s = time.monotonic()
        self._detector.warm_up(height, width)
        self._warm = True
        self.get_logger().info(f'warm after {time.monotonic() - start_s:.2f} s')

    def _settle(self, outcome: str) -> None:
        self.outcomes[outcome] += 1
        self._outputs.publish_outcome(outcome)
        self._outputs.publish_latency('detector_dropped', self.dropped)

    # The drawing thread.

    def _draw(self, drawing: Drawing) -> Image:
        start_s = time.perf_counter()
        rgb = conversions.rgb_array(drawing.image)
        drawn = draw_detections(
            rgb, drawing.detections, drawing.names, drawing.labels, self._detector.object_columns
        )
        message = conversions.image_message(drawn, 'rgb8', drawing.image.header)
        self._outputs.publish_latency('visualize_ms', (time.perf_counter() - start_s) * 1e3)
        return message


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `ros2 run foundationpose_trt detector_node`."""
    return run_node(NODE_NAME, DetectorNode, arguments)


if __name__ == '__main__':
    raise SystemExit(main())
