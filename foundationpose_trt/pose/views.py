"""Network inputs of poses of objects: rendered "A" and observed "B" into one fixed buffer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..runtime.specs import TensorSpec
from .crop_pass import CropPass, PassImages
from .crops import (
    PAIR,
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
    """Owns the buffer of both halves and the rasterizer of "A".

    Poses of any of the meshes may stand in one call; `objects` (n,) int32 on the device says
    which mesh each is of, by default all of the first.
    """

    def __init__(
        self,
        meshes: ObjectMesh | Sequence[ObjectMesh],
        capacity: int,
        crops: TensorSpec,
        device: torch.device,
    ) -> None:
        """capacity: poses at once. crops: what the networks take (crops.pairs_spec)."""
        meshes = (meshes,) if isinstance(meshes, ObjectMesh) else tuple(meshes)
        self._diameters_m = [mesh.diameter_m for mesh in meshes]
        diameters = torch.tensor(self._diameters_m, dtype=torch.float64)
        self.capacity = capacity
        self._meshes, self._bank = meshes, MeshBank(meshes, device)
        self._raster = Rasterizer(self._bank, capacity)
        self._diameters = diameters.to(device)
        self._inverse_radii = (2 / diameters).float().to(device)  # by mesh, 1 / metres
        self._first = torch.zeros(capacity, dtype=torch.int32, device=device)
        # rendered, then observed ones: of fewer poses both lie nearer to the front
        self.crops = torch.empty(
            crops.sized(PAIR * capacity),
            dtype=crops.dtype,
            device=device,
            memory_format=crops.layout,
        )

    def write(
        self,
        poses: torch.Tensor,
        images: ObservedImages,
        spec: CropSpec,
        size: tuple[int, ...],
        objects: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Write A and B of camera_from_centered (n <= capacity, 4, 4) for an image of size (H, W).

        Returns both, one behind the other (2 n, ...): a view of the buffer, valid until the next
        call. Asynchronous, no host sync.
        """
        n, objects = len(poses), self._known(objects, poses)
        windows = self._render(poses, images, spec, objects)
        observed = self.crops[n : PAIR * n]
        grid = observed_grid(windows, size[1], size[0])
        inverse_radius = self._inverse_radii.index_select(0, objects)
        geometry = CropGeometry(windows, grid, poses[:, :3, 3], inverse_radius)
        write_observed_input(observed, images, geometry, spec)
        return self.crops[: PAIR * n]

    def _known(self, objects: torch.Tensor | None, poses: torch.Tensor) -> torch.Tensor:
        return self._first[: len(poses)] if objects is None else objects

    def _render(
        self,
        poses: torch.Tensor,
        images: ObservedImages,
        spec: CropSpec,
        objects: torch.Tensor,
    ) -> torch.Tensor:
        """Write A; return the crop windows it was drawn for."""
        n = len(poses)
        diameters = self._diameters.index_select(0, objects)
        windows = crop_windows(poses[:, :3, 3], images.intrinsics, diameters, spec.ratio)
        view = rendered_intrinsics(windows, images.intrinsics)
        self._raster.draw(objects[:, None], poses[:, None], view)
        self._raster.write_network_input(self.crops[:n], self._inverse_radii, spec.near_m)
        return windows

    def track_pass(self, size: tuple[int, int], count: int) -> TrackPass:
        """Return a pass over `count` poses in images (H, W) that writes this writer's buffer."""
        crops = self.crops[: PAIR * count]
        return TrackPass(self._bank, self._diameters_m, crops, size)

    def register_pass(self, images: PassImages) -> RegisterPass:
        """Return a pass over whole images that writes this writer's buffer, as far as it goes."""
        visibility = self._raster.visibility
        loop = CropPass(self._bank, self._diameters_m, self.crops, images, visibility=visibility)
        return RegisterPass(loop, self.capacity, images.size)
