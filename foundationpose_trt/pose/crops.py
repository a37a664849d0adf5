"""The networks' crop windows and the observed half "B" of their input (foundationpose.md §2).

The only file that knows the crop rule, the sampling grid and the channel order of B.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import warp as wp

from ..datatypes import require
from ..runtime.specs import BATCH, TensorSpec
from ..warp_launch import as_warp, launch
from .crop_blocks import crops_as_warp, is_crop_shape
from .pixel_kernels import CHANNELS, pixel_of, put

wp.set_module_options({'enable_backward': False})  # nothing is differentiated; half to compile

RENDERED, OBSERVED = 'inputA', 'inputB'  # what networks call the halves, foundationpose.md §6.4
PAIRS = 'crops'  # the input of both in one tensor, all of the first before all of the second
PAIR = 2  # crops of a pair
CROP_PX = 160  # input_resize of both released configurations, foundationpose.md §1.7


def pairs_spec(
    dtype: torch.dtype, layout: torch.memory_format = torch.contiguous_format
) -> TensorSpec:
    """What a network takes as pairs of crops (2 N, 6, 160, 160)."""
    return TensorSpec(PAIRS, (BATCH, CHANNELS, CROP_PX, CROP_PX), dtype, layout)


@dataclass(frozen=True)
class CropSpec:
    """What differs between the two networks (traps 3 and 4).

    ratio: crop side over object diameter. near_m: depth below it is invalid. two_step: the
    scorer's depth goes through a nearest lookup to the crop, back, and again (§2.3).
    """

    ratio: float
    near_m: float
    two_step: bool


REFINER_CROP = CropSpec(ratio=1.2, near_m=0.001, two_step=False)
SCORER_CROP = CropSpec(ratio=1.1, near_m=0.1, two_step=True)


def crop_windows(
    translations: torch.Tensor, intrinsics: torch.Tensor, diameters: torch.Tensor, ratio: float
) -> torch.Tensor:
    """Return the integer crop windows (N, 4) float64: left, top, width, height in pixels.

    translations: (N, 3) metres; intrinsics: (N or 1, 4) fx, fy, cx, cy; diameters: (N or 1,)
    metres. Corners are rounded half to even in float64, so that width and height may differ by
    one pixel (trap 7). Depth is clamped at 1 mm and the size to 1..1e6 px, so that a hypothesis
    behind the camera gives a harmless window instead of NaN.
    """
    t = translations.double()
    k = intrinsics.double()
    z = t[:, 2].clamp_min(1e-3)
    u = k[:, 0] * t[:, 0] / z + k[:, 2]
    v = k[:, 1] * t[:, 1] / z + k[:, 3]
    radius = torch.maximum(k[:, 0], k[:, 1]) * (ratio * diameters.double() / 2) / z
    left, right = torch.round(u - radius), torch.round(u + radius)
    top, bottom = torch.round(v - radius), torch.round(v + radius)
    size = torch.stack([right - left, bottom - top], dim=1).clamp(1, 1e6)
    return torch.cat([torch.stack([left, top], dim=1).clamp(-1e6, 1e6), size], dim=1)


def rendered_intrinsics(windows: torch.Tensor, intrinsics: torch.Tensor) -> torch.Tensor:
    """Intrinsics (N, 4) float32 of the rendered crop "A" (§2.4).

    The rectangle [left, left + 159/160 width] is stretched over 160 pixels with centres at
    half integers, which differs from the observed grid by up to half a crop pixel on purpose.
    """
    k = intrinsics.double()
    step = windows[:, 2:] * ((CROP_PX - 1) / CROP_PX) / CROP_PX
    focal = k[:, :2] / step
    center = (k[:, 2:] - windows[:, :2]) / step - 0.5
    return torch.cat([focal, center], dim=1).float()


def observed_grid(
    windows: torch.Tensor, width: int | torch.Tensor, height: int | torch.Tensor
) -> torch.Tensor:
    """Sampling grid (N, 4) float32 of the observed crop "B": x0, y0, x step, y step in pixels.

    Crop pixel i reads the source at x = left + i * width_px / 160, then, as the released
    networks were trained with kornia <= 0.8.2, at x * W / (W - 1) - 0.5 (§2.3, trap 8).
    """
    left, top, size_x, size_y = windows.unbind(1)
    scale_x, scale_y = width / (width - 1), height / (height - 1)
    origin = [left * scale_x - 0.5, top * scale_y - 0.5]
    step = [size_x / CROP_PX * scale_x, size_y / CROP_PX * scale_y]
    return torch.stack(origin + step, dim=1).float()


@wp.struct
class Observation:
    """Depth (I, H, W) metres, and the range of the colours that go with it."""

    depth: wp.array3d(dtype=float)
    intrinsics: wp.array(dtype=wp.vec4)
    color_range: float


@wp.struct
class Sampling:
    """Per crop: source grid, window, translation (metres) and 2 / diameter."""

    grid: wp.array(dtype=wp.vec4)
    window: wp.array(dtype=wp.vec4)
    translation: wp.array(dtype=wp.vec3)
    inverse_radius: wp.array(dtype=float)
    near_m: float
    two_step: int


@wp.func
def source_index(at: int, start: float, step: float) -> int:
    return int(wp.rint(start + float(at) * step))


@wp.func
def twice_looked_up(at: int, start: float, step: float, left: float, size: float) -> int:
    """Index path of the scorer's depth: image -> crop -> image -> crop (§2.3); -1 = outside."""
    first = float(source_index(at, start, step))
    crop = int(wp.rint((first - left) * 160.0 / size * (160.0 / 159.0) - 0.5))
    if crop < 0 or crop > 159:
        return -1
    return source_index(crop, start, step)


@wp.func
def inside(y: int, x: int, height: int, width: int) -> bool:
    return x >= 0 and y >= 0 and x < width and y < height


@wp.func
def color_at(rgb: wp.array(dtype=Any), start: int, size: wp.vec2i, y: int, x: int) -> wp.vec3:
    """Colour of a pixel of an image (size: height, width) that begins at a pixel of rgb."""
    if not inside(y, x, size[0], size[1]):
        return wp.vec3(0.0, 0.0, 0.0)
    at = (start + y * size[1] + x) * 3
    return wp.vec3(float(rgb[at]), float(rgb[at + 1]), float(rgb[at + 2]))


@wp.func
def bilinear_color(
    rgb: wp.array(dtype=Any), start: int, size: wp.vec2i, y: float, x: float
) -> wp.vec3:
    """Colour between pixels, black beyond the border."""
    x0 = int(wp.floor(x))
    y0 = int(wp.floor(y))
    fx = x - wp.floor(x)
    fy = y - wp.floor(y)
    color = color_at(rgb, start, size, y0, x0) * ((1.0 - fx) * (1.0 - fy))
    color += color_at(rgb, start, size, y0, x0 + 1) * (fx * (1.0 - fy))
    color += color_at(rgb, start, size, y0 + 1, x0) * ((1.0 - fx) * fy)
    color += color_at(rgb, start, size, y0 + 1, x0 + 1) * (fx * fy)
    return color


@wp.kernel
def sample_observed(
    rgb: wp.array(dtype=Any),
    observation: Observation,
    sampling: Sampling,
    out: wp.array4d(dtype=Any),
):
    """Observed half "B": bilinear colour, nearest depth turned into normalised xyz."""
    n, down, along = wp.tid()
    at = pixel_of(out, down, along, CROP_PX)
    j = at[0]
    i = at[1]
    image = n * observation.depth.shape[0] // out.shape[0]
    height = observation.depth.shape[1]
    width = observation.depth.shape[2]
    grid = sampling.grid[n]
    x = grid[0] + float(i) * grid[2]
    y = grid[1] + float(j) * grid[3]
    color = bilinear_color(rgb, image * height * width, wp.vec2i(height, width), y, x)
    u = source_index(i, grid[0], grid[2])
    v = source_index(j, grid[1], grid[3])
    read_u = u
    read_v = v
    if sampling.two_step == 1:
        window = sampling.window[n]
        read_u = twice_looked_up(i, grid[0], grid[2], window[0], window[2])
        read_v = twice_looked_up(j, grid[1], grid[3], window[1], window[3])
    xyz = wp.vec3(0.0, 0.0, 0.0)
    if inside(v, u, height, width) and inside(read_v, read_u, height, width):
        z = observation.depth[image, read_v, read_u]
        if z >= sampling.near_m:
            k = observation.intrinsics[image]
            point = wp.vec3((float(u) - k[2]) / k[0] * z, (float(v) - k[3]) / k[1] * z, z)
            xyz = (point - sampling.translation[n]) * sampling.inverse_radius[n]
    put(out, n, j, i, color / observation.color_range, xyz)


@dataclass(frozen=True)
class ObservedImages:
    """What the camera saw, on the device.

    rgb: (I, H, W, 3) uint8 (0..255) or float32 (0..1); depth_m: (I, H, W) float32, 0 = invalid;
    intrinsics: (I, 4) float32 fx, fy, cx, cy. The crop count N must be a multiple of I: crop n
    looks at image n * I // N.
    """

    rgb: torch.Tensor
    depth_m: torch.Tensor
    intrinsics: torch.Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.depth_m.shape[1], self.depth_m.shape[2]


@dataclass(frozen=True)
class CropGeometry:
    """Where N crops lie: windows (N, 4) float64, grid (N, 4) float32 as the functions above give,
    translations (N, 3) float32 metres, inverse_radius (N,) float32 1 / metres."""

    windows: torch.Tensor
    grid: torch.Tensor
    translations: torch.Tensor
    inverse_radius: torch.Tensor


def write_observed_input(
    out: torch.Tensor, images: ObservedImages, crops: CropGeometry, spec: CropSpec
) -> None:
    """Write B into out (N, 6, 160, 160), or in blocks (crop_blocks.in_blocks); asynchronous.

    fp32 or fp16, any strides.

    Raises ValueError for a crop count that the images do not divide and for other crop sizes.
    """
    require(
        len(out) % len(images.rgb) == 0 and is_crop_shape(out.shape, len(out), (CROP_PX, CROP_PX)),
        f'out is {tuple(out.shape)} for {len(images.rgb)} images, must be'
        f' (a multiple of them, 6, {CROP_PX}, {CROP_PX}), or that in blocks'
        ' (crop_blocks.in_blocks)',
    )
    observation = Observation()
    observation.depth = as_warp(images.depth_m)
    observation.intrinsics = as_warp(images.intrinsics, wp.vec4)
    observation.color_range = 255.0 if images.rgb.dtype == torch.uint8 else 1.0
    sampling = Sampling()
    held = [crops.grid, crops.windows.float(), crops.translations.float(), crops.inverse_radius]
    held = [tensor.contiguous() for tensor in held]
    sampling.grid = as_warp(held[0], wp.vec4)
    sampling.window = as_warp(held[1], wp.vec4)
    sampling.translation = as_warp(held[2], wp.vec3)
    sampling.inverse_radius = as_warp(held[3])
    sampling.near_m = spec.near_m
    sampling.two_step = int(spec.two_step)
    dim = (out.shape[0], CROP_PX, CROP_PX)
    rgb = images.rgb.contiguous().view(-1)
    arguments = [as_warp(rgb), observation, sampling, crops_as_warp(out)]
    launch(sample_observed, dim, arguments, out.device)
