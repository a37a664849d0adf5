"""From a camera's bytes to the network's input in one kernel.

Resize rule of rfdetr 1.11.2's predict(), export and benchmark: both sides stretched to the
network's, bilinear between pixel centres at half integers, without antialiasing (torch's
interpolate with align_corners=False); then / 255, minus mean, over standard deviation
(shared research, roboflow.md B2).
"""

from __future__ import annotations

from typing import Any, Protocol

import cv2
import numpy as np
import torch
import warp as wp

from ..datatypes import require
from ..warp_launch import as_warp, launch
from .images import LAYOUTS, MONO, RGB, RGBA, UYVY, YUYV, ColorImage
from .manifest import DetectorManifest

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
        self._staging = torch.empty(0, dtype=torch.uint8)
        self._sent = torch.empty(0, dtype=torch.uint8, device=device)
        self._source = Source()

    def upload(self, image: ColorImage) -> None:
        """Send the bytes; asynchronous."""
        size = len(image.data)
        if len(self._staging) < size:
            on_cuda = self._device.type == 'cuda'
            self._staging = torch.empty(size, dtype=torch.uint8, pin_memory=on_cuda)
            self._sent = self._staging.to(self._device)
        np.copyto(self._staging.numpy()[:size], image.data)
        if self._sent is not self._staging:
            self._sent[:size].copy_(self._staging[:size], non_blocking=True)
        self._source.data = as_warp(self._sent[:size])
        self._source.height, self._source.width = image.height, image.width
        self._source.step, self._source.layout = image.step, image.layout

    def write(self, out: torch.Tensor) -> None:
        """Fill out (1, 3, H, W), fp32 or fp16, on the device; asynchronous."""
        _require_input(out)
        height, width = out.shape[2:]
        scale = wp.vec2(self._source.height / height, self._source.width / width)
        arguments = [self._source, self._factor, self._offset, scale, as_warp(out)]
        launch(write_normalized, (height, width), arguments, self._device)


class CpuPreprocessor:
    """The same numbers (to 4e-4 of a standard deviation) by OpenCV."""

    def __init__(self, manifest: DetectorManifest, device: torch.device) -> None:
        self._factor, self._offset = _factor_and_offset(manifest)
        self._float = np.empty((1, 1, 3), np.float32)
        self._order = (0, 1, 2)

    def upload(self, image: ColorImage) -> None:
        """Take the levels as float: resized as bytes, they would be rounded to whole ones."""
        pixels, self._order = _channels(image)
        if self._float.shape != pixels.shape:
            self._float = np.empty(pixels.shape, np.float32)
        np.copyto(self._float, pixels)

    def write(self, out: torch.Tensor) -> None:
        """Fill out (1, 3, H, W), fp32 or fp16."""
        _require_input(out)
        height, width = out.shape[2:]
        resized = cv2.resize(self._float, (width, height), interpolation=cv2.INTER_LINEAR)
        for plane, channel, factor, offset in zip(
            out.numpy()[0], self._order, self._factor, self._offset, strict=True
        ):
            values = resized if resized.ndim == 2 else resized[..., channel]
            np.multiply(values, factor, out=plane, casting='same_kind')
            plane += offset


def _channels(image: ColorImage) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Pixels (H, W) or (H, W, channels), and which channels are R, G, B."""
    _, pixel_bytes = LAYOUTS[image.encoding]
    shape, strides = (image.height, image.width, pixel_bytes), (image.step, pixel_bytes, 1)
    pixels = np.lib.stride_tricks.as_strided(image.data, shape, strides, writeable=False)
    if image.layout in YUV_CONVERSIONS:
        return cv2.cvtColor(pixels, YUV_CONVERSIONS[image.layout]), (0, 1, 2)
    if image.layout == MONO:
        return pixels[..., 0], (0, 0, 0)
    return pixels, (0, 1, 2) if image.layout in (RGB, RGBA) else (2, 1, 0)


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
