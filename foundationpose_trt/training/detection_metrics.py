"""How well boxes are found, by the package supervision."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence

import numpy as np

Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes x0, y0, x1, y1, classes, scores
Truth = tuple[np.ndarray, np.ndarray]  # boxes and classes
RIGHT_IOU = 0.5
PIXELS = 1000  # the metric judges sizes in pixels; boxes here are shares of the image


def require_metric() -> None:
    """Raise ModuleNotFoundError where the package supervision is missing."""
    importlib.import_module('supervision')


def average_precision(
    found: list[Found],
    truth: list[Truth],
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


def threshold_figures(
    found: list[Found], truth: list[Truth], thresholds: Sequence[float]
) -> dict[float, dict[str, float]]:
    """Recall, precision and F1 in percent by threshold, of the best detection of each class.

    As a tracker is served: one box per class and image, right where it covers one of that class
    by IoU 0.5. An object that an image shows twice counts once. NaN of none.
    """
    pairs = list(zip(found, truth, strict=True))
    best = [pair for one, wanted in pairs for pair in _best_of_each(one, wanted)]
    scores = np.array([score for score, _ in best])
    right = np.array([is_right for _, is_right in best], bool)
    shown = sum(len(np.unique(kinds)) for _, kinds in truth)
    return {t: _shares(right[scores > t], shown) for t in thresholds}


def _best_of_each(found: Found, truth: Truth) -> Iterator[tuple[float, bool]]:
    """Score of the best detection of each class that was found, and whether it is right."""
    sv = importlib.import_module('supervision')
    boxes, kinds, scores = found
    for kind in np.unique(kinds):
        of_kind = np.flatnonzero(kinds == kind)
        best = of_kind[np.argmax(scores[of_kind])]
        wanted = truth[0][truth[1] == kind]
        overlaps = sv.box_iou_batch(wanted, boxes[[best]]) if len(wanted) else np.zeros(1)
        yield float(scores[best]), bool(overlaps.max() >= RIGHT_IOU)


def _shares(right: np.ndarray, shown: int) -> dict[str, float]:
    hits, found = int(right.sum()), len(right)
    return {
        'recall': 100 * hits / shown if shown else np.nan,
        'precision': 100 * hits / found if found else np.nan,
        'f1': 200 * hits / (shown + found) if shown + found else np.nan,
    }
