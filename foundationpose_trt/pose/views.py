"""Network inputs of poses of one object: rendered "A" and observed "B" into fixed buffers."""

from __future__ import annotations

import torch

from .crops import (
    CROP_PX,
    OBSERVED,
    RENDERED,
    CropGeometry,
    CropSpec,
    ObservedImages,
    crop_windows,
    observed_grid,
    rendered_intrinsics,
    write_observed_input,
)
from .mesh import ObjectMesh
from .mesh_bank import MeshBank
from .rasterizer import Rasterizer

NEIGHBOURHOOD_RATIO = 2.0  # the refiner's 1.2 and 0.4 diameters of motion to each side


class ViewWriter:
    """Owns the buffers (capacity, 6, 160, 160) of both halves and the rasterizer of "A"."""

    def __init__(
        self,
        mesh: ObjectMesh,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        """layout: of the buffers in memory, as the networks read them."""
        self.capacity = capacity
        self._raster = Rasterizer(MeshBank([mesh], device), capacity)
        self._diameter = torch.tensor([mesh.diameter_m], dtype=torch.float64, device=device)
        self._inverse_radius = torch.full((capacity,), 2 / mesh.diameter_m, device=device)
        self._mesh_index = torch.zeros(capacity, 1, dtype=torch.int32, device=device)
        shape = (capacity, 6, CROP_PX, CROP_PX)
        self._rendered = torch.empty(shape, dtype=dtype, device=device, memory_format=layout)
        self._observed = torch.empty(shape, dtype=dtype, device=device, memory_format=layout)

    @property
    def crops(self) -> dict[str, torch.Tensor]:
        """The buffers by the networks' input names; write() fills them from the front."""
        return {RENDERED: self._rendered, OBSERVED: self._observed}

    def write(
        self, poses: torch.Tensor, images: ObservedImages, spec: CropSpec, size: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write A and B of camera_from_centered (n <= capacity, 4, 4) for an image of size (H, W).

        Returns views of the buffers, valid until the next call. Asynchronous, no host sync.
        """
        rendered, windows = self._render(poses, images, spec)
        n = len(poses)
        observed = self._observed[:n]
        grid = observed_grid(windows, size[1], size[0])
        geometry = CropGeometry(windows, grid, poses[:, :3, 3], self._inverse_radius[:n])
        write_observed_input(observed, images, geometry, spec)
        return rendered, observed

    def write_with_depth(
        self, poses: torch.Tensor, images: ObservedImages, spec: CropSpec, size: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write A alone; return it and the observed depth (n, 160, 160) metres where B looks.

        Depth outside the image is 0. images must hold one image, shared by the poses
        (n, 4, 4). A is a view of the buffer, valid until the next call. No host sync.
        """
        rendered, windows = self._render(poses, images, spec)
        return rendered, self._depth_at(windows, images, size)

    def _render(
        self, poses: torch.Tensor, images: ObservedImages, spec: CropSpec
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write A; return it and the crop windows it was drawn for."""
        n = len(poses)
        windows = crop_windows(poses[:, :3, 3], images.intrinsics, self._diameter, spec.ratio)
        view = rendered_intrinsics(windows, images.intrinsics)
        self._raster.draw(self._mesh_index[:n], poses[:, None], view)
        self._raster.write_network_input(self._rendered[:n], self._inverse_radius[:1], spec.near_m)
        return self._rendered[:n], windows

    @staticmethod
    def _depth_at(
        windows: torch.Tensor, images: ObservedImages, size: tuple[int, ...]
    ) -> torch.Tensor:
        x0, y0, step_x, step_y = observed_grid(windows, size[1], size[0])[..., None].unbind(1)
        at = torch.arange(CROP_PX, device=windows.device)
        # a pose that is not finite sees nothing, rather than reading anywhere
        column = torch.round(x0 + at * step_x).nan_to_num(nan=-1.0)
        row = torch.round(y0 + at * step_y).nan_to_num(nan=-1.0)
        in_column = (column >= 0) & (column < size[1])
        in_row = (row >= 0) & (row < size[0])
        column, row = column.clamp(0, size[1] - 1).long(), row.clamp(0, size[0] - 1).long()
        depth_m = images.depth_m[0][row[:, :, None], column[:, None]]
        return depth_m * (in_row[:, :, None] & in_column[:, None])

    def neighbourhood(
        self, poses: torch.Tensor, intrinsics: torch.Tensor, size: tuple[int, ...]
    ) -> torch.Tensor:
        """Image region (1, 4) int32 x_first, y_first, x_last, y_last that tracking can read."""
        translations = poses[:, :3, 3]
        window = crop_windows(translations, intrinsics, self._diameter, NEIGHBOURHOOD_RATIO)
        low = window[:, :2]
        high = window[:, :2] + window[:, 2:]
        limits_x, limits_y = size[1] - 1, size[0] - 1
        x = torch.stack([low[:, 0], high[:, 0]], 1).clamp(0, limits_x)
        y = torch.stack([low[:, 1], high[:, 1]], 1).clamp(0, limits_y)
        return torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], 1).to(torch.int32)
