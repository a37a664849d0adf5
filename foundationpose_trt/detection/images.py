"""A colour image as its driver left it in memory, and what its encodings mean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..datatypes import require

# Layout by name, as ROS 2 names it (sensor_msgs/image_encodings.hpp): index for the kernel, bytes
# per pixel. Generic 8UCn images come from OpenCV: B G R. yuv422 is the old name of UYVY.
RGB, BGR, RGBA, BGRA, MONO, UYVY, YUYV = range(7)
LAYOUTS = {
    'rgb8': (RGB, 3),
    'bgr8': (BGR, 3),
    '8UC3': (BGR, 3),
    'rgba8': (RGBA, 4),
    'bgra8': (BGRA, 4),
    '8UC4': (BGRA, 4),
    'mono8': (MONO, 1),
    '8UC1': (MONO, 1),
    'yuv422': (UYVY, 2),
    'uyvy': (UYVY, 2),
    'yuv422_yuy2': (YUYV, 2),
    'yuyv': (YUYV, 2),
}


class UnknownEncoding(ValueError):
    """An encoding that this package cannot read without a library."""


@dataclass(frozen=True)
class ColorImage:
    """Rows of pixels, one after the other every `step` bytes.

    data: (N,) uint8, N at least step * (height - 1) + one row. encoding: a key of LAYOUTS.
    Raises UnknownEncoding, and ValueError where the sizes contradict each other.
    """

    data: np.ndarray
    height: int
    width: int
    step: int
    encoding: str

    def __post_init__(self) -> None:
        if self.encoding not in LAYOUTS:
            raise UnknownEncoding(
                f"image has encoding '{self.encoding}', must be one of {', '.join(LAYOUTS)}"
            )
        size = f'{self.width}x{self.height}'
        require(self.height > 0 and self.width > 0, f'image is {size} pixels, must not be empty')
        layout, pixel_bytes = LAYOUTS[self.encoding]
        require(
            layout not in (UYVY, YUYV) or self.width % 2 == 0,
            f'image is {size}, encoding {self.encoding} holds pixels in pairs: the width must be'
            ' even',
        )
        row = self.width * pixel_bytes
        require(
            self.step >= row,
            f'image has step {self.step}, its {self.width} pixels of {self.encoding} need {row}'
            ' bytes per row',
        )
        needed = self.step * (self.height - 1) + row
        require(
            self.data.dtype == np.uint8 and self.data.ndim == 1 and len(self.data) >= needed,
            f'image holds {self.data.dtype} {self.data.shape}, {size} pixels of {self.encoding}'
            f' with step {self.step} need {needed} bytes',
        )

    @classmethod
    def of_array(cls, pixels: np.ndarray, encoding: str = 'rgb8') -> ColorImage:
        """Take (H, W, channels) or (H, W) uint8; rows may be apart, pixels may not."""
        require(
            pixels.dtype == np.uint8 and pixels.ndim in (2, 3) and pixels.size > 0,
            f'image is {pixels.dtype} {pixels.shape}, must be uint8 (H, W) or (H, W, channels)',
        )
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        _, pixel_bytes = LAYOUTS.get(encoding, (0, channels))
        require(
            channels == pixel_bytes,
            f'image has {channels} bytes per pixel, encoding {encoding} has {pixel_bytes}',
        )
        height, width = pixels.shape[:2]
        packed = np.ascontiguousarray(pixels)
        return cls(packed.reshape(-1), height, width, width * channels, encoding)

    @property
    def layout(self) -> int:
        """Index of the pixel layout."""
        return LAYOUTS[self.encoding][0]
