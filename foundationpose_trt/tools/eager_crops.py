"""Filtered depth, crop windows and the observed half "B" in plain torch operations.

Shares no code with pose/depth.py and pose/crops.py, to be their oracle: foundationpose.md §2 and
§3.3 once more, step by step as the published program takes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from ..datatypes import Frame

SIDE_PX = 160
VALID_M, FAR_M = 0.001, 100.0
ERODED_FROM_M, ERODED_SHARE = 0.001, (4, 5)  # more than 4 of 5 neighbours bad
WINDOW_PX, SIGMA_PX, BAND_M = 5, 2.0, 0.01
FAR_FROM_CENTER = 2.0  # radii from which on a coordinate is zeroed


@dataclass(frozen=True)
class CropRule:
    """What differs between the two networks (traps 3 and 4).

    ratio: crop side over diameter; near_m: depth below it is invalid; there_and_back: depth is
    cropped, put back into the image and cropped again (§2.3).
    """

    ratio: float
    near_m: float
    there_and_back: bool


REFINER_RULE = CropRule(1.2, 0.001, False)
SCORER_RULE = CropRule(1.1, 0.1, True)


@dataclass(frozen=True)
class Seen:
    """One frame on the device, prepared once for all hypotheses.

    rgb: (1, 3, H, W) float32 0..255; depth_m: (H, W) float32, filtered; xyz_m: (H, W, 3) float32,
    0 without depth; intrinsics: (4,) float64 fx, fy, cx, cy.
    """

    rgb: torch.Tensor
    depth_m: torch.Tensor
    xyz_m: torch.Tensor
    intrinsics: torch.Tensor


def observe(frame: Frame, device: torch.device) -> Seen:
    """Bring a frame to the device, filter its depth and unproject all of it."""
    k = frame.intrinsics
    intrinsics = torch.tensor([k.fx, k.fy, k.cx, k.cy], dtype=torch.float64, device=device)
    rgb, depth = (np.ascontiguousarray(image) for image in (frame.rgb, frame.valid_depth_m))
    colors = torch.tensor(rgb, device=device).permute(2, 0, 1)[None].float()
    depth_m = filter_depth(torch.tensor(depth, device=device))
    rows, columns = (torch.arange(size, device=device) for size in depth_m.shape)
    xyz_m = unproject(depth_m, columns[None, :], rows[:, None], intrinsics)
    return Seen(colors, depth_m, xyz_m, intrinsics)


def filter_depth(depth_m: torch.Tensor) -> torch.Tensor:
    """Erode, then smooth all of an image (H, W) float32 metres; 0 = no depth (§3.3)."""
    return _smooth(_erode(depth_m))


def _neighbours(image: torch.Tensor) -> torch.Tensor:
    """Return the 5x5 window around each pixel, (25, H, W), 0 beyond the border."""
    columns = functional.unfold(image[None, None], WINDOW_PX, padding=WINDOW_PX // 2)
    return columns[0].view(-1, *image.shape)


def _valid(depth_m: torch.Tensor) -> torch.Tensor:
    return (depth_m >= VALID_M) & (depth_m < FAR_M)


def _erode(depth_m: torch.Tensor) -> torch.Tensor:
    around = _neighbours(depth_m)
    good = (_valid(around) & ((around - depth_m).abs() <= ERODED_FROM_M)).sum(0)
    total = _neighbours(torch.ones_like(depth_m)).sum(0)
    few, of = ERODED_SHARE
    return torch.where(of * (total - good) > few * total, 0.0, depth_m)


def _smooth(depth_m: torch.Tensor) -> torch.Tensor:
    around = _neighbours(depth_m)
    usable = _valid(around)
    mean = (around * usable).sum(0) / usable.sum(0)  # NaN where there is nothing: not near
    near = usable & ((around - mean).abs() < BAND_M)
    offset = torch.arange(WINDOW_PX, device=depth_m.device) - WINDOW_PX // 2
    squared = (offset[:, None] ** 2 + offset**2).flatten()
    weight = near * torch.exp(-squared / (2 * SIGMA_PX**2))[:, None, None]
    return torch.nan_to_num((weight * around).sum(0) / weight.sum(0))


def unproject(
    depth_m: torch.Tensor, u: torch.Tensor, v: torch.Tensor, intrinsics: torch.Tensor
) -> torch.Tensor:
    """Points (..., 3) float32 metres of depth (...) at pixels u, v; 0 where there is no depth."""
    fx, fy, cx, cy = intrinsics
    points = torch.stack([(u - cx) / fx * depth_m, (v - cy) / fy * depth_m, depth_m], -1)
    return (points * (depth_m >= VALID_M)[..., None]).float()


def crop_windows(
    translations: torch.Tensor, intrinsics: torch.Tensor, diameter_m: float, ratio: float
) -> torch.Tensor:
    """Whole pixels (N, 4) float64: left, top, right, bottom (§2.2, trap 7).

    translations: (N, 3) metres; intrinsics: (4,) float64. The object's middle and four points
    around it are projected. What is not before the camera gets a window as if 1 mm from it.
    """
    reach = ratio * diameter_m / 2
    cross = [[0, 0, 0], [reach, 0, 0], [-reach, 0, 0], [0, reach, 0], [0, -reach, 0]]
    points = translations.double()[:, None] + intrinsics.new_tensor(cross)
    plane = points[..., :2] / points[..., 2:].clamp_min(VALID_M)
    pixels = plane * intrinsics[:2] + intrinsics[2:]
    center = pixels[:, 0]
    radius = (pixels - center[:, None]).abs().amax((1, 2))[:, None]
    return torch.cat([center - radius, center + radius], 1).round()


def rendered_intrinsics(windows: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    """fx, fy, cx, cy (N, 4) float64 of the rendered crop: (0, 0) to (159, 159) over 160 pixels.

    Pixel i shows the image at left + (i + 0.5) * (159 / 160) * width / 160 (§2.4).
    """
    step = (windows[:, 2:] - windows[:, :2]) * (SIDE_PX - 1) / SIDE_PX / SIDE_PX
    middle = (intrinsics[2:] - windows[:, :2]) / step - 0.5
    return torch.cat([intrinsics[:2] / step, middle], 1)


def observed_crops(
    seen: Seen, windows: torch.Tensor, translations: torch.Tensor, radius_m: float, rule: CropRule
) -> torch.Tensor:
    """Return B (N, 6, 160, 160) float32: R, G, B in 0..1, xyz from the translations in radii.

    windows: (N, 4) float64 as crop_windows; translations: (N, 3) metres.
    """
    xyz_m = _xyz_there_and_back(seen, windows) if rule.there_and_back else _xyz(seen, windows)
    xyz = (xyz_m - translations[:, None, None]) / radius_m
    hidden = (xyz_m[..., 2:] < rule.near_m) | (xyz.abs() >= FAR_FROM_CENTER)
    xyz = torch.where(hidden, 0.0, xyz)
    return torch.cat([_colors(seen, windows), xyz.permute(0, 3, 1, 2)], 1)


def _places(windows: torch.Tensor, axis: int) -> torch.Tensor:
    """Where in the image crop pixels nominally lie along x (0) or y (1): (N, 160) float64."""
    first, size = windows[:, axis, None], (windows[:, 2 + axis] - windows[:, axis])[:, None]
    return first + torch.arange(SIDE_PX, device=windows.device) * size / SIDE_PX


def _colors(seen: Seen, windows: torch.Tensor) -> torch.Tensor:
    """Sample bilinearly with black outside, as kornia <= 0.8.2 does (trap 8)."""
    height, width = seen.depth_m.shape
    x, y = _places(windows, 0) / (width - 1), _places(windows, 1) / (height - 1)
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), -1) * 2 - 1
    images = seen.rgb.expand(len(windows), -1, -1, -1)
    return functional.grid_sample(images, grid.float(), align_corners=False) / 255


def _nearest(places: torch.Tensor, size: int) -> torch.Tensor:
    """Index that nominal places really read, old kornia's shift included; halves go to even."""
    return (places * size / (size - 1) - 0.5).round().long()


def _indices(seen: Seen, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns (N, 160) that the crops read, also outside the image."""
    height, width = seen.depth_m.shape
    return _nearest(_places(windows, 1), height), _nearest(_places(windows, 0), width)


def _inside(rows: torch.Tensor, columns: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    """Whether rows (N, h) and columns (N, w) lie in an image of size (H, W): (N, h, w) bool."""
    in_rows, in_columns = (rows >= 0) & (rows < size[0]), (columns >= 0) & (columns < size[1])
    return in_rows[:, :, None] & in_columns[:, None, :]


def _look_up(image: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Values (N, h, w, C) of an image (H, W, C) at rows (N, h) and columns (N, w), 0 outside."""
    last_row, last_column = image.shape[0] - 1, image.shape[1] - 1
    row, column = rows.clamp(0, last_row)[:, :, None], columns.clamp(0, last_column)[:, None, :]
    return image[row, column] * _inside(rows, columns, image.shape)[..., None]


def _xyz(seen: Seen, windows: torch.Tensor) -> torch.Tensor:
    """Points (N, 160, 160, 3) metres that the crops show."""
    return _look_up(seen.xyz_m, *_indices(seen, windows))


def _xyz_there_and_back(seen: Seen, windows: torch.Tensor) -> torch.Tensor:
    """Points (N, 160, 160, 3) metres of depth that was cropped, put back and cropped again.

    The crop is aligned with the axes: rows and columns go there and back apart.
    """
    rows, columns = _indices(seen, windows)
    again = _there_and_back(rows, windows, 1), _there_and_back(columns, windows, 0)
    depth_m = _look_up(seen.depth_m[..., None], *again)[..., 0]
    depth_m = depth_m * _inside(rows, columns, seen.depth_m.shape)
    return unproject(depth_m, columns[:, None, :], rows[:, :, None], seen.intrinsics)


def _there_and_back(indices: torch.Tensor, windows: torch.Tensor, axis: int) -> torch.Tensor:
    """Which row or column of the image the depth put back at `indices` (N, 160) came from.

    -1 where the crop did not reach.
    """
    first, size = windows[:, axis, None], (windows[:, 2 + axis] - windows[:, axis])[:, None]
    in_crop = _nearest((indices - first) * SIDE_PX / size, SIDE_PX)
    source = indices.gather(1, in_crop.clamp(0, SIDE_PX - 1))
    return torch.where((in_crop >= 0) & (in_crop < SIDE_PX), source, -1)
