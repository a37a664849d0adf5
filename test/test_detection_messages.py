"""Detection2DArray messages: stand-ins with the fields of vision_msgs 4 and no others."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='ROS 2 (rclpy) is not installed')
from std_msgs.msg import Header

from foundationpose_trt.detection.postprocess import Detections
from foundationpose_trt.ros import detection_messages
from foundationpose_trt.ros.conversions import stamp_message


def message(**fields):
    """A class that, as rclpy's, has only these fields; a type makes a field, else its default."""

    class Strict:
        __slots__ = tuple(fields)

        def __init__(self, **values):
            for name, kind in fields.items():
                setattr(self, name, values.get(name, kind() if callable(kind) else kind))

    return Strict


# ros-perception/vision_msgs, ros2 branch, the .msg files
Point2D = message(x=0.0, y=0.0)
Pose2D = message(position=Point2D, theta=0.0)
BoundingBox2D = message(center=Pose2D, size_x=0.0, size_y=0.0)
ObjectHypothesis = message(class_id='', score=0.0)
ObjectHypothesisWithPose = message(hypothesis=ObjectHypothesis, pose=None)
Detection2D = message(header=Header, results=list, bbox=BoundingBox2D, id='')
Detection2DArray = message(header=Header, detections=list)
VISION = SimpleNamespace(
    Detection2DArray=Detection2DArray, Detection2D=Detection2D,
    ObjectHypothesisWithPose=ObjectHypothesisWithPose,
)  # fmt: skip


def found(*boxes):
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float32).reshape(count, 4), np.linspace(0.9, 0.6, count),
        np.arange(count), np.arange(count),
    )  # fmt: skip


def test_each_detection_has_class_score_and_box_about_its_centre():
    header = Header(stamp=stamp_message(5_000_000_007), frame_id='left_optical')
    detections = found((10, 20, 40, 60), (0, 0, 1.5, 480))
    array = detection_messages.detection_array(VISION, detections, ['mug', 'drill'], header)
    assert array.header == header and len(array.detections) == 2
    first, second = array.detections
    assert first.header == header
    box = first.bbox
    assert (box.center.position.x, box.center.position.y) == (25.0, 40.0)
    assert (box.size_x, box.size_y, box.center.theta) == (30.0, 40.0, 0.0)
    assert first.results[0].hypothesis.class_id == 'mug'
    assert first.results[0].hypothesis.score == pytest.approx(0.9)
    assert (second.bbox.center.position.x, second.bbox.size_y) == (0.75, 480.0)
    assert all(type(value) is float for value in (box.size_x, box.center.position.x))


def test_nothing_found_is_an_empty_array_with_the_images_header():
    header = Header(frame_id='left_optical')
    array = detection_messages.detection_array(VISION, found(), [], header)
    assert array.detections == [] and array.header == header


def test_without_vision_msgs_there_is_no_such_message(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(detection_messages.importlib, 'import_module', missing)
    assert detection_messages.vision_messages() is None
