"""The rectangle of an image around what is tracked: all that a call needs of a frame."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from ..datatypes import CameraIntrinsics

# The 16 numbers of a pose (4, 4), row by row: for a few poses arrays cost several times as much.
PoseNumbers = Sequence[float]

# No pixel of an object that moved by 0.3 diameters is left out, nor of the refiner's first crop
# (1.2).
NEIGHBOURHOOD_RATIO = 1.6
FILTER_REACH_PX = 4  # the depth filters read two pixels around a pixel, twice
NEAREST_M = 1e-3
FARTHEST_PX = 1e6  # keeps what is far outside the image in integers


@dataclass(frozen=True)
class Patch:
    """A rectangle of pixels: its first column and row, and its size."""

    x: int
    y: int
    width: int
    height: int

    @property
    def pixels(self) -> int:
        """How many pixels it has."""
        return self.width * self.height

    def in_steps(self, step: int) -> Patch:
        """Return it with whole steps of columns, for images whose width is so many steps."""
        left = self.x - self.x % step
        right = -(-(self.x + self.width) // step) * step
        return Patch(left, self.y, right - left, self.height)

    def of(self, image: np.ndarray) -> np.ndarray:
        """Return its view of an image (H, W, ...)."""
        return image[self.y : self.y + self.height, self.x : self.x + self.width]


def neighbourhood(
    camera_from_centered: Sequence[PoseNumbers],
    intrinsics: CameraIntrinsics,
    diameters_m: Sequence[float],
) -> Patch:
    """Return the patch that tracking poses of meshes of these diameters can read.

    The smallest rectangle around all of their windows of NEIGHBOURHOOD_RATIO diameters (as
    crops.crop_windows makes them), and around it what filtering the depth in them reads, cut to
    the image; of poses that look past the image, its nearest border.
    """
    x_low, x_high, y_low, y_high = inf, -inf, inf, -inf
    fx, fy, cx, cy = intrinsics.fx, intrinsics.fy, intrinsics.cx, intrinsics.cy
    reached = max(fx, fy) * NEIGHBOURHOOD_RATIO / 2
    for numbers, diameter_m in zip(camera_from_centered, diameters_m, strict=True):
        z = max(numbers[11], NEAREST_M)
        reach = reached * diameter_m / z
        u, v = numbers[3] / z * fx + cx, numbers[7] / z * fy + cy
        x_low, x_high = min(x_low, u - reach), max(x_high, u + reach)
        y_low, y_high = min(y_low, v - reach), max(y_high, v + reach)
    left, right = _side(x_low, x_high, intrinsics.width)
    top, bottom = _side(y_low, y_high, intrinsics.height)
    return Patch(left, top, right - left + 1, bottom - top + 1)


def _side(low: float, high: float, size: int) -> tuple[int, int]:
    """First and last pixel of low..high with what the filters read around, in an image."""
    first = round(min(max(low, -FARTHEST_PX), FARTHEST_PX))
    last = round(min(max(high, -FARTHEST_PX), FARTHEST_PX))
    first, last = min(max(first, 0), size - 1), min(max(last, 0), size - 1)
    return max(first - FILTER_REACH_PX, 0), min(last + FILTER_REACH_PX, size - 1)
