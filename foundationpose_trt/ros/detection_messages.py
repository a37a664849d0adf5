"""Detections and poses as arrays of vision_msgs, where that package is installed.

Fields as in vision_msgs 4 (Humble to Lyrical): a box's centre is a Pose2D with a position.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from std_msgs.msg import Header

from foundationpose_trt.datatypes import Frame
from foundationpose_trt.detection.postprocess import Detections
from foundationpose_trt.ros.conversions import header_message, pose_message

if TYPE_CHECKING:
    from foundationpose_trt.ros.tracker_factory import NamedObject


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


def object_array(
    messages: ModuleType, found: Sequence[tuple[NamedObject, np.ndarray, float]], frame: Frame
) -> Any:
    """Return the tracked objects of one image as a Detection3DArray; empty: none is tracked.

    found: object, camera_from_object (4, 4) in metres and the share of agreeing depth 0..1 as
    score. The pose is of the mesh's own frame; the box around the mesh has a centre of its own.
    """
    header = header_message(frame.stamp_ns, frame.frame_id)
    array = messages.Detection3DArray(header=header)
    for one, pose, score in found:
        detection = messages.Detection3D(header=header, id=one.name)
        result = messages.ObjectHypothesisWithPose()
        result.hypothesis.class_id, result.hypothesis.score = one.class_id, float(score)
        result.pose.pose = pose_message(pose, frame).pose
        detection.results.append(result)
        if one.mesh is not None:
            centered = pose @ one.mesh.object_from_centered
            detection.bbox.center = pose_message(centered, frame).pose
            size = 2 * np.abs(one.mesh.vertices).max(0).astype(float)
            detection.bbox.size.x, detection.bbox.size.y, detection.bbox.size.z = map(float, size)
        array.detections.append(detection)
    return array
