"""Network inputs of poses of objects: rendered "A" and observed "B" into fixed buffers."""

from __future__ import annotations

from collections.abc import Sequence

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
from .track_pass import TrackPass


class ViewWriter:
    """Owns the buffers (capacity, 6, 160, 160) of both halves and the rasterizer of "A".

    Poses of any of the meshes may stand in one call; `objects` (n,) int32 on the device says
    which mesh each is of, by default all of the first.
    """

    def __init__(
        self,
        meshes: ObjectMesh | Sequence[ObjectMesh],
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        layout: torch.memory_format = torch.contiguous_format,
    ) -> None:
        """layout: of the buffers in memory, as the networks read them."""
        meshes = (meshes,) if isinstance(meshes, ObjectMesh) else tuple(meshes)
        diameters = torch.tensor([mesh.diameter_m for mesh in meshes], dtype=torch.float64)
        self.capacity = capacity
        self._meshes, self._bank = meshes, MeshBank(meshes, device)
        self._raster = Rasterizer(self._bank, capacity)
        self._diameters = diameters.to(device)
        self._inverse_radii = (2 / diameters).float().to(device)  # by mesh, 1 / metres
        self._first = torch.zeros(capacity, dtype=torch.int32, device=device)
        shape = (capacity, 6, CROP_PX, CROP_PX)
        self._rendered = torch.empty(shape, dtype=dtype, device=device, memory_format=layout)
        self._observed = torch.empty(shape, dtype=dtype, device=device, memory_format=layout)

    @property
    def crops(self) -> dict[str, torch.Tensor]:
        """The buffers by the networks' input names; write() fills them from the front."""
        return {RENDERED: self._rendered, OBSERVED: self._observed}

    def write(
        self,
        poses: torch.Tensor,
        images: ObservedImages,
        spec: CropSpec,
        size: tuple[int, ...],
        objects: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write A and B of camera_from_centered (n <= capacity, 4, 4) for an image of size (H, W).

        Returns views of the buffers, valid until the next call. Asynchronous, no host sync.
        """
        n, objects = len(poses), self._known(objects, poses)
        rendered, windows = self._render(poses, images, spec, objects)
        observed = self._observed[:n]
        grid = observed_grid(windows, size[1], size[0])
        inverse_radius = self._inverse_radii.index_select(0, objects)
        geometry = CropGeometry(windows, grid, poses[:, :3, 3], inverse_radius)
        write_observed_input(observed, images, geometry, spec)
        return rendered, observed

    def write_with_depth(
        self,
        poses: torch.Tensor,
        images: ObservedImages,
        spec: CropSpec,
        size: tuple[int, ...],
        objects: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write A alone; return it and the observed depth (n, 160, 160) metres where B looks.

        Depth outside the image is 0. images must hold one image, shared by the poses
        (n, 4, 4). A is a view of the buffer, valid until the next call. No host sync.
        """
        objects = self._known(objects, poses)
        rendered, windows = self._render(poses, images, spec, objects)
        return rendered, self._depth_at(windows, images, size)

    def _known(self, objects: torch.Tensor | None, poses: torch.Tensor) -> torch.Tensor:
        return self._first[: len(poses)] if objects is None else objects

    def _render(
        self,
        poses: torch.Tensor,
        images: ObservedImages,
        spec: CropSpec,
        objects: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write A; return it and the crop windows it was drawn for."""
        n = len(poses)
        diameters = self._diameters.index_select(0, objects)
        windows = crop_windows(poses[:, :3, 3], images.intrinsics, diameters, spec.ratio)
        view = rendered_intrinsics(windows, images.intrinsics)
        self._raster.draw(objects[:, None], poses[:, None], view)
        self._raster.write_network_input(self._rendered[:n], self._inverse_radii, spec.near_m)
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

    def track_pass(self, size: tuple[int, int], count: int) -> TrackPass:
        """Return a pass over `count` poses in images (H, W) that writes this writer's buffers."""
        crops = (self._rendered[:count], self._observed[:count])
        return TrackPass(self._bank, [m.diameter_m for m in self._meshes], crops, size)
