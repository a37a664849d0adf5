"""The overlay: pixels where a box and a label must and must not have changed."""

from __future__ import annotations

import numpy as np
import pytest

from foundationpose_trt.detection.overlay import color_of, draw_detections
from foundationpose_trt.detection.postprocess import Detections


def detections(*boxes):
    count = len(boxes)
    scores = np.linspace(0.9, 0.5, count) if count else np.empty(0)
    return Detections(
        np.array(boxes, np.float32).reshape(count, 4), scores, np.arange(count), np.arange(count)
    )


def test_nothing_is_drawn_where_nothing_was_found_and_the_image_is_left_alone():
    rgb = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    before = rgb.copy()
    drawn = draw_detections(rgb, detections(), [], np.zeros((60, 80), np.uint8))
    assert np.array_equal(drawn, rgb) and drawn is not rgb
    draw_detections(rgb, detections((10, 10, 60, 50)), ['mug'], None)
    assert np.array_equal(rgb, before)


def test_a_box_has_its_edges_at_its_pixels_and_its_inside_untouched():
    rgb = np.full((480, 640, 3), 90, np.uint8)
    drawn = draw_detections(rgb, detections((200, 150, 400, 350)), ['mug'], None)
    color = color_of(0)
    for y, x in ((250, 200), (250, 399), (349, 300)):
        assert tuple(drawn[y, x]) == color
    assert (drawn[160:340, 210:390] == 90).all() and (drawn[360:] == 90).all()


def test_labels_tint_their_pixels_only():
    rgb = np.full((60, 80, 3), 100, np.uint8)
    labels = np.zeros((60, 80), np.uint8)
    labels[20:30, 20:40] = 2
    drawn = draw_detections(rgb, detections(), [], labels, [4, 7])
    assert ((drawn != 100).any(-1) == (labels > 0)).all()
    (tint,) = np.unique(drawn[labels == 2], axis=0)
    expected = [0.65 * 100 + 0.35 * value for value in color_of(7)]
    assert tint == pytest.approx(expected, abs=1)


def test_boxes_at_the_border_and_large_images_are_drawn():
    for height, width in ((48, 64), (2160, 3840)):
        rgb = np.zeros((height, width, 3), np.uint8)
        drawn = draw_detections(
            rgb, detections((0, 0, width, height), (-5, -5, 3, 3)), ['a', 'b'], None
        )
        assert drawn.shape == rgb.shape and drawn.any()


def test_neighbouring_colours_are_far_apart():
    colors = np.array([color_of(k) for k in range(8)], float)
    gaps = np.linalg.norm(colors[:-1] - colors[1:], axis=1)
    assert gaps.min() > 100
