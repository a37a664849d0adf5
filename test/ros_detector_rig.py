"""A detector_node on a detector whose network gives fixed boxes, and a peer that feeds it."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
from detector_rig import sample_image
from rclpy.parameter import Parameter
from ros_rig import MS, RELIABLE, WAIT_S, Bench
from sensor_msgs.msg import Image
from std_msgs.msg import Float32, Header, String

from foundationpose_trt.detection.detector import Detector
from foundationpose_trt.ros import conversions
from foundationpose_trt.ros.detector_factory import BuiltDetector, build_detector
from foundationpose_trt.ros.detector_node import DetectorNode
from foundationpose_trt.ros.detector_outputs import LATENCIES

HEIGHT, WIDTH = 48, 64
START_NS = 7_000_000_123


class HeldDetector(Detector):
    """Notes what it was given; while `hold` is set a call waits for `permits`."""

    hold = False
    permits: threading.Semaphore
    seen: list[tuple[int, int]]

    def detect(self, image, mark=lambda stage: None):
        self.seen.append((image.height, image.width))
        if self.hold:
            assert self.permits.acquire(timeout=WAIT_S)
        return super().detect(image, mark)


def build_held(parameters, report) -> BuiltDetector:
    built = build_detector(parameters, report)
    built.detector.__class__ = HeldDetector
    built.detector.seen, built.detector.permits = [], threading.Semaphore(0)
    return built


class NotingNode(DetectorNode):
    """Counts what arrived, so that a test can wait for its own message."""

    arrived = 0

    def _on_image(self, message):
        super()._on_image(message)
        self.arrived += 1

    def _on_depth(self, message):
        super()._on_depth(message)
        self.arrived += 1


class DetectorBench(Bench):
    """model: folder of a detector. `send` publishes an image and lets the node take it."""

    def __init__(self, model: Path, depth: bool = False, connect: bool = True, **parameters):
        overrides = [Parameter('model', value=str(model)), Parameter('device', value='cpu')]
        overrides += [Parameter(name, value=value) for name, value in parameters.items()]
        super().__init__(
            lambda context: NotingNode(build_held, context=context, parameter_overrides=overrides)
        )
        self.node.start()
        self.detector = self.node._detector
        if connect:
            self.listen('segmentation', Image, RELIABLE)
            self.listen('detector_outcome', String, RELIABLE)
            for name in LATENCIES:
                self.listen(f'latency/{name}', Float32, RELIABLE)
            self.publish_on({'image': Image, **({'depth': Image} if depth else {})})

    def send(self, topic, stamp_ns, **changes):
        header = Header(stamp=conversions.stamp_message(stamp_ns), frame_id='left_optical')
        message = self.message(topic, header)
        for name, value in changes.items():
            setattr(message, name, value)
        expected = self.node.arrived + 1
        self.out[topic].publish(message)
        self.until(lambda: self.node.arrived == expected)

    def message(self, topic, header):
        if topic == 'image':
            return conversions.image_message(sample_image(HEIGHT, WIDTH), 'bgr8', header)
        depth_mm = np.full((HEIGHT, WIDTH), 2000, np.uint16)  # a wall
        depth_mm[:, : WIDTH // 2] = 700  # an object before its left half
        return conversions.image_message(depth_mm, '16UC1', header)

    def outcomes(self):
        return self.values('detector_outcome')

    def labels(self):
        return [conversions.pixel_view(m, np.dtype('u1'), 1) for m in self.heard['segmentation']]

    def close(self):
        if self.detector is not None:
            self.detector.permits.release(1000)
        super().close()


def stamp_of(index: int) -> int:
    """Of the image of this index, 30 per second."""
    return START_NS + index * 33 * MS
