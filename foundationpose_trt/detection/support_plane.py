"""The plane that an object lies on or stands before, found in the depth around its box."""

from __future__ import annotations

import math

import numpy as np

from .box_grid import grid_around, longer_side

RING_SHARE = 0.35  # of the box's longer side: how far around it the plane is looked for
FEWEST_PX = 50  # with depth around the box
MOST_PX = 2000  # of a grid over the box and what is around it, and about as many of it alone
TRIALS = 48  # three of a third on one plane are met with 1 - (1 - 1/27)^48 = 0.84, of half 0.998
PLANE_SHARE = 0.3  # of those pixels, at least, else nothing around the box is one plane
TOLERANCE_M, TOLERANCE_SHARE = 0.004, 0.006  # of depth: noise of cameras and of a table's surface
LEFT_SHARE = 0.1  # of the box's pixels, nearer than the plane: else it carries no object


def find_support(depth_m: np.ndarray, rows: slice, columns: slice) -> np.ndarray | None:
    """Return the plane around a box as its inverse depth: (3,) coefficients of column, row and 1.

    depth_m: (H, W) metres, 0 or not finite = invalid. None where nothing around is a plane, or
    where hardly anything is nearer: the object is as flat as its table, or behind what is plane.
    Intrinsics are not needed: over the pixels of any pinhole camera the inverse depth of a plane
    is linear.
    """
    size = depth_m[rows, columns].size
    plane = _plane_around(depth_m, rows, columns) if size else None
    if plane is None:
        return None
    step = max(1, math.isqrt(size // MOST_PX))
    grid = [slice(part.start, part.stop, step) for part in (rows, columns)]
    nearer = off_support(depth_m, plane, grid[0], grid[1], nearer=True) > 0
    return plane if nearer.mean() >= LEFT_SHARE else None


def off_support(
    depth_m: np.ndarray,
    plane: np.ndarray | None,
    rows: slice,
    columns: slice,
    nearer: bool = False,
) -> np.ndarray:
    """Return the depth (h, w) of some rows and columns, 0 where it is the plane's (find_support).

    nearer: also 0 where it is behind the plane. All of it where there is no plane.
    """
    depth = depth_m[rows, columns]
    if plane is None:
        return depth
    u, v = (
        np.arange(part.start, part.stop, part.step or 1, dtype=np.float32)
        for part in (columns, rows)
    )
    inverse = np.float32(plane[0]) * u + (plane[1] * v + plane[2]).astype(np.float32)[:, None]
    left_out = _is_near(depth, inverse)
    if nearer:
        left_out |= ~(depth * inverse < 1)
    return np.where(left_out, depth.dtype.type(0), depth)


def _is_near(depth_m: np.ndarray, inverse_of_plane: np.ndarray) -> np.ndarray:
    """Whether depths are the plane's, to first order, since near it |z - 1/p| = |1/z - p| z^2."""
    off = np.abs(1 - depth_m * inverse_of_plane) * depth_m
    return np.asarray(off < TOLERANCE_M + TOLERANCE_SHARE * depth_m)


def _plane_around(depth_m: np.ndarray, rows: slice, columns: slice) -> np.ndarray | None:
    """Return inverse depth as (3,) coefficients of column, row and 1, by RANSAC; None: no plane.

    Fischler and Bolles 1981, with the same draws for the same box; refined on what agrees.
    """
    points, z = _ring(depth_m, rows, columns)
    if len(z) < FEWEST_PX:
        return None
    drawn = np.random.default_rng(0).integers(0, len(z), (TRIALS, 3))
    corners = points[drawn]
    spread = np.abs(np.linalg.det(corners)) > 1.0  # px^2, twice the triangle's area
    if not spread.any():
        return None
    planes = np.linalg.solve(corners[spread], 1 / z[drawn[spread]][..., None])[..., 0]
    near = _is_near(z, planes @ points.T)
    best = near[near.sum(1).argmax()]
    if best.mean() < PLANE_SHARE:
        return None
    return np.asarray(np.linalg.lstsq(points[best], 1 / z[best], rcond=None)[0])


def _ring(depth_m: np.ndarray, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
    """Pixels of a grid around a box: (N, 3) column, row and 1, and their depths (N,) float64.

    The grid is as wide as leaves MOST_PX of them, whatever the size of the image.
    """
    reach = round(RING_SHARE * longer_side(rows, columns))
    grid = grid_around(rows, columns, depth_m.shape, reach, MOST_PX)
    around = depth_m[grid.rows, grid.columns]
    valid = (around > 0) & np.isfinite(around)
    valid[grid.box_rows, grid.box_columns] = False
    v, u = np.nonzero(valid)
    at = [grid.columns.start + grid.step * u, grid.rows.start + grid.step * v, np.ones_like(u)]
    return np.stack(at, 1).astype(np.float64), around[valid].astype(np.float64)
