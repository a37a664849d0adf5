"""Which layer of depth a box is drawn around: the one that meets its sides and ends at them.

A detector draws a box around what is seen of an object. What passes in front of it fills the
middle as well, but goes on beyond the box; so does what lies behind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .box_grid import BoxGrid, grid_around, longer_side

GAP_M = 0.02  # between layers of depth
FLYING_SHARE = 0.005  # of the pixels: fewer, over half a gap, lie between surfaces
SIDE_SHARE = 0.15  # of a side, which a box may be too large by
AROUND_SHARE = 0.15  # of the longer side: how far beyond a box is looked
SLACK_SHARE = 0.04  # of the longer side, which a box may be too small by
MOST_PX = 40_000  # of a box and what is around it: a grid of large ones tells as much
# The next three by the masks of 432 rendered views (evaluate-detector, arrangements 7200 to 7202).
LEAST_SHARE = 0.1  # of the pixels in a box: layers of fewer are not asked
LEAKING = 0.1  # a layer that has so much beyond the box, over what it has in it, may be another's
BETTER_BY = 0.2  # of a fit of at most 1: what another layer must be better by
EDGE_PERCENT, EDGE_M = 2.0, 0.01  # of the depths chosen so far, and around them: their layer


@dataclass(frozen=True)
class BoxView:
    """Depth of a box and of what is around it, (h, w) metres, 0 = unknown or of the support.

    rows, columns: where the box is in it. Of a large one a grid.
    """

    depth_m: np.ndarray
    rows: slice
    columns: slice

    @property
    def inside_m(self) -> np.ndarray:
        """Depth of the box alone."""
        return self.depth_m[self.rows, self.columns]


@dataclass(frozen=True)
class Fit:
    """How a box fits a layer.

    sides: how many sides of the box it comes near. leak: how much of it lies beyond the box, over
    what lies in it.
    """

    sides: int
    leak: float

    @property
    def value(self) -> float:
        """1 where all sides are met and nothing lies beyond, at least -1."""
        return self.sides / 4 - min(1.0, self.leak)


def grid_of_view(rows: slice, columns: slice, size: tuple[int, ...]) -> BoxGrid:
    """Where a view of a box looks in an image of a size (height, width)."""
    reach = max(3, round(AROUND_SHARE * longer_side(rows, columns)))
    return grid_around(rows, columns, size, reach, MOST_PX)


def better_layer(view: BoxView, chosen: np.ndarray, band_m: float) -> tuple[float, float] | None:
    """Return nearest and farthest depth of the layer that a box fits clearly better than what was
    chosen of it, (h, w) bool; None where that is to stay.

    It is where its layer ends at the box and meets some sides of it, as the layers of one object
    do. band_m: depth of what is taken of a layer, around its middle.
    """
    depths = view.inside_m[chosen & (view.inside_m > 0)]
    if len(depths) == 0:
        return None
    low, middle, high = np.percentile(depths, [EDGE_PERCENT, 50, 100 - EDGE_PERCENT])
    own = fit_of(view, low - EDGE_M, high + EDGE_M)
    if own.leak < LEAKING and own.sides > 1:
        return None
    values = np.sort(view.inside_m[view.inside_m > 0], axis=None)
    bounds = [_within(part, band_m) for part in layers(values, LEAST_SHARE)]
    others = [each for each in bounds if not _shows_behind(view, each, middle)]
    fits = [(fit_of(view, *each).value, each) for each in others]
    value, best = max(fits, default=(-1.0, (0.0, 0.0)))
    return best if value > own.value + BETTER_BY else None


def _shows_behind(view: BoxView, bounds_m: tuple[float, float], chosen_m: float) -> bool:
    """Whether a layer is what shows around an object, at the corners of its box: behind it."""
    inside = (view.inside_m >= bounds_m[0]) & (view.inside_m <= bounds_m[1])
    return bounds_m[0] > chosen_m and fills_corners(inside)


def _within(part: np.ndarray, band_m: float) -> tuple[float, float]:
    """Nearest and farthest depth of a layer, at most a band around its middle."""
    middle = float(np.median(part))
    return max(float(part[0]), middle - band_m / 2), min(float(part[-1]), middle + band_m / 2)


def fit_of(view: BoxView, low_m: float, high_m: float) -> Fit:
    """How the box fits the layer between two depths."""
    layer = (view.depth_m >= low_m) & (view.depth_m <= high_m)
    inside = layer[view.rows, view.columns]
    slack = max(1, round(SLACK_SHARE * longer_side(view.rows, view.columns)))
    near = [slice(max(p.start - slack, 0), p.stop + slack) for p in (view.rows, view.columns)]
    beyond = np.count_nonzero(layer) - np.count_nonzero(layer[near[0], near[1]])
    return Fit(sides_met(inside), beyond / max(1, np.count_nonzero(inside)))


def sides_met(inside: np.ndarray) -> int:
    """How many sides of a box its pixels (h, w) bool come near, 0 to 4."""
    met = 0
    for axis in (0, 1):
        hit = np.asarray(inside.any(axis))
        at, margin = np.flatnonzero(hit), SIDE_SHARE * len(hit)
        if len(at):
            met += int(at[0] <= margin) + int(at[-1] >= len(hit) - 1 - margin)
    return met


def fills_corners(inside: np.ndarray) -> bool:
    """Whether pixels (h, w) bool are most of three corners of a box, as of what lies behind."""
    height, width = (max(round(SIDE_SHARE * side), 1) for side in inside.shape)
    ends = slice(None, height), slice(-height, None)
    corners = [inside[rows, side] for rows in ends for side in (slice(width), slice(-width, None))]
    return sum(corner.mean() > 0.5 for corner in corners) >= 3


def layers(values_m: np.ndarray, least_share: float) -> list[np.ndarray]:
    """Split sorted depths (N,) where hardly any lie over GAP_M; what holds few is left out.

    All in one where no layer holds its share.
    """
    # only bins that hold something: a camera may say 1e10 m where it saw nothing
    bins, starts, counts = np.unique(
        np.floor(values_m.astype(np.float64) / (GAP_M / 2)), return_index=True, return_counts=True
    )
    filled = counts > FLYING_SHARE * len(values_m)
    if not filled.any():
        return [values_m]
    bins, starts, ends = bins[filled], starts[filled], (starts + counts)[filled]
    apart = np.diff(bins) > 2
    pairs = zip(starts[np.r_[True, apart]], ends[np.r_[apart, True]], strict=True)
    parts = [values_m[a:b] for a, b in pairs]
    return [part for part in parts if len(part) >= least_share * len(values_m)] or [values_m]
