"""The frame crosses to the device once, the result comes back once; pinned memory on CUDA."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..datatypes import Frame
from .depth import DepthFilter

PARAMETERS = 4 + 4 + 16  # intrinsics, mask box, pose


@dataclass(frozen=True)
class Observed:
    """One frame on the device; views of the uploader's buffers, valid until its next upload.

    rgb: (1, H, W, 3) uint8; depth_m: (1, H, W) float32; mask: (H, W) bool; intrinsics: (1, 4);
    box: (4,) mask box; pose: (1, 4, 4) camera_from_centered; float32.
    """

    rgb: torch.Tensor
    depth_m: torch.Tensor
    mask: torch.Tensor
    intrinsics: torch.Tensor
    box: torch.Tensor
    pose: torch.Tensor


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
        self._parameters = pair((PARAMETERS,), torch.float32)
        self._filter = DepthFilter(1, height, width, device)
        self._result: torch.Tensor | None = None

    def upload(
        self,
        frame: Frame,
        mask: np.ndarray | None,
        box: np.ndarray | None,
        camera_from_centered: np.ndarray | None = None,
    ) -> Observed:
        """Copy a frame and the parameters of a call to the device, asynchronously."""
        k = frame.intrinsics
        parameters = np.zeros(PARAMETERS, np.float32)
        parameters[:4] = k.fx, k.fy, k.cx, k.cy
        if box is not None:
            parameters[4:8] = box
        if camera_from_centered is not None:
            parameters[8:] = np.asarray(camera_from_centered, np.float32).ravel()
        rgb = self._send(self._rgb, frame.rgb)
        depth = self._send(self._depth, frame.depth_m)
        on_device = self._mask[1] if mask is None else self._send(self._mask, mask != 0)
        sent = self._send(self._parameters, parameters)
        pose = sent[8:].view(1, 4, 4)
        return Observed(rgb, depth, on_device, sent[:4].view(1, 4), sent[4:8], pose)

    def filtered_depth(
        self, observed: Observed, region: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Filtered depth (H, W), 0 outside the region (default: the whole image)."""
        return self._filter(observed.depth_m, region)[0]

    def download(self, values: torch.Tensor) -> np.ndarray:
        """Bring a flat float32 result to the host: the only wait of a call."""
        if values.device.type == 'cpu':
            return values.numpy().copy()
        if self._result is None or len(self._result) < len(values):
            self._result = torch.empty(len(values), pin_memory=True)
        self._result[: len(values)].copy_(values, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        done.synchronize()
        return self._result[: len(values)].numpy().copy()

    @staticmethod
    def _send(buffers: tuple[torch.Tensor, torch.Tensor], values: np.ndarray) -> torch.Tensor:
        staging, on_device = buffers
        np.copyto(staging.numpy(), values.reshape(staging.shape))
        if on_device is not staging:
            on_device.copy_(staging, non_blocking=True)
        return on_device
