"""From a camera's bytes to the network's input in one kernel.

Resize rule of rfdetr 1.11.2's predict(), export and benchmark: both sides stretched to the
network's, bilinear between pixel centres at half integers, without antialiasing (torch's
interpolate with align_corners=False); then / 255, minus mean, over standard deviation
(shared research, roboflow.md B2).
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import cv2
import numpy as np
import torch
import warp as wp

from ..datatypes import require
from ..warp_launch import RecordedLaunch, as_warp, stream_of
from .images import LAYOUTS, MONO, RGB, RGBA, UYVY, YUYV, ColorImage
from .manifest import DetectorManifest

wp.set_module_options({'enable_backward': False})  # nothing is differentiated; half to compile

STRIP_PIXELS = 100_000  # 1.2 MB of three floats each: what a core's cache holds
YUV_CONVERSIONS = {UYVY: cv2.COLOR_YUV2RGB_UYVY, YUYV: cv2.COLOR_YUV2RGB_YUY2}


@wp.struct
class Source:
    """A colour image: bytes, size in pixels, bytes from row to row, layout of images.LAYOUTS."""

    data: wp.array(dtype=wp.uint8)
    height: int
    width: int
    step: int
    layout: int


@wp.func
def byte_at(source: Source, at: int) -> float:
    return float(source.data[at])


@wp.func
def of_yuv(y: float, u: float, v: float) -> wp.vec3:
    """BT.601 with limited range, rounded to whole levels as OpenCV's conversion rounds."""
    luma = 1.164 * wp.max(y - 16.0, 0.0)
    r = luma + 1.596 * (v - 128.0)
    g = luma - 0.813 * (v - 128.0) - 0.391 * (u - 128.0)
    b = luma + 2.018 * (u - 128.0)
    return wp.vec3(
        wp.clamp(wp.floor(r + 0.5), 0.0, 255.0),
        wp.clamp(wp.floor(g + 0.5), 0.0, 255.0),
        wp.clamp(wp.floor(b + 0.5), 0.0, 255.0),
    )


@wp.func
def pixel_at(source: Source, y: int, x: int) -> wp.vec3:
    """R, G, B in 0..255."""
    row = y * source.step
    if source.layout == 0:
        at = row + 3 * x
        return wp.vec3(byte_at(source, at), byte_at(source, at + 1), byte_at(source, at + 2))
    if source.layout == 1:
        at = row + 3 * x
        return wp.vec3(byte_at(source, at + 2), byte_at(source, at + 1), byte_at(source, at))
    if source.layout == 2:
        at = row + 4 * x
        return wp.vec3(byte_at(source, at), byte_at(source, at + 1), byte_at(source, at + 2))
    if source.layout == 3:
        at = row + 4 * x
        return wp.vec3(byte_at(source, at + 2), byte_at(source, at + 1), byte_at(source, at))
    if source.layout == 4:
        gray = byte_at(source, row + x)
        return wp.vec3(gray, gray, gray)
    pair = row + 4 * (x / 2)
    odd = x % 2
    if source.layout == 5:
        return of_yuv(
            byte_at(source, pair + 1 + 2 * odd), byte_at(source, pair), byte_at(source, pair + 2)
        )
    return of_yuv(
        byte_at(source, pair + 2 * odd), byte_at(source, pair + 1), byte_at(source, pair + 3)
    )


@wp.func
def source_position(at: int, scale: float) -> float:
    return wp.max((float(at) + 0.5) * scale - 0.5, 0.0)


@wp.kernel
def write_normalized(
    source: Source, factor: wp.vec3, offset: wp.vec3, scale: wp.vec2, out: wp.array4d(dtype=Any)
):
    """One output pixel: four taps, blended, times factor plus offset."""
    j, i = wp.tid()
    y = source_position(j, scale[0])
    x = source_position(i, scale[1])
    y0 = int(y)
    x0 = int(x)
    y1 = wp.min(y0 + 1, source.height - 1)
    x1 = wp.min(x0 + 1, source.width - 1)
    fy = y - float(y0)
    fx = x - float(x0)
    upper = pixel_at(source, y0, x0) * (1.0 - fx) + pixel_at(source, y0, x1) * fx
    lower = pixel_at(source, y1, x0) * (1.0 - fx) + pixel_at(source, y1, x1) * fx
    blended = upper * (1.0 - fy) + lower * fy
    for c in range(3):
        out[0, c, j, i] = out.dtype(blended[c] * factor[c] + offset[c])


for _dtype in (wp.float32, wp.float16):  # before the first launch: each would build all anew
    wp.overload(write_normalized, {'out': wp.array4d(dtype=_dtype)})


class Preprocessor(Protocol):
    """Writes images of any size into a network's input. Not thread-safe."""

    def upload(self, image: ColorImage) -> None:
        """Take the next image."""

    def write(self, out: torch.Tensor) -> None:
        """Fill out (1, 3, H, W), fp32 or fp16, where the network runs."""


def make_preprocessor(manifest: DetectorManifest, device: torch.device) -> Preprocessor:
    """One kernel on CUDA; OpenCV's vectorised functions on a CPU, where they are far faster."""
    kind = CpuPreprocessor if device.type == 'cpu' else KernelPreprocessor
    return kind(manifest, device)


class KernelPreprocessor:
    """One upload of the raw bytes and one kernel, without a host sync.

    On CUDA an image must not be given before what was made of the last one is on the host: its
    staging memory is one.
    """

    def __init__(self, manifest: DetectorManifest, device: torch.device) -> None:
        self._device = device
        factor, offset = _factor_and_offset(manifest)
        self._factor, self._offset = wp.vec3(*factor), wp.vec3(*offset)
        self._shape: tuple[int, ...] = ()  # of the last image: size in bytes and the rest
        self._staging = torch.empty(0, dtype=torch.uint8)
        self._sent = torch.empty(0, dtype=torch.uint8, device=device)
        self._source = Source()
        self._out: torch.Tensor | None = None  # that the launch was recorded for
        self._launch: RecordedLaunch | None = None

    def upload(self, image: ColorImage) -> None:
        """Send the bytes; asynchronous."""
        shape = (len(image.data), image.height, image.width, image.step, image.layout)
        if shape != self._shape:
            self._prepare(shape)
        np.copyto(self._staging.numpy(), image.data)
        if self._sent is not self._staging:
            self._sent.copy_(self._staging, non_blocking=True)

    def _prepare(self, shape: tuple[int, ...]) -> None:
        """Take images of another kind from now on; the last of the old kind is on the host."""
        size, height, width, step, layout = shape
        on_cuda = self._device.type == 'cuda'
        self._staging = torch.empty(size, dtype=torch.uint8, pin_memory=on_cuda)
        self._sent = self._staging.to(self._device)
        self._source = Source()
        self._source.data = as_warp(self._sent)
        self._source.height, self._source.width = height, width
        self._source.step, self._source.layout = step, layout
        self._launch, self._shape = None, shape

    def write(self, out: torch.Tensor) -> None:
        """Fill out (1, 3, H, W), fp32 or fp16, on the device; asynchronous."""
        if self._launch is None or out is not self._out:
            _require_input(out)
            self._launch, self._out = self._recorded(out), out
        self._launch((out.shape[2], out.shape[3]), stream_of(self._device))

    def _recorded(self, out: torch.Tensor) -> RecordedLaunch:
        """Prepare the launch, once for all images of a kind."""
        height, width = out.shape[2:]
        scale = wp.vec2(self._source.height / height, self._source.width / width)
        arguments = [self._source, self._factor, self._offset, scale, as_warp(out)]
        return RecordedLaunch(write_normalized, (height, width), arguments, self._device)


class CpuPreprocessor:
    """The same numbers (to 4e-4 of a standard deviation) by OpenCV.

    In strips that stay in the processor's cache, where they can be cut without a change to any
    tap: a whole image as floats would go to memory and back. The image given to upload must stay
    as it is until write has ended.
    """

    def __init__(self, manifest: DetectorManifest, device: torch.device) -> None:
        self._factor, self._offset = _factor_and_offset(manifest)
        self._pixels = np.empty((0, 0, 3), np.uint8)
        self._layout = RGB
        self._levels = np.empty((0, 0, 3), np.float32)

    def upload(self, image: ColorImage) -> None:
        """Take the next image, in place."""
        _, pixel_bytes = LAYOUTS[image.encoding]
        shape, strides = (image.height, image.width, pixel_bytes), (image.step, pixel_bytes, 1)
        data = np.ascontiguousarray(image.data)  # a view of it, where it is that already
        self._pixels = np.lib.stride_tricks.as_strided(data, shape, strides, writeable=False)
        self._layout = image.layout

    def write(self, out: torch.Tensor) -> None:
        """Fill out (1, 3, H, W), fp32 or fp16."""
        _require_input(out)
        planes = out.numpy()[0]
        (source_height, source_width), height = self._pixels.shape[:2], planes.shape[1]
        count = _strips(source_height, height, source_width)
        rows, source_rows = height // count, source_height // count
        normalizer = self._normalizer()
        for k in range(count):
            strip = self._levels_of(self._pixels[k * source_rows : (k + 1) * source_rows])
            size = (planes.shape[2], rows)
            resized = cv2.resize(strip, size, interpolation=cv2.INTER_LINEAR)
            normalized = cv2.transform(resized, normalizer)
            _split(normalized, planes[:, k * rows : (k + 1) * rows])

    def _levels_of(self, pixels: np.ndarray) -> np.ndarray:
        """Levels as floats: resized as bytes, they would be rounded to whole ones."""
        if self._layout in YUV_CONVERSIONS:
            pixels = cv2.cvtColor(pixels, YUV_CONVERSIONS[self._layout])
        if self._levels.shape != pixels.shape:
            self._levels = np.empty(pixels.shape, np.float32)
        np.copyto(self._levels, pixels)
        return self._levels

    def _normalizer(self) -> np.ndarray:
        """(3, channels + 1): what turns a pixel's levels and 1 into normalised R, G, B."""
        is_yuv = self._layout in YUV_CONVERSIONS
        channels = 3 if is_yuv else self._pixels.shape[2]
        forward = is_yuv or self._layout in (RGB, RGBA)
        order = (0, 0, 0) if self._layout == MONO else (0, 1, 2) if forward else (2, 1, 0)
        matrix = np.zeros((3, channels + 1), np.float32)
        matrix[range(3), order] = self._factor
        matrix[:, -1] = self._offset
        return matrix


def _strips(source_height: int, height: int, width: int) -> int:
    """How many strips to cut an image into, so that each is STRIP_PIXELS or few rows.

    Strips of whole rows on both sides sample as the whole does; when an image is enlarged, the
    taps of a strip would reach into the next.
    """
    common = math.gcd(source_height, height) if source_height >= height else 1
    wanted = max(source_height * width // STRIP_PIXELS, 1)
    return min(
        (n for n in range(1, common + 1) if common % n == 0 and n >= wanted), default=common
    )


def _split(pixels: np.ndarray, planes: np.ndarray) -> None:
    """Write (H, W, 3) float32 into planes (3, H, W)."""
    if planes.dtype == np.float32:
        cv2.split(pixels, list(planes))
    else:
        np.copyto(planes, pixels.transpose(2, 0, 1), casting='same_kind')


def _factor_and_offset(manifest: DetectorManifest) -> tuple[np.ndarray, np.ndarray]:
    """What makes a level 0..255 of R, G, B a normalised value: times one, plus the other."""
    deviation = np.asarray(manifest.deviation, np.float64)
    offset = -np.asarray(manifest.mean, np.float64) / deviation
    return (1 / (255 * deviation)).astype(np.float32), offset.astype(np.float32)


def _require_input(out: torch.Tensor) -> None:
    require(
        out.dim() == 4 and out.shape[:2] == (1, 3),
        f'the network input is {tuple(out.shape)}, must be (1, 3, H, W)',
    )
