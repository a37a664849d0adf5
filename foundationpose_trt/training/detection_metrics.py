"""How well boxes are found: average precision, by the package supervision."""

from __future__ import annotations

import importlib

import numpy as np

PIXELS = 1000  # the metric judges sizes in pixels; boxes here are shares of the image


def require_metric() -> None:
    """Raise ModuleNotFoundError where the package supervision is missing."""
    importlib.import_module('supervision')


def average_precision(
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    truth: list[tuple[np.ndarray, np.ndarray]],
    names: list[str],
) -> dict[str, float]:
    """Average precision at IoU 0.5 in percent, COCO's way, by the package supervision.

    found: boxes x0, y0, x1, y1, classes and scores per image; truth: boxes and classes.
    """
    sv = importlib.import_module('supervision')
    metric = importlib.import_module('supervision.metrics').MeanAveragePrecision()
    for (boxes, kinds, scores), (true_boxes, true_kinds) in zip(found, truth, strict=True):
        predicted = sv.Detections(
            np.asarray(boxes, np.float32) * PIXELS, class_id=kinds.astype(int), confidence=scores
        )
        wanted = sv.Detections(
            np.asarray(true_boxes, np.float32) * PIXELS, class_id=true_kinds.astype(int)
        )
        metric.update([predicted], [wanted])
    result = metric.compute()
    each = dict(zip(result.matched_classes.tolist(), result.ap_per_class[:, 0], strict=True))
    values = {name: 100 * float(each.get(k, np.nan)) for k, name in enumerate(names)}
    return {'ap50': 100 * float(result.map50), **{f'ap50_{n}': v for n, v in values.items()}}
