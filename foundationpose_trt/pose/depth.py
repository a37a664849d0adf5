"""Depth filters of the reference pipeline as batched Warp kernels (foundationpose.md §3.3)."""

from __future__ import annotations

import torch
import warp as wp

from ..datatypes import require
from ..warp_launch import as_warp, launch

RADIUS_PX = wp.constant(2)  # 5x5 window, foundationpose.md §3.3
FAR_M = wp.constant(100.0)
NEAR_VALID_M = wp.constant(0.001)
EROSION_DIFFERENCE_M = wp.constant(0.001)
EROSION_RATIO = wp.constant(0.8)
BILATERAL_SIGMA_PX = 2.0
BILATERAL_BAND_M = wp.constant(0.01)


@wp.func
def is_valid(depth: float) -> bool:
    return depth >= NEAR_VALID_M and depth < FAR_M


@wp.func
def outside(regions: wp.array3d(dtype=int), n: int, y: int, x: int) -> bool:
    """Whether a pixel lies outside all regions (x_first, y_first, x_last, y_last) of image n."""
    for r in range(regions.shape[1]):
        begun = x >= regions[n, r, 0] and y >= regions[n, r, 1]
        if begun and x <= regions[n, r, 2] and y <= regions[n, r, 3]:
            return False
    return True


@wp.kernel
def erode(
    depth: wp.array3d(dtype=float), regions: wp.array3d(dtype=int), out: wp.array3d(dtype=float)
):
    """Drop a pixel when more than 80 % of its window is invalid or more than 1 mm away."""
    n, y, x = wp.tid()
    if outside(regions, n, y, x):
        return
    center = depth[n, y, x]
    out[n, y, x] = 0.0
    if not is_valid(center):
        return
    total = float(0.0)
    bad = float(0.0)
    y_last = wp.min(y + RADIUS_PX, depth.shape[1] - 1)
    x_last = wp.min(x + RADIUS_PX, depth.shape[2] - 1)
    for v in range(wp.max(y - RADIUS_PX, 0), y_last + 1):
        for u in range(wp.max(x - RADIUS_PX, 0), x_last + 1):
            value = depth[n, v, u]
            total += 1.0
            if not is_valid(value) or wp.abs(value - center) > EROSION_DIFFERENCE_M:
                bad += 1.0
    if bad / total <= EROSION_RATIO:
        out[n, y, x] = center


@wp.kernel
def smooth(
    depth: wp.array3d(dtype=float),
    regions: wp.array3d(dtype=int),
    spatial: wp.array2d(dtype=float),
    out: wp.array3d(dtype=float),
):
    """Gaussian mean of the neighbours within 1 cm of the window's mean; fills small holes."""
    n, y, x = wp.tid()
    out[n, y, x] = 0.0
    if outside(regions, n, y, x):
        return
    count = float(0.0)
    total = float(0.0)
    y_first = wp.max(y - RADIUS_PX, 0)
    x_first = wp.max(x - RADIUS_PX, 0)
    y_last = wp.min(y + RADIUS_PX, depth.shape[1] - 1)
    x_last = wp.min(x + RADIUS_PX, depth.shape[2] - 1)
    for v in range(y_first, y_last + 1):
        for u in range(x_first, x_last + 1):
            value = depth[n, v, u]
            if is_valid(value):
                count += 1.0
                total += value
    if count == 0.0:
        return
    mean = total / count
    weights = float(0.0)
    weighted = float(0.0)
    for v in range(y_first, y_last + 1):
        for u in range(x_first, x_last + 1):
            value = depth[n, v, u]
            if is_valid(value) and wp.abs(value - mean) < BILATERAL_BAND_M:
                weight = spatial[v - y + RADIUS_PX, u - x + RADIUS_PX]
                weights += weight
                weighted += weight * value
    if weights > 0.0:
        out[n, y, x] = weighted / weights


def spatial_weights() -> torch.Tensor:
    """Gaussian of the distance in pixels, (5, 5) float32, 1 in the middle."""
    offsets = torch.arange(-2, 3, dtype=torch.float32)
    squared = offsets[:, None] ** 2 + offsets[None] ** 2
    return torch.exp(-squared / (2 * BILATERAL_SIGMA_PX**2))


class DepthFilter:
    """Erosion then bilateral smoothing of (I, H, W) float32 metres; owns its two buffers.

    Only the regions of each image are computed; outside of them the result is 0, no depth.
    """

    def __init__(self, images: int, height: int, width: int, device: torch.device) -> None:
        self._eroded = torch.zeros(images, height, width, device=device)
        self._smooth = torch.zeros(images, height, width, device=device)
        self._spatial = spatial_weights().to(device)
        last = [0, 0, width - 1, height - 1]
        self.whole = torch.tensor([last] * images, dtype=torch.int32, device=device)

    def __call__(self, depth_m: torch.Tensor, regions: torch.Tensor | None = None) -> torch.Tensor:
        """Filter; regions int32 inclusive x_first, y_first, x_last, y_last, default all.

        regions: (I, 4), or (I, R, 4) for the union of R of them in each image. The returned
        tensor is the filter's buffer, valid until the next call. Raises ValueError when the
        depth is not of the size given on construction.
        """
        require(
            depth_m.shape == self._smooth.shape,
            f'depth is {tuple(depth_m.shape)}, this filter is for {tuple(self._smooth.shape)}',
        )
        inner = (self.whole if regions is None else regions).reshape(len(depth_m), -1, 4)
        outer = self._grown(inner)
        shape, device = tuple(depth_m.shape), depth_m.device
        source, eroded, smoothed = map(as_warp, (depth_m, self._eroded, self._smooth))
        launch(erode, shape, [source, as_warp(outer), eroded], device)
        spatial = as_warp(self._spatial)
        launch(smooth, shape, [eroded, as_warp(inner), spatial, smoothed], device)
        return self._smooth

    @staticmethod
    def _grown(regions: torch.Tensor) -> torch.Tensor:
        """Extend regions by the window radius: smoothing reads that far into the erosion."""
        return torch.cat([regions[..., :2] - 2, regions[..., 2:] + 2], dim=-1)
