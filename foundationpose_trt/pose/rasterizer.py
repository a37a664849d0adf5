"""Batched z-buffer over a MeshBank: N views into network inputs or into images, CPU and CUDA."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import warp as wp

from ..datatypes import require
from ..warp_launch import as_warp, launch
from . import raster_kernels as kernels
from .crop_blocks import crops_as_warp, is_crop_shape
from .mesh_bank import MeshBank


@dataclass(frozen=True)
class Light:
    """One directional light per image, all tensors on the raster's device.

    toward: (images, 3) float32 unit vectors in the camera frame, from the surface to the light.
    strengths: (images, 4) float32: ambient, diffuse, specular (each a factor of 0..1 colour) and
    the Blinn-Phong exponent.
    """

    toward: torch.Tensor
    strengths: torch.Tensor

    @classmethod
    def head_light(cls, images: int, device: torch.device) -> Light:
        """Return the networks' own light: 0.8 ambient, 0.5 diffuse (foundationpose.md §4)."""
        toward = torch.tensor([[0.0, 0.0, -1.0]], device=device).repeat(images, 1)
        strengths = torch.tensor([[0.8, 0.5, 0.0, 1.0]], device=device).repeat(images, 1)
        return cls(toward, strengths)


@dataclass(frozen=True)
class Rendered:
    """Images of one draw; views of the rasterizer's buffers, valid until its next shade().

    color: (images, H, W, 3) float32 0..1, background 0. depth_m: (images, H, W) float32,
    0 = nothing. slot: (images, H, W) int32, -1 = nothing. facing: (images, H, W) float32,
    |cosine| between surface normal and viewing ray, 0 = nothing.
    """

    color: torch.Tensor
    depth_m: torch.Tensor
    slot: torch.Tensor
    facing: torch.Tensor


def _require_shape(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    # A kernel would read or write past the end of a smaller tensor.
    require(tensor.shape == shape, f'{name} is {tuple(tensor.shape)}, must be {shape}')


def meshes_of(bank: MeshBank) -> kernels.Meshes:
    """Return a bank's arrays as the kernels take them."""
    meshes = kernels.Meshes()
    for name in kernels.Meshes.vars:  # type: ignore[attr-defined]  # wp.struct adds it
        setattr(meshes, name, getattr(bank, name))
    return meshes


class Rasterizer:
    """Draws up to `slots` mesh instances into each of `images` rasters of one size.

    Owns its buffers: 8 bytes per pixel for visibility, 24 more once shade() is used. Triangles
    with a vertex nearer than 1 mm to the camera plane are not drawn. All calls are
    asynchronous on torch's current stream. Raises ValueError for more than 255 slots.
    """

    def __init__(
        self, bank: MeshBank, images: int, height: int = 160, width: int = 160, slots: int = 1
    ) -> None:
        require(0 < slots < 256, f'slots is {slots}, must be 1..255')
        self.bank = bank
        self.device = bank.device
        self.slots = slots
        self._visibility = torch.empty(
            images, height, width, dtype=torch.int64, device=self.device
        )
        self._images = 0
        self._held: tuple[torch.Tensor, ...] = ()
        self._image_buffers: tuple[torch.Tensor, ...] | None = None
        self._meshes = meshes_of(bank)
        self._instances = kernels.Instances()

    def draw(
        self,
        mesh_index: torch.Tensor,
        camera_from_centered: torch.Tensor,
        intrinsics: torch.Tensor,
        texture_index: torch.Tensor | None = None,
    ) -> None:
        """Fill the visibility buffer.

        mesh_index: (n, slots) int32, -1 = empty slot; camera_from_centered: (n, slots, 4, 4)
        float32; intrinsics: (n, 4) float32 fx, fy, cx, cy in pixels of this raster;
        texture_index: (n, slots) int32, default the meshes' own. Raises ValueError for n > images
        and for other shapes.
        """
        n = len(mesh_index)
        require(n <= len(self._visibility), f'{n} views, room for {len(self._visibility)}')
        _require_shape('mesh_index', mesh_index, (n, self.slots))
        _require_shape('camera_from_centered', camera_from_centered, (n, self.slots, 4, 4))
        _require_shape('intrinsics', intrinsics, (n, 4))
        if texture_index is None:
            texture_index = self.bank.default_texture_device[mesh_index.clamp_min(0).long()]
        _require_shape('texture_index', texture_index, (n, self.slots))
        held = (
            mesh_index.to(torch.int32).reshape(-1).contiguous(),
            texture_index.to(torch.int32).reshape(-1).contiguous(),
            camera_from_centered.to(torch.float32).reshape(-1, 4, 4).contiguous(),
            intrinsics.to(torch.float32).contiguous(),
        )
        self._images, self._held = n, held
        self._instances.mesh = as_warp(held[0])
        self._instances.texture = as_warp(held[1])
        self._instances.camera_from_centered = as_warp(held[2], wp.mat44)
        self._instances.intrinsics = as_warp(held[3], wp.vec4)
        self._instances.slots = self.slots
        visibility = self._visibility[:n].fill_(-1)
        launch(
            kernels.rasterize,
            (n * self.slots, self.bank.max_faces, 1),
            [self._meshes, self._instances, as_warp(visibility, wp.uint64), 1],
            self.device,
        )

    def write_network_input(
        self, out: torch.Tensor, inverse_radius: torch.Tensor, near_m: float
    ) -> None:
        """Write the drawn views into out (n, 6, H, W), or in blocks (crop_blocks.in_blocks).

        fp32 or fp16, any strides.

        Channels: R, G, B in 0..1 and xyz relative to the pose's translation times
        inverse_radius[mesh] (2 / diameter, 1 / metres); values of 2 and more become 0 per
        channel, all three where z < near_m (foundationpose.md §2.1).
        """
        visibility = self._visibility[: self._images]
        height, width = visibility.shape[1:]
        require(
            is_crop_shape(out.shape, len(visibility), (height, width)),
            f'out is {tuple(out.shape)}, must be {(len(visibility), 6, height, width)}, or that in'
            ' blocks (crop_blocks.in_blocks)',
        )
        launch(
            kernels.shade_network_input,
            tuple(visibility.shape),
            [
                self._meshes,
                self._instances,
                as_warp(visibility, wp.uint64),
                as_warp(inverse_radius),
                near_m,
                crops_as_warp(out),
            ],
            self.device,
        )

    @property
    def visibility(self) -> torch.Tensor:
        """The buffer (images, H, W) int64, for others to draw into between two calls of draw()."""
        return self._visibility

    def coverage(self) -> torch.Tensor:
        """Return where the drawn views show anything: (n, H, W) bool, without shading."""
        return self._visibility[: self._images] != -1

    def shade(self, light: Light | None = None) -> Rendered:
        """Turn the drawn views into images; head light by default."""
        n = self._images
        light = light or Light.head_light(n, self.device)
        lights = kernels.Lights()
        lights.toward = as_warp(light.toward.contiguous(), wp.vec3)
        lights.strengths = as_warp(light.strengths.contiguous(), wp.vec4)
        buffers = [buffer[:n] for buffer in self._image_outputs()]
        visibility = self._visibility[:n]
        launch(
            kernels.shade_image,
            tuple(visibility.shape),
            [
                self._meshes,
                self._instances,
                as_warp(visibility, wp.uint64),
                lights,
                *[as_warp(buffer) for buffer in buffers],
            ],
            self.device,
        )
        return Rendered(*buffers)

    def _image_outputs(self) -> tuple[torch.Tensor, ...]:
        if self._image_buffers is None:
            shape, device = self._visibility.shape, self.device
            self._image_buffers = (
                torch.empty(*shape, 3, device=device),
                torch.empty(shape, device=device),
                torch.empty(shape, dtype=torch.int32, device=device),
                torch.empty(shape, device=device),
            )
        return self._image_buffers
