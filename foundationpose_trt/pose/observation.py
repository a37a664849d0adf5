"""The frame crosses to the device once, the result comes back once; pinned memory on CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..datatypes import Frame
from ..runtime.stage_timer import StageTimer
from .depth import DepthFilter

INTRINSICS, BOX = slice(0, 4), slice(4, 8)  # in the parameters, then poses and their objects


@dataclass(frozen=True)
class Observed:
    """One frame on the device; views of the uploader's buffers, valid until its next upload.

    rgb: (1, H, W, 3) uint8; depth_m: (1, H, W) float32; mask: (H, W) bool; intrinsics: (1, 4);
    box: (4,) mask box; pose: (n, 4, 4) camera_from_centered; float32. objects: (n,) int32, the
    place of each pose's mesh.
    """

    rgb: torch.Tensor
    depth_m: torch.Tensor
    mask: torch.Tensor
    intrinsics: torch.Tensor
    box: torch.Tensor
    pose: torch.Tensor
    objects: torch.Tensor


class Uploader:
    """Staging and device buffers of one image size. Not thread-safe.

    upload() must not be called again before the download() of the same frame has returned:
    that is what keeps the staging memory from being overwritten under a running copy.
    """

    def __init__(self, height: int, width: int, device: torch.device, poses: int = 1) -> None:
        """poses: the most that one upload brings."""
        self.size = (height, width)
        self._poses = poses
        self._device = device
        pinned = device.type == 'cuda'

        def pair(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
            staging = torch.zeros(shape, dtype=dtype, pin_memory=pinned)
            return staging, torch.zeros(shape, dtype=dtype, device=device) if pinned else staging

        self._rgb = pair((1, height, width, 3), torch.uint8)
        self._depth = pair((1, height, width), torch.float32)
        self._mask = pair((height, width), torch.bool)
        self._parameters = pair((BOX.stop + 17 * poses,), torch.float32)
        self.timer = StageTimer(device)  # of the copies
        self._filter = DepthFilter(1, height, width, device)
        self._result: torch.Tensor | None = None

    def upload(
        self,
        frame: Frame,
        mask: np.ndarray | None,
        box: np.ndarray | None,
        camera_from_centered: np.ndarray | None = None,
        objects: Sequence[int] = (0,),
    ) -> Observed:
        """Copy a frame and the parameters of a call to the device, asynchronously.

        camera_from_centered: (4, 4) or (n, 4, 4) of the n objects, n as given on construction
        or fewer.
        """
        k, n = frame.intrinsics, len(objects)
        parameters = np.zeros(self._parameters[0].shape, np.float32)
        parameters[INTRINSICS] = k.fx, k.fy, k.cx, k.cy
        if box is not None:
            parameters[BOX] = box
        poses = slice(BOX.stop, BOX.stop + 16 * n)
        places = slice(BOX.stop + 16 * self._poses, BOX.stop + 16 * self._poses + n)
        if camera_from_centered is not None:
            parameters[poses] = np.asarray(camera_from_centered, np.float32).ravel()
        parameters[places] = objects
        with self.timer:
            rgb = self._send(self._rgb, frame.rgb)
            depth = self._send(self._depth, frame.depth_m)
            on_device = self._mask[1] if mask is None else self._send(self._mask, mask != 0)
            sent = self._send(self._parameters, parameters)
        intrinsics, pose = sent[INTRINSICS].view(1, 4), sent[poses].view(n, 4, 4)
        of_pose = sent[places].to(torch.int32)
        return Observed(rgb, depth, on_device, intrinsics, sent[BOX], pose, of_pose)

    def filtered_depth(
        self, observed: Observed, regions: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Filtered depth (H, W), 0 outside the regions (R, 4) (default: the whole image)."""
        return self._filter(observed.depth_m, None if regions is None else regions[None])[0]

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
