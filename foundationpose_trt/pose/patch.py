"""The rectangle of an image around what is tracked: all that a call needs of a frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..datatypes import CameraIntrinsics

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

    def of(self, image: np.ndarray) -> np.ndarray:
        """Return its view of an image (H, W, ...)."""
        return image[self.y : self.y + self.height, self.x : self.x + self.width]


def neighbourhood(
    camera_from_centered: np.ndarray, intrinsics: CameraIntrinsics, diameters_m: np.ndarray
) -> Patch:
    """Return the patch that tracking poses (n, 4, 4) of meshes of diameters (n,) can read.

    The smallest rectangle around all of their windows of NEIGHBOURHOOD_RATIO diameters (as
    crops.crop_windows makes them), and around it what filtering the depth in them reads, cut to
    the image; of poses that look past the image, its nearest border.
    """
    # plain numbers: for a few poses arrays cost several times as much
    x_low, x_high, y_low, y_high = [], [], [], []
    focal = max(intrinsics.fx, intrinsics.fy)
    places = camera_from_centered[:, :3, 3].tolist()
    for (x, y, z), diameter_m in zip(places, diameters_m.tolist(), strict=True):
        z = max(z, NEAREST_M)
        reach = focal * NEIGHBOURHOOD_RATIO * diameter_m / 2 / z
        u, v = x / z * intrinsics.fx + intrinsics.cx, y / z * intrinsics.fy + intrinsics.cy
        x_low.append(u - reach)
        x_high.append(u + reach)
        y_low.append(v - reach)
        y_high.append(v + reach)
    left, right = _side(min(x_low), max(x_high), intrinsics.width)
    top, bottom = _side(min(y_low), max(y_high), intrinsics.height)
    return Patch(left, top, right - left + 1, bottom - top + 1)


def _side(low: float, high: float, size: int) -> tuple[int, int]:
    """First and last pixel of low..high with what the filters read around, in an image."""
    first, last = (round(min(max(end, -FARTHEST_PX), FARTHEST_PX)) for end in (low, high))
    first, last = (min(max(end, 0), size - 1) for end in (first, last))
    return max(first - FILTER_REACH_PX, 0), min(last + FILTER_REACH_PX, size - 1)
