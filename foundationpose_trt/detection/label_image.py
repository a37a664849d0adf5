"""Label images on the host: of masks on a CPU; without masks of boxes, with the help of depth."""

from __future__ import annotations

import numpy as np
import torch

from .box_grid import BoxGrid
from .box_layers import (
    BoxView,
    better_layer,
    fills_corners,
    grid_of_view,
    layers,
    sides_met,
)
from .postprocess import Detections, instance_masks
from .support_plane import find_support, off_support

CORE_SHARE = 0.5  # of a box's sides: where mostly the object is
DEFAULT_BAND_M = 0.2
LAYER_SHARE = 0.3  # of the pixels, at least: an object has layers of its own


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
    its pixels in_band that are not of the plane around it. Where boxes overlap, the better
    detection wins.
    """
    labels = np.zeros(size, np.uint8)
    found = best_of_each(detections, objects)
    for label, index in sorted(found.items(), key=lambda item: -item[1]):  # the best come last
        rows, columns = box_slices(detections.boxes_px[index], size)
        inside = labels[rows, columns]
        if depth_m is None:
            inside[:] = label
        else:
            inside[standing_in_box(depth_m, rows, columns, band_m)] = label
    return labels


def standing_in_box(depth_m: np.ndarray, rows: slice, columns: slice, band_m: float) -> np.ndarray:
    """Return the pixels (h, w) bool of a box that are in_band and not of the plane around it.

    depth_m: (H, W) metres, 0 = invalid. Where what is off the plane does not fill the box to its
    sides it is not the object, which then is of that plane: a book, one of a row of cartons.
    """
    inside, plane = depth_m[rows, columns], find_support(depth_m, rows, columns)
    off = off_support(depth_m, plane, rows, columns)
    if not reaches_all_sides(off > 0):
        return in_band(inside, band_m)
    found = in_band(off, band_m)
    # the middle of a ring shows the table alone; without depth there, as of glass, it is unknown
    is_ring = not found.any() and bool(((inside > 0) & (off == 0)).any())
    if is_ring:
        return in_band(off, band_m, core_share=1.0)
    grid = grid_of_view(rows, columns, depth_m.shape)
    view = view_of(depth_m, plane, grid)
    better = better_layer(view, found[grid.within(rows, columns)], band_m)
    if better is None:
        return found
    nearer = off_support(depth_m, plane, rows, columns, nearer=True)
    return (nearer >= better[0]) & (nearer <= better[1])


def view_of(depth_m: np.ndarray, plane: np.ndarray | None, grid: BoxGrid) -> BoxView:
    """A box with what is around it, without its support (find_support) and what is behind that."""
    depth = off_support(depth_m, plane, grid.rows, grid.columns, nearer=True)
    return BoxView(np.where(np.isfinite(depth), depth, 0), grid.box_rows, grid.box_columns)


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


def _uncovered(
    depth_m: np.ndarray, parts: list[np.ndarray], band_m: float, values_m: np.ndarray
) -> np.ndarray:
    """Return what of the middle (N,) of a box (h, w) may be the object's: all, or one layer.

    One, where the largest layer lies before it and fits the box less. What a layer has outside the
    middle may be half a band from there, but not in another layer.
    """
    largest = max(range(len(parts)), key=lambda k: len(parts[k]))
    if reaches_all_sides(_of_layer(depth_m, parts, largest, band_m)):
        return values_m
    fitting = [
        parts[k]
        for k in range(largest + 1, len(parts))
        if reaches_all_sides(_of_layer(depth_m, parts, k, band_m))
        and not fills_corners(as_deep_as(parts[k], depth_m))
    ]
    return max(fitting, key=len, default=values_m)


def _of_layer(
    depth_m: np.ndarray, parts: list[np.ndarray], place: int, band_m: float
) -> np.ndarray:
    """Pixels (h, w) bool of a box that may be of one of the layers of its middle."""
    part, center_m = parts[place], np.median(parts[place])
    low = parts[place - 1][-1] if place > 0 else 0.0
    high = parts[place + 1][0] if place + 1 < len(parts) else np.inf
    nearest = max(low, min(part[0], center_m - band_m / 2))
    farthest = min(high, max(part[-1], center_m + band_m / 2))
    return (depth_m > nearest) & (depth_m < farthest)


def as_deep_as(part: np.ndarray, depth_m: np.ndarray) -> np.ndarray:
    """Pixels (h, w) bool of a box that a plane seen as this layer of its middle could reach."""
    extent = part[-1] - part[0]  # over CORE_SHARE of the box, so less than as much on either side
    return (depth_m >= part[0] - extent) & (depth_m <= part[-1] + extent)


def reaches_all_sides(inside: np.ndarray) -> bool:
    """Whether pixels (h, w) bool of a box come near each of its sides."""
    return sides_met(inside) == 4


def in_band(depth_m: np.ndarray, band_m: float, core_share: float = CORE_SHARE) -> np.ndarray:
    """Pixels (h, w) bool of a box in the band of depth, band_m deep, around what fills its middle.

    What fills it: the surfaces within one such band that are most of the middle, the nearest of
    equally many. Where something passes in front of the object and fills the middle, the layer
    behind it that reaches all sides of the box: the box is drawn around what is seen of the
    object. Nothing, where the middle has no valid depth. core_share: of the box's sides, which is
    its middle.
    """
    height, width = depth_m.shape
    margin_y, margin_x = (round(side * (1 - core_share) / 2) for side in (height, width))
    core = depth_m[margin_y : height - margin_y, margin_x : width - margin_x]
    values = np.sort(core[(core > 0) & np.isfinite(core)], axis=None)
    if len(values) == 0:
        return np.zeros(depth_m.shape, bool)
    parts = layers(values, LAYER_SHARE)
    values = values if len(parts) == 1 else _uncovered(depth_m, parts, band_m, values)
    ends = np.searchsorted(values, values + band_m, side='right')
    first = np.argmax(ends - np.arange(len(values)))
    center = np.median(values[first : ends[first]])
    return (np.abs(depth_m - center) <= band_m / 2) & (depth_m > 0)
