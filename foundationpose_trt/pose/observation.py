"""The frame crosses to the device once, the result comes back once; pinned memory on CUDA."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..cuda_streams import current_stream
from ..datatypes import Frame
from ..runtime.stage_timer import StageTimer
from .crop_pass import PassImages
from .depth import DepthFilter

INTRINSICS, BOX = slice(0, 4), slice(4, 8)  # in the parameters


@dataclass(frozen=True)
class Observed:
    """One frame on the device; views of the uploader's buffers, valid until its next upload.

    rgb: (1, H, W, 3) uint8; depth_m: (1, H, W) float32; mask: (H, W) bool; intrinsics: (1, 4)
    and box: (4,) of the mask, float32.
    """

    rgb: torch.Tensor
    depth_m: torch.Tensor
    mask: torch.Tensor
    intrinsics: torch.Tensor
    box: torch.Tensor


class Uploader:
    """Staging and device buffers of one image size. Not thread-safe.

    upload() must not be called again before the download() of the same frame has returned:
    that is what keeps the staging memory from being overwritten under a running copy.
    """

    def __init__(self, height: int, width: int, device: torch.device) -> None:
        self.size = (height, width)
        self._device = device
        pinned = device.type == 'cuda'

        def pair(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
            staging = torch.zeros(shape, dtype=dtype, pin_memory=pinned)
            return staging, torch.zeros(shape, dtype=dtype, device=device) if pinned else staging

        self._rgb = pair((1, height, width, 3), torch.uint8)
        self._depth = pair((1, height, width), torch.float32)
        self._mask = pair((height, width), torch.bool)
        self._parameters = pair((BOX.stop,), torch.float32)
        self.timer = StageTimer(device)  # of the copies
        self._filter = DepthFilter(1, height, width, device)
        self._result: torch.Tensor | None = None

    def upload(self, frame: Frame, mask: np.ndarray | None, box: np.ndarray | None) -> Observed:
        """Copy a frame and the parameters of a call to the device, asynchronously."""
        k = frame.intrinsics
        parameters = np.zeros(self._parameters[0].shape, np.float32)
        parameters[INTRINSICS] = k.fx, k.fy, k.cx, k.cy
        if box is not None:
            parameters[BOX] = box
        with self.timer:
            rgb = self._send(self._rgb, frame.rgb)
            depth = self._send(self._depth, frame.depth_m)
            on_device = self._mask[1] if mask is None else self._send(self._mask, mask != 0)
            sent = self._send(self._parameters, parameters)
        return Observed(rgb, depth, on_device, sent[INTRINSICS].view(1, 4), sent[BOX])

    @property
    def images(self) -> PassImages:
        """Where every frame's colours and filtered depth come to lie."""
        filtered = self._filter.result.view(1, -1)
        return PassImages(self._rgb[1].view(-1), filtered, self.size)

    def filtered_depth(self, observed: Observed) -> torch.Tensor:
        """Filtered depth (H, W); the filter's buffer, valid until the next call."""
        return self._filter(observed.depth_m)[0]

    def download(self, values: torch.Tensor) -> np.ndarray:
        """Bring a flat float32 result to the host: the only wait of a call."""
        if values.device.type == 'cpu':
            return values.numpy().copy()
        if self._result is None or len(self._result) < len(values):
            self._result = torch.empty(len(values), pin_memory=True)
        self._result[: len(values)].copy_(values, non_blocking=True)
        done = torch.cuda.Event()
        done.record(current_stream(self._device))
        done.synchronize()
        return self._result[: len(values)].numpy().copy()

    @staticmethod
    def _send(buffers: tuple[torch.Tensor, torch.Tensor], values: np.ndarray) -> torch.Tensor:
        staging, on_device = buffers
        np.copyto(staging.numpy(), values.reshape(staging.shape))
        if on_device is not staging:
            on_device.copy_(staging, non_blocking=True)
        return on_device
