"""Depth filters of the reference pipeline as batched Warp kernels (foundationpose.md §3.3).

They work on patches, each a rectangle of an image whose pixels lie one after the other.
"""

from __future__ import annotations

import torch
import warp as wp

from ..datatypes import require
from ..warp_launch import as_warp, launch

wp.set_module_options({'enable_backward': False})  # nothing is differentiated; half to compile

RADIUS_PX = wp.constant(2)  # 5x5 window, foundationpose.md §3.3
FAR_M = wp.constant(100.0)
NEAR_VALID_M = wp.constant(0.001)
EROSION_DIFFERENCE_M = wp.constant(0.001)
# At most 0.8 of a window may be bad: whole numbers decide that without a rounded quotient.
EROSION_KEEPS = wp.constant(5)  # one good pixel in so many
BILATERAL_SIGMA_PX = 2.0
BILATERAL_BAND_M = wp.constant(0.01)
SURELY_IN_BAND_M = wp.constant(0.0099)  # a window this shallow, whatever the mean is rounded to


@wp.func
def is_valid(depth: float) -> bool:
    return depth >= NEAR_VALID_M and depth < FAR_M


@wp.func
def is_cut_along(first: int, size: int, at: int, image_size: int) -> bool:
    before = first > 0 and at < 2 * RADIUS_PX
    return before or (first + size < image_size and at >= size - 2 * RADIUS_PX)


@wp.func
def is_cut(patch: wp.vec4i, y: int, x: int, image_size: wp.vec2i) -> bool:
    """Whether filtering a pixel reads past a border of the patch that is none of the image."""
    along_x = is_cut_along(patch[0], patch[2], x, image_size[1])
    return along_x or is_cut_along(patch[1], patch[3], y, image_size[0])


@wp.kernel
def erode(
    depth: wp.array2d(dtype=float),
    patches: wp.array(dtype=wp.vec4i),
    out: wp.array2d(dtype=float),
):
    """Drop a pixel when more than 80 % of its window is invalid or more than 1 mm away."""
    n, i = wp.tid()
    width = patches[n][2]
    height = patches[n][3]
    if i >= width * height:
        return
    center = depth[n, i]
    out[n, i] = 0.0
    if not is_valid(center):
        return
    y = i // width
    x = i - y * width
    y_first = wp.max(y - RADIUS_PX, 0)
    x_first = wp.max(x - RADIUS_PX, 0)
    y_last = wp.min(y + RADIUS_PX, height - 1)
    x_last = wp.min(x + RADIUS_PX, width - 1)
    total = (y_last - y_first + 1) * (x_last - x_first + 1)
    good = int(0)
    for v in range(y_first, y_last + 1):
        for u in range(x_first, x_last + 1):
            value = depth[n, v * width + u]
            if is_valid(value) and wp.abs(value - center) <= EROSION_DIFFERENCE_M:
                good += 1
                if EROSION_KEEPS * good >= total:  # on a surface after a fifth of the window
                    out[n, i] = center
                    return


@wp.func
def mean_in_band(  # noqa: PLR0913 (Warp's functions have no methods to share arguments)
    depth: wp.array2d(dtype=float),
    n: int,
    width: int,
    box: wp.vec4i,
    center: wp.vec2i,
    spatial: wp.array2d(dtype=float),
    mean: float,
) -> float:
    """Gaussian mean of a box's values within the band around a mean; 0 without any."""
    weights = float(0.0)
    weighted = float(0.0)
    for v in range(box[0], box[2] + 1):
        for u in range(box[1], box[3] + 1):
            value = depth[n, v * width + u]
            if is_valid(value) and wp.abs(value - mean) < BILATERAL_BAND_M:
                weight = spatial[v - center[0] + RADIUS_PX, u - center[1] + RADIUS_PX]
                weights += weight
                weighted += weight * value
    if weights > 0.0:
        return weighted / weights
    return 0.0


@wp.kernel
def smooth(
    depth: wp.array2d(dtype=float),
    patches: wp.array(dtype=wp.vec4i),
    image_size: wp.vec2i,
    spatial: wp.array2d(dtype=float),
    out: wp.array2d(dtype=float),
):
    """Gaussian mean of the neighbours within 1 cm of the window's mean; fills small holes.

    image_size: height, width. Where the patch cuts off what would be read there is no depth.
    """
    n, i = wp.tid()
    patch = patches[n]
    width = patch[2]
    height = patch[3]
    if i >= width * height:
        return
    out[n, i] = 0.0
    y = i // width
    x = i - y * width
    count = float(0.0)
    total = float(0.0)
    weights = float(0.0)
    weighted = float(0.0)
    nearest = float(FAR_M)
    farthest = float(0.0)
    y_first = wp.max(y - RADIUS_PX, 0)
    x_first = wp.max(x - RADIUS_PX, 0)
    y_last = wp.min(y + RADIUS_PX, height - 1)
    x_last = wp.min(x + RADIUS_PX, width - 1)
    for v in range(y_first, y_last + 1):
        for u in range(x_first, x_last + 1):
            value = depth[n, v * width + u]
            if is_valid(value):
                count += 1.0
                total += value
                weight = spatial[v - y + RADIUS_PX, u - x + RADIUS_PX]
                weights += weight
                weighted += weight * value
                nearest = wp.min(nearest, value)
                farthest = wp.max(farthest, value)
    if count == 0.0 or is_cut(patch, y, x, image_size):
        return
    if farthest - nearest < SURELY_IN_BAND_M:
        out[n, i] = weighted / weights  # all are in the band: another loop would add the same
        return
    box = wp.vec4i(y_first, x_first, y_last, x_last)
    out[n, i] = mean_in_band(depth, n, width, box, wp.vec2i(y, x), spatial, total / count)


def spatial_weights() -> torch.Tensor:
    """Gaussian of the distance in pixels, (5, 5) float32, 1 in the middle."""
    offsets = torch.arange(-2, 3, dtype=torch.float32)
    squared = offsets[:, None] ** 2 + offsets[None] ** 2
    return torch.exp(-squared / (2 * BILATERAL_SIGMA_PX**2))


class DepthFilter:
    """Erosion then bilateral smoothing of (I, H, W) float32 metres; owns its two buffers."""

    def __init__(self, images: int, height: int, width: int, device: torch.device) -> None:
        self._shape = (images, height, width)
        self._eroded, self._smooth = torch.zeros(2, *self._shape, device=device).unbind()
        self._spatial = spatial_weights().to(device)
        whole = [[0, 0, width, height]] * images
        self._patches = torch.tensor(whole, dtype=torch.int32, device=device)

    @property
    def result(self) -> torch.Tensor:
        """The buffer (I, H, W) that calls fill."""
        return self._smooth

    def __call__(self, depth_m: torch.Tensor) -> torch.Tensor:
        """Filter whole images; the result is the filter's buffer, valid until the next call.

        Raises ValueError when the depth is not of the size given on construction.
        """
        require(
            depth_m.shape == self._shape,
            f'depth is {tuple(depth_m.shape)}, this filter is for {self._shape}',
        )
        images, height, width = self._shape
        dim, device = (images, height * width), depth_m.device
        flat = (depth_m.contiguous(), self._eroded, self._smooth)
        source, eroded, smoothed = (as_warp(one.view(dim)) for one in flat)
        patches = as_warp(self._patches, wp.vec4i)
        launch(erode, dim, [source, patches, eroded], device)
        size, spatial = wp.vec2i(height, width), as_warp(self._spatial)
        launch(smooth, dim, [eroded, patches, size, spatial, smoothed], device)
        return self._smooth
