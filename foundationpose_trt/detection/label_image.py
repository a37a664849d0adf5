"""Label images on the host: of masks on a CPU; without masks of boxes, with the help of depth."""

from __future__ import annotations

import numpy as np
import torch

from .postprocess import Detections, instance_masks

CORE_SHARE = 0.5  # of a box's sides: where mostly the object is
DEFAULT_BAND_M = 0.15


def best_of_each(detections: Detections, objects: list[int]) -> dict[int, int]:
    """Index of the best detection of each object that was found, by its 1-based label.

    objects: the column of each object's class.
    """
    found: dict[int, int] = {}
    for index, column in enumerate(detections.columns):
        if column in objects:
            found.setdefault(objects.index(column) + 1, index)
    return found


def label_image(
    detections: Detections,
    objects: list[int],
    size: tuple[int, int],
    depth_m: np.ndarray | None = None,
    band_m: float = DEFAULT_BAND_M,
) -> np.ndarray:
    """Return (H, W) uint8: 1-based index of the object, 0 = nothing.

    The box of each object's best detection, filled; with depth (H, W) metres, 0 = invalid, only
    its pixels in_band. Where boxes overlap, the better detection wins.
    """
    labels = np.zeros(size, np.uint8)
    found = best_of_each(detections, objects)
    for label, index in sorted(found.items(), key=lambda item: -item[1]):  # the best come last
        rows, columns = box_slices(detections.boxes_px[index], size)
        inside = labels[rows, columns]
        if depth_m is None:
            inside[:] = label
        else:
            inside[in_band(depth_m[rows, columns], band_m)] = label
    return labels


def labels_of_masks(
    detections: Detections, objects: list[int], masks: torch.Tensor, size: tuple[int, int]
) -> np.ndarray:
    """Return (H, W) uint8 from mask logits (1, Q, h, w) on the CPU; what LabelPainter paints.

    Of each object the mask of its best detection; where masks overlap, the better one wins.
    """
    labels = np.zeros(size, np.uint8)
    found = best_of_each(detections, objects)
    for label, index in sorted(found.items(), key=lambda item: -item[1]):
        mask = instance_masks(masks, detections.queries[[index]], size)[0]
        labels[mask.numpy()] = label
    return labels


def box_slices(box_px: np.ndarray, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns whose centres lie in a box x0, y0, x1, y1."""
    low = np.clip(np.ceil(box_px[:2] - 0.5), 0, (size[1], size[0])).astype(int)
    high = np.clip(np.ceil(box_px[2:] - 0.5), 0, (size[1], size[0])).astype(int)
    return slice(low[1], high[1]), slice(low[0], high[0])


def in_band(depth_m: np.ndarray, band_m: float) -> np.ndarray:
    """Pixels (h, w) bool of a box in the band of depth, band_m deep, around what fills its middle.

    What fills it: the surfaces within one such band that are most of the middle, the nearest of
    equally many. Nothing, where the middle has no valid depth.
    """
    height, width = depth_m.shape
    margin_y, margin_x = (round(side * (1 - CORE_SHARE) / 2) for side in (height, width))
    core = depth_m[margin_y : height - margin_y, margin_x : width - margin_x]
    values = np.sort(core[(core > 0) & np.isfinite(core)], axis=None)
    if len(values) == 0:
        return np.zeros(depth_m.shape, bool)
    ends = np.searchsorted(values, values + band_m, side='right')
    first = np.argmax(ends - np.arange(len(values)))
    center = np.median(values[first : ends[first]])
    return np.abs(depth_m - center) <= band_m / 2
