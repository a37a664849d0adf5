"""Detections as vision_msgs/Detection2DArray, where that package is installed.

Fields as in vision_msgs 4 (Humble to Lyrical): a box's centre is a Pose2D with a position.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from std_msgs.msg import Header

from foundationpose_trt.detection.postprocess import Detections


def vision_messages() -> ModuleType | None:
    """Return vision_msgs.msg, or None where it is not installed."""
    try:
        return importlib.import_module('vision_msgs.msg')
    except ImportError:
        return None


def detection_array(
    messages: ModuleType, detections: Detections, names: list[str], header: Header
) -> Any:
    """Return all detections, best first, as a Detection2DArray; empty: looked and saw nothing.

    names: the class of each; boxes in pixels, an edge of the image being 0.
    """
    array = messages.Detection2DArray(header=header)
    for box_px, score, name in zip(detections.boxes_px, detections.scores, names, strict=True):
        detection = messages.Detection2D(header=header)
        low, high = box_px[:2].astype(float), box_px[2:].astype(float)
        center, size = (low + high) / 2, high - low
        position = detection.bbox.center.position
        position.x, position.y = float(center[0]), float(center[1])
        detection.bbox.size_x, detection.bbox.size_y = float(size[0]), float(size[1])
        result = messages.ObjectHypothesisWithPose()
        result.hypothesis.class_id, result.hypothesis.score = name, float(score)
        detection.results.append(result)
        array.detections.append(detection)
    return array
