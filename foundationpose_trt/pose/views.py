"""Network inputs of poses of objects: rendered "A" and observed "B" into fixed buffers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .crop_pass import CropPass, PassImages
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
from .register_pass import RegisterPass
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
        self._diameters_m = [mesh.diameter_m for mesh in meshes]
        diameters = torch.tensor(self._diameters_m, dtype=torch.float64)
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

    def track_pass(self, size: tuple[int, int], count: int) -> TrackPass:
        """Return a pass over `count` poses in images (H, W) that writes this writer's buffers."""
        crops = (self._rendered[:count], self._observed[:count])
        return TrackPass(self._bank, self._diameters_m, crops, size)

    def register_pass(self, images: PassImages) -> RegisterPass:
        """Return a pass over whole images that writes this writer's buffers, all at once."""
        crops = (self._rendered, self._observed)
        visibility = self._raster.visibility
        loop = CropPass(self._bank, self._diameters_m, crops, images, visibility=visibility)
        return RegisterPass(loop, self.capacity, images.size)
