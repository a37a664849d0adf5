"""Device buffers of one or more meshes, shared by all views that are drawn of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import warp as wp

from ..datatypes import require
from ..warp_launch import as_warp
from .mesh import ObjectMesh


class MeshBank:
    """Vertices, faces and textures of M meshes in flat buffers on one device.

    Textures are separate entries, so that an instance may be drawn with another one: texture k
    belongs to the k-th textured mesh of the sequence; `extra_textures` ((h, w, 3) uint8 each)
    follow. `default_texture`: (M,) int32 host array, -1 = vertex colours.
    """

    def __init__(
        self,
        meshes: Sequence[ObjectMesh],
        device: str | torch.device = 'cpu',
        extra_textures: Sequence[np.ndarray] = (),
    ) -> None:
        require(len(meshes) > 0, 'MeshBank needs at least one mesh')
        self.device = torch.device(device)
        self.max_faces = max(len(mesh.faces) for mesh in meshes)
        require(
            self.max_faces < 2**24,
            f'a mesh has {self.max_faces} faces, at most {2**24 - 1} can be drawn: decimate it',
        )
        self._tensors: list[torch.Tensor] = []  # keeps the memory behind the Warp views alive
        self._upload_geometry(meshes)
        self._upload_textures(meshes, extra_textures)

    def _upload_geometry(self, meshes: Sequence[ObjectMesh]) -> None:
        vertex_start = np.cumsum([0] + [len(m.vertices) for m in meshes])
        faces = [m.faces + start for m, start in zip(meshes, vertex_start[:-1], strict=True)]
        counts = np.array([len(m.faces) for m in meshes])
        uv = [m.uv if m.uv is not None else np.zeros((len(m.vertices), 2)) for m in meshes]
        self.vertices = self._put(np.concatenate([m.vertices for m in meshes]), 'f4', wp.vec3)
        self.normals = self._put(np.concatenate([m.normals for m in meshes]), 'f4', wp.vec3)
        self.colors = self._put(np.concatenate([m.colors for m in meshes]), 'f4', wp.vec3)
        self.uv = self._put(np.concatenate(uv), 'f4', wp.vec2)
        self.faces = self._put(np.concatenate(faces), 'i4', wp.vec3i)
        self.face_start = self._put(np.cumsum(counts) - counts, 'i4')
        self.face_count = self._put(counts, 'i4')
        self.centers_m = self._put(np.stack([m.center_m for m in meshes]), 'f8', wp.vec3d)

    def _upload_textures(
        self, meshes: Sequence[ObjectMesh], extra_textures: Sequence[np.ndarray]
    ) -> None:
        textures: list[np.ndarray] = []
        self.default_texture = np.full(len(meshes), -1, np.int32)
        for index, mesh in enumerate(meshes):
            if mesh.texture is not None and mesh.uv is not None:
                self.default_texture[index] = len(textures)
                textures.append(mesh.texture)
        textures.extend(extra_textures)
        sizes = np.array([texture.shape[:2] for texture in textures] or [(1, 1)])
        pixels = sizes.prod(1)
        require(int(pixels.sum()) < 2**31 // 3, 'textures exceed 700 megapixels: downscale them')
        flat = [texture.reshape(-1) for texture in textures] or [np.zeros(3)]
        self.texels = self._put(np.concatenate(flat), 'u1')
        self.texture_start = self._put(np.cumsum(pixels) - pixels, 'i4')
        self.texture_size = self._put(sizes, 'i4', wp.vec2i)
        self.default_texture_device = self._tensor(self.default_texture, 'i4')

    def _tensor(self, values: np.ndarray, code: str) -> torch.Tensor:
        tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=code)).to(self.device)
        self._tensors.append(tensor)
        return tensor

    def _put(self, values: np.ndarray, code: str, dtype: type | None = None) -> wp.array:
        return as_warp(self._tensor(values, code), dtype)
