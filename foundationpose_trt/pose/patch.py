"""The rectangle of an image around what is tracked: all that a call needs of a frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..datatypes import CameraIntrinsics

# The refiner's 1.2 and 0.6 diameters of motion to each side: of an object that moved so far
# between two frames half is outside the first crop.
NEIGHBOURHOOD_RATIO = 2.4
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
    t = camera_from_centered[:, :3, 3].astype(np.float64)
    z = np.maximum(t[:, 2], NEAREST_M)
    center = t[:, :2] / z[:, None] * (intrinsics.fx, intrinsics.fy)
    center += intrinsics.cx, intrinsics.cy
    focal = max(intrinsics.fx, intrinsics.fy)
    reach = (focal * NEIGHBOURHOOD_RATIO * diameters_m / 2 / z)[:, None]
    low = np.rint(np.clip(center - reach, -FARTHEST_PX, FARTHEST_PX))
    high = np.rint(np.clip(center + reach, -FARTHEST_PX, FARTHEST_PX))
    last = np.array([intrinsics.width - 1, intrinsics.height - 1])
    first = np.clip(low, 0, last).min(0) - FILTER_REACH_PX
    end = np.clip(high, 0, last).max(0) + FILTER_REACH_PX
    x, y = np.clip(first, 0, last).astype(int).tolist()
    width, height = (np.clip(end, 0, last) - (x, y) + 1).astype(int).tolist()
    return Patch(x, y, width, height)
