"""Figures by threshold, of detections whose quality is counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip('supervision')

from foundationpose_trt.training.detection_metrics import threshold_figures

LEFT, RIGHT = (0.1, 0.1, 0.3, 0.3), (0.6, 0.6, 0.9, 0.9)


def detections(*rows):
    """Rows of box, class and score."""
    boxes, kinds, scores = zip(*rows, strict=True) if rows else ((), (), ())
    return np.array(boxes, float).reshape(-1, 4), np.array(kinds, int), np.array(scores, float)


def truth(*rows):
    """Rows of box and class."""
    boxes, kinds, _ = detections(*[(*row, 1.0) for row in rows])
    return boxes, kinds


def test_the_best_box_of_each_class_is_counted_once():
    found = [
        # the better of two boxes is right; another class is in the wrong place
        detections((LEFT, 0, 0.9), (RIGHT, 0, 0.8), (LEFT, 1, 0.7)),
        # the better of two boxes is wrong; nothing of class 2 is shown
        detections((RIGHT, 0, 0.6), (LEFT, 0, 0.3), (LEFT, 2, 0.35)),
        detections(),
    ]
    shown = [
        truth((LEFT, 0), (RIGHT, 1)),
        truth((LEFT, 0)),
        truth((LEFT, 0), (RIGHT, 0)),
    ]
    figures = threshold_figures(found, shown, (0.3, 0.5, 0.8, 0.95))
    # shown: 0 and 1 in the first, 0 in the second, 0, twice, in the third
    assert figures[0.3] == {'recall': 25.0, 'precision': 25.0, 'f1': 25.0}
    assert figures[0.5] == pytest.approx({'recall': 25.0, 'precision': 100 / 3, 'f1': 200 / 7})
    assert figures[0.8] == pytest.approx({'recall': 25.0, 'precision': 100.0, 'f1': 40.0})
    assert figures[0.95]['recall'] == figures[0.95]['f1'] == 0.0
    assert np.isnan(figures[0.95]['precision'])


def test_a_box_must_overlap_by_half():
    box = (0.0, 0.0, 0.4, 0.4)
    for side, right in ((0.29, True), (0.28, False)):  # 0.29**2 / 0.16 = 0.526, 0.28: 0.49
        found = [detections(((0.0, 0.0, side, side), 0, 0.9))]
        recall = threshold_figures(found, [truth((box, 0))], (0.5,))[0.5]['recall']
        assert recall == (100.0 if right else 0.0)
